#!/usr/bin/env bash
# Everything that only a machine with an NVIDIA GPU can show, in one call of under nine minutes:
#
#   tools/gpu_check.sh --model FOLDER --out FOLDER [--short FILE] [--paragraphs FILE] [--wheels FOLDER]
#
# builds the kernels with nvcc, runs their tests on the device, compares with the CPU and PyTorch,
# times every op and the whole encoder, and writes OUT/gpu.json. A part that fails is told and the
# next one goes on. Wanted: nvcc, and Python >= 3.10 with torch and numpy; the rest (pybind11,
# scikit-build-core, tokenizers, huggingface-hub, tqdm, pytest) from the environment or --wheels.
# --dry-run stops each part at its first CUDA call, and is what the ordinary tests run.
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu_check.py" "$@"
