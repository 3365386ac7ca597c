"""What watches a training run: metrics, goodput, anomalies, collapse, stalls, profiles."""
