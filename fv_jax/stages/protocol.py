"""What the training loop knows of a stage, and the random keys of a batch.

A batch is a dict of global arrays whose first dimension is the batch, B rows. Every random number of a row is drawn
from the row's own key, which is folded from (step, global row): the same row gets the same noise however the batch is
split over hosts, and a resumed run gets the noise that the run before it would have had.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.filterlib import Filter

from fv_jax.core.parallel_context import Rules

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Draw = Any  # a tree of arrays, the rows of the batch first
Encoder = Callable[[jax.Array], jax.Array]  # video_BFHWC in [-1, 1] -> the VAE's latents, not scaled


class Stage(Protocol):
    """One of the trained systems: its networks, its loss and its samples. It keeps no state of its own."""

    def init(self, rngs: nnx.Rngs) -> nnx.Module:
        """The network(s) being trained, with the frozen parts of them, if any, newly initialised."""
        ...

    def trainable(self) -> Filter:
        """The filter of the variables that learn; everything else stays as `init` or a checkpoint made it."""
        ...

    def start_from(self, model: nnx.Module) -> None:
        """Fits numbers that come from another run or a file (`init_from`) to this one, in place."""
        ...

    def encode(self, batch: Batch) -> Batch:
        """Runs the frozen encoders, which are executables of their own, before the step. A batch that already holds
        latents comes back as it is.
        """
        ...

    def draw(self, batch: Batch, keys_B: jax.Array) -> Draw:
        """Everything of a step that is random, or a matter of the whole batch, for every row.

        Args:
          batch: what `encode` returned.
          keys_B: one random key for each row of the global batch (`row_keys`).
        """
        ...

    def loss_of(self, model: nnx.Module, draw: Draw, *, rules: Rules) -> tuple[jax.Array, Metrics]:
        """The scalar float32 loss of a draw, or of some of its rows, and scalar metrics. The loss is a mean over rows.

        Args:
          model: what `init` returned.
          draw: what `draw` returned.
          rules: where activations live and who computes attention.
        """
        ...

    def sample(self, model: nnx.Module, batch: Batch, key: jax.Array, *, rules: Rules) -> dict[str, jax.Array]:
        """Named latents or videos of an encoded batch, for validation to look at and to measure."""
        ...


def row_keys(key: jax.Array, step: jax.Array | int, batch_size: int) -> jax.Array:
    """One key for each row of the global batch at a step, (B,)."""
    at_step = jax.random.fold_in(key, step)
    return jax.vmap(lambda row: jax.random.fold_in(at_step, row))(jnp.arange(batch_size))


def row_normal(keys_B: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Unit Gaussian noise of `shape` (B, ...), float32, each row from its own key."""
    # Drawn flat: the numbers are the same, and XLA compiles it seven times faster than counters of four dimensions.
    size = math.prod(shape[1:])
    return jax.vmap(lambda key: jax.random.normal(key, (size,), jnp.float32))(keys_B).reshape(shape)


def encode_videos(batch: Batch, latents_of: Mapping[str, str], encoder: Encoder | None) -> Batch:
    """The batch with its videos replaced by their latents; `latents_of` maps a video's name to its latents' name."""
    found = [name for name in latents_of if name in batch]
    if found and encoder is None:
        raise ValueError(f'the batch holds {", ".join(found)} and this stage was made without an encoder')
    rest = {name: value for name, value in batch.items() if name not in found}
    return rest | {latents_of[name]: encoder(batch[name]) for name in found}


def text_or_zeros(batch: Batch, shape_BLD: tuple[int, int, int]) -> jax.Array:
    """The batch's text embeddings `text_BLD`, float32, or all-zero ones of the shape."""
    return batch['text_BLD'].astype(jnp.float32) if 'text_BLD' in batch else jnp.zeros(shape_BLD, jnp.float32)
