"""The joint sequence of text and video tokens: what stands where.

Dimensions: M joint tokens: text first, then video, then padding where `rules` ask for it.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fv_jax.core.parallel_context import Rules
from fv_jax.kernels.attention import SINGLE_DEVICE
from fv_jax.models.rope import Rope


class Layout(NamedTuple):
    """`num_text` tokens of text, one for each patch of the `grid` (frames, rows, columns), padding up to `length`."""

    num_text: int
    grid: tuple[int, int, int]
    length: int

    @classmethod
    def of(cls, num_text: int, grid: tuple[int, int, int], rules: Rules = SINGLE_DEVICE) -> 'Layout':
        return cls(num_text, grid, rules.padded(num_text + math.prod(grid)))

    @property
    def num_tokens(self) -> int:
        """Without padding."""
        return self.num_text + math.prod(self.grid)

    @property
    def num_padding(self) -> int:
        return self.length - self.num_tokens

    @property
    def is_text(self) -> jax.Array:
        """(1, M, 1)."""
        return (jnp.arange(self.length) < self.num_text)[None, :, None]


class Tokens(NamedTuple):
    """What a block must know of the sequence: which tokens are text (1, M, 1), everybody's position, and how many are
    no padding.
    """

    is_text_BMD: jax.Array
    rope: Rope
    count: int
