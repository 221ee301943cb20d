"""A whole model of transformers in a CUDA graph: nothing in a forward asks the host for a value."""

from __future__ import annotations

import pytest
import torch
from models import MODELS, tokens

import moe_kernels
from moe_kernels.testing import assert_close

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_replayed_model_gives_what_it_gives_without_a_graph(name):
    model = moe_kernels.patch(MODELS[name]().cuda(), routers=True)
    given, graph, side = tokens().cuda(), torch.cuda.CUDAGraph(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        # Kernels are compiled, and modules are asked what they compute, before the capture.
        for _ in range(2):
            model(given, use_cache=False)
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        out = model(given, use_cache=False).logits
    for shift in (0, 1, 5):
        given.copy_((tokens() + shift) % model.config.vocab_size)
        graph.replay()
        assert_close(out, model(given.clone(), use_cache=False).logits, what=f"tokens shifted by {shift}")
