"""One training loop for every stage: state, step, optimizer, metrics."""
