"""What training changes, and the network put together again from it.

The state is plain nested dicts of arrays: jit dispatches them fast, Orbax stores them as they are. The
`Network` holds what does not change: the graph of modules and which of its variables learn.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from fv_jax.core.abstract_module import abstract
from fv_jax.parallel import sharding
from fv_jax.parallel.rules import Placement
from fv_jax.stages.protocol import Stage

Params = dict[str, Any]  # nested, of arrays


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """step: number of updates done, int32. frozen: variables that do not learn. ema: None when there is none."""

    step: jax.Array
    trainable: Params
    frozen: Params
    opt_state: Any
    ema: Params | None


@dataclasses.dataclass(frozen=True)
class Network:
    """A stage's network without its numbers."""

    graphdef: Any
    trainable: nnx.State
    frozen: nnx.State

    @classmethod
    def of(cls, stage: Stage) -> 'Network':
        """Traced, not allocated: shapes only."""
        model = abstract(stage.init)
        return cls(*nnx.split(model, stage.trainable(), ...))

    def model(self, trainable: Params, frozen: Params) -> nnx.Module:
        """The module with these numbers in it."""
        return nnx.merge(self.graphdef, _filled(self.trainable, trainable), _filled(self.frozen, frozen))

    def init(self, stage: Stage, key: jax.Array) -> tuple[Params, Params]:
        """New numbers: (trainable, frozen)."""
        return numbers_of(stage, stage.init(nnx.Rngs(key)))


def numbers_of(stage: Stage, model: nnx.Module) -> tuple[Params, Params]:
    """The numbers of a module of the stage's kind: (trainable, frozen)."""
    _, trainable, frozen = nnx.split(model, stage.trainable(), ...)
    return _strong(nnx.to_pure_dict(trainable)), _strong(nnx.to_pure_dict(frozen))


def _strong(params: Params) -> Params:
    """Without JAX's weak types, which an initialiser may leave and no step returns: each would be compiled for."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), params)


def _filled(template: nnx.State, params: Params) -> nnx.State:
    state = jax.tree.map(lambda leaf: leaf, template)  # a copy: replacing works in place
    nnx.replace_by_pure_dict(state, params)
    return state


def new_state(
    network: Network, stage: Stage, tx: optax.GradientTransformation, key: jax.Array, *, ema: bool
) -> TrainState:
    """Step 0."""
    trainable, frozen = network.init(stage, key)
    return state_of(trainable, frozen, tx, ema=ema)


def state_of(trainable: Params, frozen: Params, tx: optax.GradientTransformation, *, ema: bool) -> TrainState:
    """Step 0 from given numbers."""
    # A copy: the step donates both, and one buffer cannot be given away twice.
    average = jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), trainable) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), trainable, frozen, tx.init(trainable), average)


def state_shardings(
    network: Network, tx: optax.GradientTransformation, placement: Placement, *, ema: bool
) -> TrainState:
    """Where each part of a state lives, in place of the parts. Raises ConfigError naming what cannot be split."""
    parts = network.trainable, network.frozen
    trainable, frozen = (sharding.parameter_shardings(placement, part) for part in parts)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), nnx.to_pure_dict(network.trainable))
    opt_state = sharding.like_parameters(
        jax.eval_shape(tx.init, shapes), shapes, trainable, otherwise=placement.replicated
    )
    return TrainState(placement.replicated, trainable, frozen, opt_state, trainable if ema else None)


def inference_params(state: TrainState) -> Params:
    """What sampling uses: the average where there is one. Trainable and frozen variables apart."""
    return {'trainable': state.trainable if state.ema is None else state.ema, 'frozen': state.frozen}


def to_items(state: TrainState) -> dict[str, Any]:
    """The arrays of a checkpoint: 'state' and 'params'; the average and the frozen variables are in 'params'."""
    rest = {'step': state.step, 'trainable': state.trainable, 'opt_state': state.opt_state}
    return {'state': rest, 'params': inference_params(state)}


def from_items(items: dict[str, Any], *, ema: bool) -> TrainState:
    """The inverse of `to_items`."""
    params = items['params']
    return TrainState(**items['state'], frozen=params['frozen'], ema=params['trainable'] if ema else None)
