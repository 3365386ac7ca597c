"""How a network meets the hardware: two functions, handed to it at call time.

Model code is single-device code. It names its activations' axes and calls `rules.constrain`; it
computes queries, keys and values and calls `rules.attention`. On one device the first is the
identity; `parallel/` builds the other kind.
"""

import dataclasses
from collections.abc import Callable

import jax

Constrain = Callable[[jax.Array, tuple[str | None, ...]], jax.Array]
Attention = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def _unconstrained(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    del axes
    return x


@dataclasses.dataclass(frozen=True)
class Rules:
    """attention: (q_BMNK, k_BMNK, v_BMNK) -> BMNK, softmax over all M keys, scale 1/sqrt(K), no mask.
    constrain: (activation, its logical axis names) -> the same activation, placed.
    """

    attention: Attention
    constrain: Constrain = _unconstrained
