"""How a network meets the hardware: three functions, handed to it at call time.

Model code is single-device code. It names its activations' axes and calls `rules.constrain`; it computes queries,
keys and values and calls `rules.attention`; it makes its sequence as long as `rules.padded` says. On one device the
first and the last are the identity; `parallel/` builds the other kind.
"""

import dataclasses
from collections.abc import Callable

import jax

Constrain = Callable[[jax.Array, tuple[str | None, ...]], jax.Array]
Attention = Callable[[jax.Array, jax.Array, jax.Array, int], jax.Array]
Padded = Callable[[int], int]


def _unconstrained(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    del axes
    return x


def _unpadded(num_tokens: int) -> int:
    return num_tokens


@dataclasses.dataclass(frozen=True)
class Rules:
    """attention: (q_BMNK, k_BMNK, v_BMNK, num_tokens) -> BMNK, softmax over the first num_tokens keys, scale 1/sqrt(K).
      What it gives for the queries after them means nothing.
    constrain: (activation, its logical axis names) -> the same activation, placed.
    padded: how many tokens a sequence of so many is to have, padding at its end included.
    """

    attention: Attention
    constrain: Constrain = _unconstrained
    padded: Padded = _unpadded
