"""Micro-benchmarks of every op against PyTorch, on the cases that the tests check.

    pytest benchmarks/bench_ops.py --benchmark-enable --benchmark-group-by=param:case,param:tokens

`minifuse bench --ops` gives the same cases interleaved, as ratios; this one gives distributions.
"""

from __future__ import annotations

import pytest
import torch

from minifuse import hardware
from minifuse.op_cases import OP_TOKENS, op_cases

CASES = [case.name for case in op_cases(1)]


@pytest.mark.parametrize("engine", ["torch", "packed", "unpacked"])
@pytest.mark.parametrize("case", range(len(CASES)), ids=CASES)
@pytest.mark.parametrize("tokens", OP_TOKENS)
def test_op(benchmark, tokens, case, engine):
    torch.set_num_threads(hardware.describe()["num_threads"])
    run = getattr(op_cases(tokens)[case], engine)
    if run is None:
        pytest.skip("this op has no weights")
    with torch.inference_mode():
        benchmark(run)
