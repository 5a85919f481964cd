"""From a recipe and checkpoint headers to a plan."""
