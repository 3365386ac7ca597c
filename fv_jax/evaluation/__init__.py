"""How a run is measured: metrics, held-out diagnostics and baselines."""
