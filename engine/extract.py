"""LoRA extraction: the best low-rank approximation of what fine-tuning changed, tensor by tensor, as a PEFT adapter.

D = W - W_0 is formed in float32, decomposed (`ops/kernels/thin_svd.py`), and cut to rank q: B = U sqrt(S), A = sqrt(S) Vh, so
that W_0 + B A is the nearest model of that rank (Eckart and Young 1936). One tensor is held at a time. The energy that an
adapter captures, 1 - ‖D - B A‖² / ‖D‖², is measured with the rounded factors that are written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from plait.engine.adapter import AdapterFolder
from plait.engine.reader import Reader
from plait.engine.weightdiff import changed, delta_of, pieces
from plait.ops.dtypes import BY_CODE
from plait.ops.errors import KernelError, PlanError, Stopped
from plait.planner.lora_targets import PIECE, Target, Targets

if TYPE_CHECKING:
    import torch

PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Settings:
    """What an adapter is to be.

    Attributes:
        rank: most triplets of one tensor.
        energy: share of ‖D‖² at which fewer are enough; None: always `rank`.
        accuracy: `exact`, or `fast` for random sketches.
        dtype: storage code of the factors.
        distribute_scale: share the singular values between A and B; else all are in A.
        save_whole: save what cannot be decomposed and has changed, in full.
    """

    rank: int = 64
    energy: float | None = None
    accuracy: Literal["exact", "fast"] = "exact"
    dtype: str = "BF16"
    distribute_scale: bool = True
    save_whole: bool = False


@dataclass(frozen=True, slots=True)
class Factored:
    """One decomposed tensor.

    Attributes:
        name, module, shape: of the tensor.
        rank: triplets kept.
        captured: share of the change's energy, as measured.
        norm: ‖D‖_F.
    """

    name: str
    module: str
    shape: tuple[int, ...]
    rank: int
    captured: float
    norm: float


@dataclass(slots=True)
class Extracted:
    """What an extraction found and wrote.

    Attributes:
        factored: the decomposed tensors.
        unchanged: tensors that are as in the base.
        whole: names of changed tensors saved in full.
        left_out: changed tensors that are not in the adapter, and why.
        excluded: names left out by request, not looked at.
        missing: tensors of the base that the model does not have.
        nbytes: of the adapter's tensors.
    """

    factored: list[Factored] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    whole: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    excluded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    nbytes: int = 0

    @property
    def captured(self) -> float:
        """Share of the energy of all decomposed tensors together."""
        total = sum(f.norm**2 for f in self.factored)
        return sum(f.captured * f.norm**2 for f in self.factored) / total if total else 1.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"captured": self.captured, **asdict(self)}


def extract(
    targets: Targets,
    settings: Settings,
    folder: AdapterFolder,
    reader: Reader,
    progress: Callable[[int], None] = lambda nbytes: None,
    stop: threading.Event | None = None,
    *,
    transposed: bool = False,
) -> Extracted:
    """Decompose every tensor and write what the adapter holds; the folder is not published here.

    Args:
        targets: from `find_targets`.
        settings: what the adapter is to be.
        folder: open.
        reader: of the models' files.
        progress: hears of bytes read.
        stop: when set, the run ends after the tensor at hand.
        transposed: matrices are stored `[in, out]`.

    Raises:
        KernelError: a tensor holds NaN or infinity, or did not converge.
        PlanError: no matrix differs from the base.
        Stopped: `stop` was set.
    """
    found = Extracted(excluded=targets.excluded, missing=targets.missing)
    modules = {t.module for t in targets.wanted if t.kind in ("matrix", "conv")}
    biased = {t.module for t in targets.wanted if t.kind == "bias"}
    for target in written_order(targets.wanted, settings.dtype):
        if stop is not None and stop.is_set():
            raise Stopped("stopped as asked; nothing was published")
        if target.kind in ("matrix", "conv"):
            _factor(target, settings, folder, reader, progress, found, transposed=transposed)
        else:
            _keep(target, modules, biased, settings, folder, reader, progress, found)
    if not found.factored:
        raise PlanError("no matrix of the model differs from the base, so there is nothing to extract; check that they are the two models you mean")
    found.nbytes = folder.nbytes
    return found


def written_order(targets: Sequence[Target], dtype: str) -> list[Target]:
    """Targets by descending element size of what is written for them, so that every tensor of the file is aligned; biases after weights."""
    return sorted(targets, key=lambda t: (-BY_CODE[t.model.dtype if t.kind == "whole" else dtype].itemsize, t.kind == "bias"))


def _factor(
    target: Target, settings: Settings, folder: AdapterFolder, reader: Reader, progress: Callable[[int], None], found: Extracted, *, transposed: bool
) -> None:
    import torch

    from plait.ops.kernels.signs import fix_signs
    from plait.ops.kernels.thin_svd import svd

    delta = torch.from_numpy(delta_of(target, reader, progress).reshape(target.rows, target.columns))
    norm = float(torch.linalg.vector_norm(delta, dtype=torch.float64))
    if norm == 0:
        found.unchanged.append(target.name)
        return
    try:
        u, s, vh = svd(delta, settings.rank, settings.accuracy)
    except KernelError as error:
        raise KernelError(
            f"{target.name}: {error.message}; leave it out with --exclude, or check the model", **{**error.facts, "tensor": target.name}
        ) from error
    q = _rank(s, norm, settings.energy)
    fix_signs(u, vh)
    b, a = _split(u[:, :q], s[:q], vh[:q], settings)
    del u, s, vh
    found.factored.append(Factored(target.name, target.module, target.model.shape, q, _captured(delta, b, a, norm), norm))
    if transposed and target.kind == "matrix":
        a, b = b.T, a.T
    kernel = target.model.shape[2:]
    dots = (1,) * len(kernel)
    _add(folder, f"{target.module}.lora_A.weight", settings.dtype, a, (q, a.shape[1]) if not kernel else (q, *target.model.shape[1:]))
    _add(folder, f"{target.module}.lora_B.weight", settings.dtype, b, (b.shape[0], q, *dots))


def _rank(s: torch.Tensor, norm: float, energy: float | None) -> int:
    """Triplets to keep: all above the noise, or as many as hold the asked share of the energy; one at least."""
    import torch

    above = int(torch.count_nonzero(s))
    if energy is None:
        return max(1, above)
    shares = s.to(torch.float64).square().cumsum(0) / norm**2
    return max(1, min(above, int((shares < energy).sum()) + 1))


def _split(u: torch.Tensor, s: torch.Tensor, vh: torch.Tensor, settings: Settings) -> tuple[torch.Tensor, torch.Tensor]:
    """B `[m, q]` and A `[q, n]`, rounded to the storage dtype."""
    import torch

    dtype = getattr(torch, BY_CODE[settings.dtype].name)
    near, far = (s.sqrt(), s.sqrt()) if settings.distribute_scale else (torch.ones_like(s), s)
    return (u * near).to(dtype), (vh * far[:, None]).to(dtype)


def _captured(delta: torch.Tensor, b: torch.Tensor, a: torch.Tensor, norm: float) -> float:
    import torch

    wide, left = a.to(torch.float32), 0.0
    height = max(1, PIECE // 2 // delta.shape[1])
    for start in range(0, delta.shape[0], height):
        rows = slice(start, start + height)
        left += float((delta[rows] - b[rows].to(torch.float32) @ wide).to(torch.float64).square().sum())
    return 1 - left / norm**2


def _add(folder: AdapterFolder, name: str, dtype: str, values: torch.Tensor, shape: tuple[int, ...]) -> None:
    import torch

    flat = values.contiguous().view(torch.int16 if values.element_size() == 2 else torch.int32).numpy()
    folder.add(PREFIX + name, dtype, flat, shape)


def _keep(
    target: Target,
    modules: set[str],
    biased: set[str],
    settings: Settings,
    folder: AdapterFolder,
    reader: Reader,
    progress: Callable[[int], None],
    found: Extracted,
) -> None:
    """Save a tensor in full, or a bias as its change, where it has changed and that is wanted; say why where it is not.

    Args:
        modules: that are decomposed; those hold nothing in full.
        biased: those of them that have a bias.
    """
    if not changed(target, reader, progress):
        found.unchanged.append(target.name)
        return
    why = _why_not(target, modules, biased, settings, found)
    if why:
        found.left_out[target.name] = why
        return
    if target.kind == "bias":
        import torch

        delta = torch.from_numpy(delta_of(target, reader, progress)).to(getattr(torch, BY_CODE[settings.dtype].name))
        _add(folder, f"{target.module}.lora_B.bias", settings.dtype, delta, tuple(delta.shape))
    else:
        folder.begin(PREFIX + target.name, target.model.dtype, target.model.shape, target.model.nbytes)
        for raw in pieces(target.model, reader):
            folder.append(raw)
            progress(raw.nbytes)
    found.whole.append(target.name)


def _why_not(target: Target, modules: set[str], biased: set[str], settings: Settings, found: Extracted) -> str:
    if not settings.save_whole:
        return target.why
    if target.kind == "bias":
        factored = {f.module for f in found.factored}
        if target.module not in factored:
            return "bias of a weight that did not change"
        # PEFT's lora_bias holds for all modules of an adapter, and cannot be merged into one without a bias
        return "" if factored <= biased else "bias, and other decomposed modules have none: --include those that do"
    if not target.module:
        return f"{target.why}, and belongs to no module"
    return f"{target.why}, and the weight of its module is decomposed" if target.module in modules else ""
