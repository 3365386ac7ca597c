"""The train state, and the conversion between it and Flax modules.

The state is plain nested dicts of arrays: jit dispatches them fast, Orbax stores them as they are. The `ModelDef` holds
what does not change during training: the graph of modules, and which of its variables are trainable.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from fv_jax.core.abstract_module import abstract_module
from fv_jax.parallel import sharding
from fv_jax.parallel.rules import Partitioner
from fv_jax.stages.protocol import Stage

Params = dict[str, Any]  # nested, of arrays


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """Everything that a step reads and writes.

    Attributes:
      step: number of steps done, int32; includes those whose update was skipped.
      trainable, frozen: the parameters, as nested dicts of arrays.
      opt_state: of Optax.
      ema: exponential moving average of `trainable` in float32; None where the run keeps none.
    """

    step: jax.Array
    trainable: Params
    frozen: Params
    opt_state: Any
    ema: Params | None


@dataclasses.dataclass(frozen=True)
class ModelDef:
    """The structure of a stage's network: graph definition, and abstract state with shapes and dtypes alone.

    Attributes:
      graphdef: of `nnx.split`.
      trainable, frozen: the states, with ShapeDtypeStructs as leaves.
    """

    graphdef: Any
    trainable: nnx.State
    frozen: nnx.State

    @classmethod
    def from_stage(cls, stage: Stage) -> 'ModelDef':
        """Traces the network of a stage without allocating memory."""
        model = abstract_module(stage.init)
        return cls(*nnx.split(model, stage.trainable(), ...))

    def model(self, trainable: Params, frozen: Params) -> nnx.Module:
        """Returns the module with these parameters."""
        return nnx.merge(self.graphdef, _fill(self.trainable, trainable), _fill(self.frozen, frozen))

    def init(self, stage: Stage, key: jax.Array) -> tuple[Params, Params]:
        """Initializes the parameters; returns (trainable, frozen)."""
        return split_params(stage, stage.init(nnx.Rngs(key)))


def split_params(stage: Stage, model: nnx.Module) -> tuple[Params, Params]:
    """Splits the parameters of a module of the stage's kind into (trainable, frozen)."""
    _, trainable, frozen = nnx.split(model, stage.trainable(), ...)
    return _without_weak_types(nnx.to_pure_dict(trainable)), _without_weak_types(nnx.to_pure_dict(frozen))


def _without_weak_types(params: Params) -> Params:
    """Removes JAX's weak types, which initializers may leave and no step returns: the step would be compiled twice."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), params)


def _fill(template: nnx.State, params: Params) -> nnx.State:
    state = jax.tree.map(lambda leaf: leaf, template)  # a copy: replacing works in place
    nnx.replace_by_pure_dict(state, params)
    return state


def init_train_state(
    network: ModelDef, stage: Stage, tx: optax.GradientTransformation, key: jax.Array, *, ema: bool
) -> TrainState:
    """Returns the state at step 0 with newly initialized parameters. ema: whether to keep a moving average."""
    trainable, frozen = network.init(stage, key)
    return train_state_from_params(trainable, frozen, tx, ema=ema)


def train_state_from_params(
    trainable: Params, frozen: Params, tx: optax.GradientTransformation, *, ema: bool
) -> TrainState:
    """Makes the train state at step 0 with existing parameters.

    Args:
      trainable, frozen: the parameters.
      tx: the optimizer.
      ema: whether to keep a moving average.
    """
    # A copy: the step donates both, and one buffer cannot be donated twice.
    average = jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), trainable) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), trainable, frozen, tx.init(trainable), average)


def state_shardings(
    network: ModelDef, tx: optax.GradientTransformation, partitioner: Partitioner, *, ema: bool
) -> TrainState:
    """Returns the shardings of a train state, as a TrainState with shardings as leaves.

    Raises ConfigError naming a parameter that does not divide over the mesh.
    """
    parts = network.trainable, network.frozen
    trainable, frozen = (sharding.parameter_shardings(partitioner, part) for part in parts)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), nnx.to_pure_dict(network.trainable))
    opt_state = sharding.shardings_like_params(
        jax.eval_shape(tx.init, shapes), shapes, trainable, otherwise=partitioner.replicated
    )
    return TrainState(partitioner.replicated, trainable, frozen, opt_state, trainable if ema else None)


def inference_params(state: TrainState) -> Params:
    """Returns what sampling uses: {'trainable', 'frozen'}, with the moving average as `trainable` where it exists."""
    return {'trainable': state.trainable if state.ema is None else state.ema, 'frozen': state.frozen}


def to_items(state: TrainState) -> dict[str, Any]:
    """Returns the arrays of a checkpoint by item: 'params' has the moving average and the frozen parameters."""
    rest = {'step': state.step, 'trainable': state.trainable, 'opt_state': state.opt_state}
    return {'state': rest, 'params': inference_params(state)}


def from_items(items: dict[str, Any], *, ema: bool) -> TrainState:
    """Returns the train state of a checkpoint's items: the inverse of `to_items`."""
    params = items['params']
    return TrainState(**items['state'], frozen=params['frozen'], ema=params['trainable'] if ema else None)
