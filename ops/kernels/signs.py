"""Signs: of singular vectors, where they must be reproducible, and of a merged task vector, elected by its experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch


def fix_signs(u: torch.Tensor, vh: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Make the largest-magnitude entry of every column of U positive, by flipping pairs of singular vectors in place.

    The product U diag(S) Vh does not change, in no bit. Among equal magnitudes the first counts; zero columns stay.

    Args:
        u: `[m, q]`.
        vh: `[q, n]`.

    Returns:
        The same two tensors.
    """
    if u.shape[0] and u.shape[1]:
        top = u.abs().argmax(dim=0)
        flip = u.gather(0, top[None]).squeeze(0) < 0
        u[:, flip] *= -1
        vh[flip] *= -1
    return u, vh


def elect_signs(stack: torch.Tensor, by: Literal["values", "signs"] = "values") -> torch.Tensor:
    """The sign each element of a merged task vector takes, by vote of K experts (TIES, Yadav et al. 2023, section 3.2).

    Args:
        stack: `[K, ...]` float; zeros abstain.
        by: `values` takes the sign of the sum, added up in float64 in the order of the experts; `signs` counts heads.

    Returns:
        int8 `[...]` of -1 and 1; where the vote is even, the sign that more elements of the whole result have, and +1 where that is even too.
    """
    import torch

    total = torch.zeros(stack.shape[1:], dtype=torch.float64, device=stack.device)
    for expert in stack:
        total += expert.sign() if by == "signs" else expert
    elected = total.sign().to(torch.int8)
    majority = 1 if int(elected.sum(dtype=torch.int64)) >= 0 else -1
    elected[elected == 0] = majority
    return elected
