"""Runs a plan inside a memory budget."""
