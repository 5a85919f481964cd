"""Merge methods, one family a file."""
