"""Basics that every package may import: array types, logical axes, configuration, errors, resizing, hardware data."""
