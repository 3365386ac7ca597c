"""Saving and restoring with Orbax."""
