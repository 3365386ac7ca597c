"""Clips in ArrayRecord shards: records, provenance, and the policy for bad records."""
