"""A stage of a few numbers: a linear map, part of which is frozen, fitted to noisy lines."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.nnx.filterlib import Filter

from fv_jax.core.parallel_context import ParallelContext
from fv_jax.stages.noise import per_example_normal
from fv_jax.stages.protocol import Batch, Metrics
from fv_jax.training import optimizer, state

CONTEXT = ParallelContext(attention=lambda q, k, v: v)
ROWS, IN, OUT = 4, 3, 2


class Line(nnx.Module):
    """y = x kernel + bias + x offset; the offset is not to learn."""

    def __init__(self, rngs: nnx.Rngs):
        self.head = nnx.Dict(kernel=nnx.Param(jnp.zeros((IN, OUT))), bias=nnx.Param(jnp.zeros(OUT)))
        self.offset = nnx.Param(rngs.params.normal((IN, OUT)))

    def __call__(self, x_BD: jax.Array) -> jax.Array:
        head = self.head
        return x_BD @ (head['kernel'][...] + self.offset[...]) + head['bias'][...][None]


@dataclasses.dataclass(frozen=True)
class Toy:
    """A linear stage. The `bad` of a batch is added to its loss; a `slope` of 0 makes only the gradient not finite.

    Attributes:
      noise: standard deviation of the noise of the target, drawn from the keys of the examples.
    """

    noise: float = 0.0
    takes_average: ClassVar[bool] = False

    def init(self, rngs: nnx.Rngs) -> Line:
        return Line(rngs)

    def trainable(self) -> Filter:
        return nnx.PathContains('head')

    def adapt_initial_params(self, model: nnx.Module) -> None:
        pass

    def encode(self, batch: Batch) -> Batch:
        return batch | {'encoded': np.ones(len(batch['x']), np.float32)}

    def sample_noise_and_time(self, batch: Batch, keys_B: jax.Array, progress: jax.Array | None = None) -> Batch:
        return batch | {'noise': per_example_normal(keys_B, batch['y'].shape)}

    def loss(
        self, model: Line, noised: Batch, *, context: ParallelContext, average: Line | None = None
    ) -> tuple[jax.Array, Metrics]:
        error = model(noised['x']) - noised['y'] - self.noise * noised['noise']
        # The square root of zero has a finite value and no finite slope.
        slope = jnp.sqrt(jnp.mean(noised['slope']) * jnp.sum((1 + model.head['bias'][...]) ** 2))
        loss = jnp.mean(error**2) + jnp.mean(noised['bad']) + slope - slope
        return loss, {'noise': jnp.mean(noised['noise']), 'encoded': jnp.mean(noised['encoded'])}

    def sample(self, model: Line, batch: Batch, keys_B: jax.Array, *, context: ParallelContext) -> dict[str, jax.Array]:
        return {'y': model(batch['x'])}


def batch(step: int = 0, *, bad: float = 0.0, slope: float = 1.0) -> Batch:
    rng = np.random.default_rng(step)
    x = rng.standard_normal((ROWS, IN)).astype(np.float32)
    y = x @ np.float32([[1, 2], [3, 4], [5, 6]]) + np.float32([7, 8])
    return {'x': x, 'y': y, 'bad': np.full(ROWS, bad, np.float32), 'slope': np.full(ROWS, slope, np.float32)}


def new(
    stage: Toy, config: optimizer.OptimConfig, num_steps: int = 100
) -> tuple[state.ModelDef, state.TrainState, optax.GradientTransformation]:
    network, tx = state.ModelDef.from_stage(stage), optimizer.make_optimizer(config, num_steps)
    return network, state.init_train_state(network, stage, tx, jax.random.key(0), ema=config.ema_decay > 0), tx


def copy_tree(tree):
    """On the host: what is donated later cannot be read any more."""
    return jax.tree.map(lambda x: np.array(x), tree)
