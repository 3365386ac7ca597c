"""Diffusion as mathematics on arrays: noise tables, the linear flow, time grids, guidance, solvers. No networks."""
