"""Shape- and dtype-checked signatures.

`@typed` checks jaxtyping annotations when a function is called, which under `jax.jit` means once per
trace and never at run time. Use it on public functions, never on pytree dataclasses.

`Array` is what JAX computes with: its own arrays, traced or not, and NumPy's.
"""

import jax
import numpy as np
from beartype import beartype
from jaxtyping import Float, Int, jaxtyped

__all__ = ['Array', 'Float', 'Int', 'typed']

Array = jax.Array | np.ndarray

typed = jaxtyped(typechecker=beartype)
