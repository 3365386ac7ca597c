"""Evaluates runs: video metrics, held-out diagnostics and baselines."""
