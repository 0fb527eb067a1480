"""Compiled blocks of a streamed model: hooks run between graphs, and nothing is compiled again and again."""

from __future__ import annotations

import torch
from torch._dynamo.testing import CompileCounter

import tensorstream as ts
from conftest import assert_same
from model_shapes import make_stack, row_ids

LAYERS = 4


def test_compiled_blocks_are_bit_identical_and_compiled_once() -> None:
    torch._dynamo.reset()
    plain, model = make_stack(LAYERS), make_stack(LAYERS)
    ts.offload(model, ram_budget=2 * ts.estimate_memory(model).smallest_budget_bytes)
    graphs = CompileCounter()
    for block in model.blocks:
        block.compile(backend=graphs)
    made = []
    for _ in range(4):
        with torch.no_grad():
            assert_same(model(row_ids()), plain(row_ids()))
        made.append(graphs.frame_count)
    assert made[0] > 0, "nothing was compiled"
    assert made[-1] == made[1], "later forwards are compiled again"
    assert ts.stats(model).streamed_bytes > 0
