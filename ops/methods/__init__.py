"""Merge methods, one family a file; importing this package registers them all."""

from plait.ops.methods import averaging, calibration, continual, decompose_merge, geometry, projected, sparsified, spectral, subspace, svc, ties, truncated

__all__ = [
    "averaging",
    "calibration",
    "continual",
    "decompose_merge",
    "geometry",
    "projected",
    "sparsified",
    "spectral",
    "subspace",
    "svc",
    "ties",
    "truncated",
]
