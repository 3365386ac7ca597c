"""Checkpoints of runs: saved asynchronously with Orbax, verified by checksums, restored whole or tensor by tensor."""
