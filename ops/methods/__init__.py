"""Merge methods, one family a file; importing this package registers them all."""

from plait.ops.methods import (
    averaging,
    breadcrumbs,
    calibration,
    competition,
    disentangled,
    fusion,
    geometry,
    sparsified,
    spectral,
    stitching,
    ties,
    variance,
)

__all__ = [
    "averaging",
    "breadcrumbs",
    "calibration",
    "competition",
    "disentangled",
    "fusion",
    "geometry",
    "sparsified",
    "spectral",
    "stitching",
    "ties",
    "variance",
]
