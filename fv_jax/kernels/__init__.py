"""Attention: one entry per backend, all held to the same float32 reference."""
