"""Signs of singular vectors and of merged task vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plait.ops.kernels.signs import elect_signs, fix_signs


def test_the_largest_entry_of_every_left_vector_becomes_positive():
    """Whatever signs came in, the same come out, and the product keeps its bits."""
    rng = np.random.default_rng(0)
    u, s, vh = (torch.from_numpy(a.astype(np.float32)) for a in np.linalg.svd(rng.standard_normal((9, 5)), full_matrices=False))
    product = (u * s) @ vh
    flips = torch.tensor([1.0, -1, 1, -1, -1])
    first = fix_signs(u.clone(), vh.clone())
    second = fix_signs(u * flips, vh * flips[:, None])
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    assert bool((first[0].gather(0, first[0].abs().argmax(0, keepdim=True)) > 0).all())
    assert torch.equal((first[0] * s) @ first[1], product)


def test_zero_and_missing_vectors_stay():
    """Zero columns have no sign to fix, and no columns at all are no error."""
    u, vh = fix_signs(torch.zeros(3, 2), torch.ones(2, 4))
    assert not u.any()
    assert bool((vh == 1).all())
    assert fix_signs(torch.zeros(3, 0), torch.zeros(0, 4))[0].shape == (3, 0)


@pytest.mark.parametrize(("by", "expected"), [("values", [1, -1, -1, 1]), ("signs", [-1, -1, 1, -1])])
def test_the_vote(by, expected):
    """Values: one large beats two small. Signs: two beat one. The even one follows the majority of elements."""
    stack = torch.tensor([[3.0, -1, -3, 0], [-1, -1, 1, 0], [-1, 0, 1, 0]])
    if by == "values":
        stack[:, 3] = torch.tensor([2.0, -1, 0])
    assert elect_signs(stack, by).tolist() == expected


def test_even_votes_take_the_majority():
    """Two of three elements are negative, so the tie becomes negative."""
    assert elect_signs(torch.tensor([[1.0, -1, -2], [-1, -1, 0]])).tolist() == [-1, -1, -1]


def test_experts_may_come_in_any_order():
    """The election is symmetric."""
    stack = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(elect_signs(stack), elect_signs(stack.flip(0)))
