"""Diffusion as mathematics on arrays: noise schedules, the linear flow, time grids, guidance, samplers. No networks."""
