"""Clips in ArrayRecord shards: records, provenance, and what happens to bad ones."""
