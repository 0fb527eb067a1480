"""Streaming on a real GPU while other work of the process is captured into CUDA graphs."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import tensorstream as ts
from conftest import assert_same
from model_shapes import make_stack, row_ids
from test_gpu import DEVICE, tiny

pytestmark = pytest.mark.needs_gpu


def test_a_model_streams_and_ends_beside_the_capture_of_another() -> None:
    """torch's usual way to capture forbids calls that wait to all threads, and is lost by them."""
    plain = make_stack(5).to(DEVICE)
    smallest = ts.estimate_memory(make_stack(5)).smallest_budget_bytes
    model, ending = make_stack(5), make_stack(5)
    for streamed in (model, ending):
        ts.offload(streamed, **tiny(smallest * 3 // 2))
    ids = row_ids().to(DEVICE)
    layer = nn.Linear(64, 64, device=DEVICE)
    x = torch.randn(8, 64, device=DEVICE)

    def forwards() -> list[torch.Tensor]:
        with torch.no_grad():
            return [model(ids) for _ in range(20)]

    with torch.no_grad():
        expected, product = plain(ids), layer(x)
        ending(ids)
    graph = torch.cuda.CUDAGraph()
    with ThreadPoolExecutor(1) as threads:
        # A thread's first product makes its handle of cuBLAS, which no capture survives, nor natively.
        threads.submit(forwards).result()
        torch.cuda.synchronize(DEVICE)
        with torch.no_grad(), torch.cuda.graph(graph):
            first = layer(x)
            outputs = threads.submit(forwards).result()
            del ending, streamed
            gc.collect()
            second = first + x
    for output in outputs:
        assert_same(output, expected)
    for _ in range(3):
        graph.replay()
        assert_same(first, product)
        assert_same(second, product + x)
    assert_same(forwards()[-1], expected)
