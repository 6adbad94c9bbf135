#!/usr/bin/env bash
# Everything that a machine with another CPU can show, in one call: what the CPU is and its arithmetic
# ceiling, the kernels' tests under each of its instruction sets, and the speed of the encoder under
# each set and beside the engines that are installed (PyTorch, ONNX Runtime, OpenVINO).
#
#   tools/cpu_check.sh OUT [MODEL]
#
# writes OUT/*.txt and OUT/*.json. A part that fails is told and the next one goes on; the status is
# then 1. PARTS="machine speed" names some. PYTHON is an environment with minifuse and pytest; without
# it make sets one up, for which it needs the network.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:?wanted: tools/cpu_check.sh OUT [MODEL]}" && cd "$1" && pwd)
model=${2:-all-MiniLM-L6-v2}
if [ -z "${PYTHON:-}" ]; then
  make .venv/.installed .venv/.bench-tools || exit
  PYTHON=.venv/bin/python
fi
isas=$("$PYTHON" -c "from minifuse.native import core; print(*core.supported_isas())") || exit

machine() {
  { date -u +%F; lscpu; "$PYTHON" -m minifuse.cli info --peak; } > "$out/machine.txt"
}
native() {  # the kernels against the mathematics, without Python
  cmake -S . -B "$out/build" -DMINIFUSE_BUILD_PYTHON=OFF -DMINIFUSE_BUILD_TESTS=ON -DMINIFUSE_CUDA=OFF &&
    cmake --build "$out/build" --parallel "$(nproc)" &&
    ctest --test-dir "$out/build" --output-on-failure
}
tests() {
  local status=0 isa
  for isa in $isas; do
    MINIFUSE_ISA=$isa "$PYTHON" -m pytest -q tests/kernels tests/families tests/search || status=1
  done
  return $status
}
speed() {  # our own time stage by stage, under each set
  local status=0 isa
  for isa in $isas; do
    MINIFUSE_ISA=$isa "$PYTHON" -m minifuse.cli bench --profile --model "$model" \
      --json "$out/profile_$isa.json" || status=1
  done
  return $status
}
peers() {
  "$PYTHON" -m minifuse.cli bench --peers --model "$model" --json "$out/encode.json"
}

failed=
for part in ${PARTS:-machine native tests speed peers}; do
  echo "cpu_check: $part"
  "$part" > "$out/$part.log" 2>&1 || { failed="$failed $part"; tail -5 "$out/$part.log"; }
done
if [ -n "$failed" ]; then
  echo "cpu_check: failed:$failed"
  exit 1
fi
echo "cpu_check: every part passed"
