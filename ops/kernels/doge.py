"""DOGE's shared correction: a few hundred steps of Adam on a quadratic loss, with its gradient in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from plait.ops.kernels.results import Results
from plait.ops.wholes import Facts

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8


def correction(node: Facts, inputs: Sequence[Any], out: Results) -> None:
    """Minimise sum_j sum_rows <t_j, t_j - sum_i l_i (t_i + d)>^2 over d, the gradient projected away from a subspace of columns.

    With c_j = <t_j, t_j - sum_i l_i t_i> - L <t_j, d> for each row and L = sum_i l_i, the gradient is -2 L sum_j c_j t_j.

    Args:
        node: parameters `steps` and `rate`.
        inputs: the task vectors t, `[m, n]` each; orthonormal columns `[m, q]` of the subspace; the coefficients l, `(K,)`.
        out: d, `[m, n]`.
    """
    *taus, basis, coefficients = inputs
    weights = [float(x) for x in coefficients]
    total = sum(weights)
    delta = out[0].zero_()
    product, gradient = torch.empty_like(delta), torch.empty_like(delta)
    first, second = torch.zeros_like(delta), torch.zeros_like(delta)
    gaps = []
    for t in taus:
        gap = torch.mul(t, t, out=product).sum(dim=1)
        for other, weight in zip(taus, weights, strict=True):
            gap -= weight * torch.mul(t, other, out=product).sum(dim=1)
        gaps.append(gap)
    for step in range(1, int(node.param("steps")) + 1):
        gradient.zero_()
        for t, gap in zip(taus, gaps, strict=True):
            c = gap - total * torch.mul(t, delta, out=product).sum(dim=1)
            gradient.addcmul_(t, (-2.0 * total * c)[:, None])
        gradient.addmm_(basis, basis.T @ gradient, alpha=-1.0)
        first.lerp_(gradient, 1.0 - _BETA1)
        second.mul_(_BETA2).addcmul_(gradient, gradient, value=1.0 - _BETA2)
        torch.sqrt(second, out=product).div_((1.0 - _BETA2**step) ** 0.5).add_(_EPS)
        delta.addcdiv_(first, product, value=-float(node.param("rate")) / (1.0 - _BETA1**step))
