"""plait merges neural-network checkpoints that do not fit in memory."""

__version__ = "0.1.0"
