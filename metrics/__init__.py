"""Metrics: `evaluate` modules that also load by path from any directory, and `python -m metrics.score`."""
