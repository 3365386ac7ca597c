"""The parallel context: what a network needs to know of the hardware, as three functions passed to it at call time.

Model code is single-device code. It names the axes of its activations and calls `context.constrain`; it computes
queries, keys and values and calls `context.attention`; it pads its sequence to `context.padded_length`. On one device
the first and the last are the identity; `parallel/sharding.py` makes the context of a mesh.
"""

import dataclasses
from collections.abc import Callable

import jax

Constrain = Callable[[jax.Array, tuple[str | None, ...]], jax.Array]
Attention = Callable[[jax.Array, jax.Array, jax.Array, int], jax.Array]
PaddedLength = Callable[[int], int]


def _unconstrained(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    del axes
    return x


def _unpadded(num_tokens: int) -> int:
    return num_tokens


@dataclasses.dataclass(frozen=True)
class ParallelContext:
    """Attention, sharding constraints and padding for a network.

    Attributes:
      attention: (q_BMNK, k_BMNK, v_BMNK, num_tokens) -> BMNK, softmax over the first num_tokens keys, scale 1/sqrt(K).
        Its output for the queries after them is arbitrary.
      constrain: (activation, its logical axis names) -> the same activation with a sharding constraint.
      padded_length: number of tokens -> length of the sequence with the padding at its end.
    """

    attention: Attention
    constrain: Constrain = _unconstrained
    padded_length: PaddedLength = _unpadded
