"""Which tensors of a fine-tuned model a LoRA adapter can hold, and what each costs; from headers alone.

Linear and convolution weights become factors. The bias of such a module goes into its `lora_B`. Embeddings, heads, norms and
whatever has no counterpart in the base can only be saved whole (`modules_to_save`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from plait.ops.dtypes import BY_CODE, BY_NAME, RECIPE_FLOATS
from plait.ops.errors import PlanError
from plait.planner.layers import role
from plait.planner.types import Checkpoint, TensorRef

Kind = Literal["matrix", "conv", "bias", "whole"]

#: Elements that are read of each model at once.
PIECE = 1 << 18
#: Model types whose linear layers store `[in, out]`, as PEFT's `fan_in_fan_out` means.
TRANSPOSED = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})


@dataclass(frozen=True, slots=True)
class Target:
    """One tensor of the fine-tuned model.

    Attributes:
        name: of the tensor.
        module: its name without the last part.
        kind: `matrix` and `conv` are decomposed, `bias` belongs to a decomposed module, `whole` can only be saved in full.
        model: where it is.
        base: its counterpart; None where the base has none of that shape.
        why: for `whole`, why it is not decomposed.
    """

    name: str
    module: str
    kind: Kind
    model: TensorRef
    base: TensorRef | None
    why: str = ""

    @property
    def rows(self) -> int:
        """Rows of the matrix that is decomposed: its first dimension, the output channels of a convolution."""
        return self.model.shape[0]

    @property
    def columns(self) -> int:
        """Columns of that matrix: all other dimensions together."""
        return math.prod(self.model.shape[1:])


@dataclass(frozen=True, slots=True)
class Targets:
    """What an extraction looks at.

    Attributes:
        wanted: the tensors to read, in the model's order.
        excluded: names left out by --include and --exclude.
        missing: tensors of the base that the model does not have.
    """

    wanted: tuple[Target, ...]
    excluded: tuple[str, ...]
    missing: tuple[str, ...]


def find_targets(base: Checkpoint, model: Checkpoint, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Targets:
    """Sort the tensors of a fine-tuned model into what an adapter does with them.

    Args:
        base: the model that the adapter will be put on.
        model: the fine-tuned one.
        include: regular expressions searched in tensor names; when there are any, only tensors that match one are looked at.
        exclude: tensors that match one of these are left out.

    Raises:
        PlanError: a pattern is no regular expression, or leaves nothing to decompose.
    """
    wanted_by, unwanted_by = [_pattern(p) for p in include], [_pattern(p) for p in exclude]
    excluded, chosen = [], []
    for name, tensor in model.tensors.items():
        out = (wanted_by and not any(p.search(name) for p in wanted_by)) or any(p.search(name) for p in unwanted_by)
        if out:
            excluded.append(name)
        else:
            chosen.append(_target(name, tensor, base))
    modules = {t.module for t in chosen if t.kind in ("matrix", "conv")}
    if not modules:
        raise PlanError("no tensor is a matrix or convolution that an adapter can hold; look at --include and --exclude, and `plait inspect` the model")
    wanted = tuple(_as_bias(t) if t.module in modules and t.kind == "whole" else t for t in chosen)
    return Targets(wanted, tuple(excluded), tuple(n for n in base.tensors if n not in model.tensors))


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise PlanError(f"{text!r} is not a regular expression ({error}); write for example '.*\\.q_proj\\.weight'") from error


def _target(name: str, tensor: TensorRef, base: Checkpoint) -> Target:
    module, _, last = name.rpartition(".")
    other = base.tensors.get(name)
    same = other is not None and other.shape == tensor.shape
    counterpart = other if same else None
    why = _why_whole(name, last, tensor, other)
    kind: Kind = "whole" if why else "matrix" if len(tensor.shape) == 2 else "conv"
    return Target(name, module, kind, tensor, counterpart, why)


def _why_whole(name: str, last: str, tensor: TensorRef, other: TensorRef | None) -> str:
    if other is None:
        return "not in the base"
    if other.shape != tensor.shape:
        return f"{list(other.shape)} in the base"
    if BY_CODE[tensor.dtype].kind != "f" or BY_CODE[other.dtype].kind != "f":
        return "not plain floats"
    if role(name) in ("embedding", "head"):
        return "embedding" if role(name) == "embedding" else "head"
    if last != "weight" or len(tensor.shape) < 2 or math.prod(tensor.shape) == 0:
        return "no matrix"
    if len(tensor.shape) == 2 or len(tensor.shape) == 4 or (len(tensor.shape) == 3 and "conv" in name.lower()):
        return ""
    return f"{len(tensor.shape)} dimensions"


def _as_bias(target: Target) -> Target:
    """A tensor beside a decomposed weight: its bias goes along, anything else has no place in an adapter."""
    if target.name.endswith(".bias") and target.base is not None and target.why == "no matrix" and len(target.model.shape) == 1:
        return Target(target.name, target.module, "bias", target.model, target.base, "bias")
    return target


def target_bytes(target: Target, rank: int, accuracy: Literal["exact", "fast"], threads: int) -> int:
    """Upper bound of the memory that one tensor takes while it is read, decomposed and written.

    Args:
        target: the tensor.
        rank: most triplets that are kept.
        accuracy: as for `thin_svd.svd`.
        threads: torch's threads.
    """
    # raw pieces of both models, and what they are widened to
    pieces = min(PIECE, math.prod(target.model.shape)) * 32
    if target.kind not in ("matrix", "conv"):
        return pieces
    from plait.ops.kernels.thin_svd import svd_workspace_bytes

    m, n = target.rows, target.columns
    q = min(rank, m, n)
    # U, S, Vh, then A and B beside them, rounded and widened again to measure what they give
    factors = 12 * q * (m + n + 1)
    return 4 * m * n + factors + max(pieces, svd_workspace_bytes(m, n, q, accuracy, threads))


def storage_code(name: str) -> str:
    """The code of a dtype that factors may be stored in.

    Raises:
        PlanError: there is none of that name.
    """
    if name not in RECIPE_FLOATS:
        raise PlanError(f"factors cannot be stored in {name!r}; choose {', '.join(RECIPE_FLOATS)}")
    return BY_NAME[name].code
