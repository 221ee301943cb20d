"""Rotary positions."""

from __future__ import annotations

import torch

from specmoe.transformer.rotary import rotary_angles, rotate


def test_rotate_is_the_same_in_complex_and_real_arithmetic():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 7, 3, 8, generator=generator)
    cos, sin = rotary_angles(torch.arange(7)[None], 8, 10000.0)
    # float64 takes the real path.
    expected = rotate(x.double(), cos.double(), sin.double())
    torch.testing.assert_close(rotate(x, cos, sin).double(), expected, rtol=1e-6, atol=1e-6)


def test_rotate_follows_the_formula():
    x = torch.tensor([[[[1.0, 0.0, 0.0, 1.0]]]])
    angles = torch.tensor([5.0, 5.0 * 100.0**-0.5])
    rotated = rotate(x, *rotary_angles(torch.tensor([[5]]), 4, 100.0))[0, 0, 0]
    expected = torch.stack((angles[0].cos(), angles[0].sin(), -angles[1].sin(), angles[1].cos()))
    torch.testing.assert_close(rotated, expected)


def test_scores_depend_on_the_distance_alone():
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 16, generator=generator).double()

    def score(query_at: int, key_at: int) -> torch.Tensor:
        at = [rotary_angles(torch.tensor([[position]]), 16, 10000.0) for position in (query_at, key_at)]
        rotated = [rotate(x, cos.double(), sin.double()) for x, (cos, sin) in zip((query, key), at, strict=True)]
        return (rotated[0] * rotated[1]).sum()

    torch.testing.assert_close(score(3, 1), score(103, 101), rtol=1e-5, atol=1e-5)
    assert abs(score(3, 1) - score(3, 2)) > 1e-3
