"""Micro-benchmarks of every op against PyTorch, on the cases that the tests check.

    pytest benchmarks/bench_ops.py --benchmark-enable --benchmark-group-by=param:tokens

`minifuse bench --ops` gives the same cases interleaved, as ratios; this one gives distributions.
"""

from __future__ import annotations

import pytest
import torch

from minifuse import hardware
from minifuse.bench.ops import OP_TOKENS, op_cases

# Only an op with weights has an unpacked form.
RUNS = [
    pytest.param(index, engine, id=f"{case.name}-{engine}")
    for index, case in enumerate(op_cases(1))
    for engine in ("torch", "packed", "unpacked")
    if getattr(case, engine) is not None
]


@pytest.mark.parametrize(("case", "engine"), RUNS)
@pytest.mark.parametrize("tokens", OP_TOKENS)
def test_op(benchmark, tokens, case, engine):
    torch.set_num_threads(hardware.describe()["num_threads"])
    run = getattr(op_cases(tokens)[case], engine)
    with torch.inference_mode():
        benchmark(run)
