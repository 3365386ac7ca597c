"""Layout of the joint sequence of text and video tokens.

Dimensions: M joint tokens: text first, then video, then padding where `context` pads the sequence.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fv_jax.core.parallel_context import ParallelContext
from fv_jax.kernels.attention import SINGLE_DEVICE
from fv_jax.models.rope import Rope


class SequenceLayout(NamedTuple):
    """Where the tokens of the joint sequence are.

    Attributes:
      num_text: text tokens, which come first.
      grid: (frames, rows, columns) of patches, one video token each.
      length: M, of the whole sequence with padding at its end.
    """

    num_text: int
    grid: tuple[int, int, int]
    length: int

    @classmethod
    def from_grid(
        cls, num_text: int, grid: tuple[int, int, int], context: ParallelContext = SINGLE_DEVICE
    ) -> 'SequenceLayout':
        """Computes the layout; `context` pads the sequence to a length that can be sharded."""
        return cls(num_text, grid, context.padded_length(num_text + math.prod(grid)))

    @property
    def num_tokens(self) -> int:
        """The number of tokens without padding."""
        return self.num_text + math.prod(self.grid)

    @property
    def num_padding(self) -> int:
        return self.length - self.num_tokens

    @property
    def is_text(self) -> jax.Array:
        """A mask of the text tokens, (1, M, 1) bool."""
        return (jnp.arange(self.length) < self.num_text)[None, :, None]


class TokenInfo(NamedTuple):
    """The part of the sequence layout that a block reads.

    Attributes:
      is_text_1M1: which tokens are text, (1, M, 1) bool.
      rope: the tokens' rotary positions.
      count: tokens that are not padding.
    """

    is_text_1M1: jax.Array
    rope: Rope
    count: int
