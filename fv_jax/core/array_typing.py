"""Shape- and dtype-checked signatures.

`@typed` checks jaxtyping annotations when a function is called, which under `jax.jit` means once per
trace and never at run time. Use it on public functions, never on pytree dataclasses.
"""

from beartype import beartype
from jaxtyping import Array, Float, Int, Key, jaxtyped

__all__ = ['Array', 'Float', 'Int', 'Key', 'typed']

typed = jaxtyped(typechecker=beartype)
