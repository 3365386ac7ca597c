"""Attention kernels of each platform, context parallelism and the linear layer, tested against a float32 reference."""
