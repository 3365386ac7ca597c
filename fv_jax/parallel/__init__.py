"""Parallelism: device mesh, logical-axis sharding rules, sharded arrays, and several processes."""
