"""Which adapter changes what: Arrow's directions and choices."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from specmoe.lora.choices import ArrowChoice, prototype


def test_a_prototype_is_the_input_that_the_adapter_changes_most():
    torch.manual_seed(0)
    A, B = torch.randn(3, 10), torch.randn(7, 3)
    v = prototype(A, B)
    _, values, vectors = torch.linalg.svd(B @ A)
    assert torch.isclose((v @ vectors[0]).abs(), torch.tensor(1.0), atol=1e-5)
    assert torch.isclose((B @ A @ v).norm(), values[0], rtol=1e-5)


def test_arrow_takes_the_best_of_each_token():
    layer = SimpleNamespace(prototypes=torch.eye(3))
    rows = torch.tensor([[0.1, -3.0, 1.0], [2.0, 0.5, 0.0]])
    (first, heavy), (second, light) = ArrowChoice(top_k=2).terms(rows, layer)
    assert first.tolist() == [1, 0] and second.tolist() == [2, 1]
    torch.testing.assert_close(heavy + light, torch.ones(2))
    torch.testing.assert_close(heavy[0], torch.tensor([3.0, 1.0]).softmax(0)[0])
    only = ArrowChoice(top_k=1).terms(rows, layer)
    assert len(only) == 1 and only[0][1].tolist() == [1.0, 1.0]


def test_arrow_refuses_nonsense():
    with pytest.raises(ValueError, match="top_k >= 1"):
        ArrowChoice(0)
