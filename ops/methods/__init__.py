"""Merge methods, one family a file; importing this package registers them all."""

from plait.ops.methods import averaging, calibration, geometry, sparsified, spectral, ties

__all__ = ["averaging", "calibration", "geometry", "sparsified", "spectral", "ties"]
