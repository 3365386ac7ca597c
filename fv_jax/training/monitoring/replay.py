"""Replays a training step with every operation checked, to find the first that makes a NaN or an infinity."""

import dataclasses
import traceback
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import checkify

from fv_jax.core.parallel_context import ParallelContext
from fv_jax.stages.noise import per_example_keys
from fv_jax.stages.protocol import Batch, Metrics, Stage
from fv_jax.training.state import ModelDef, Params


@dataclasses.dataclass(frozen=True)
class Replay:
    """The result of a replay.

    Attributes:
      metrics: loss, metrics and gradient norms of the step, by name.
      non_finite_inputs: one line for each array of the batch and the parameters that is not finite.
      first_non_finite: the first operation that made a NaN or an infinity, with its place in the source; None if none.
    """

    metrics: dict[str, float]
    non_finite_inputs: list[str]
    first_non_finite: str | None

    @property
    def is_finite(self) -> bool:
        """Whether the inputs, the loss and the gradient are all finite."""
        return not self.non_finite_inputs and _is_finite(self.metrics)


def replay(
    stage: Stage,
    network: ModelDef,
    params: Params,
    batch: Batch,
    key: jax.Array,
    step: int,
    num_steps: int,
    context: ParallelContext,
) -> Replay:
    """Computes loss and gradient as `train_step` does, and looks for the first operation with a non-finite result.

    Args:
      stage: samples noise and times, and computes the loss.
      network: the structure of the stage's network.
      params: {'trainable', 'frozen'}, and 'average' where the stage's loss takes it.
      batch: encoded.
      key: what the noise of the run's examples is folded from.
      step: number of steps before this one.
      num_steps: of the run.
      context: parallel context of the network.
    """
    keys_B = per_example_keys(key, step, next(iter(batch.values())).shape[0])

    average = network.model(params['average'], params['frozen']) if stage.takes_average else None

    def loss_fn(trainable: Params) -> tuple[jax.Array, Metrics]:
        noised = stage.sample_noise_and_time(batch, keys_B, jnp.asarray(step / num_steps, jnp.float32))
        return stage.loss(network.model(trainable, params['frozen']), noised, context=context, average=average)

    def step_fn(trainable: Params) -> Metrics:
        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(trainable)
        groups = {f'grad_norm/{name}': optax.tree.norm(part) for name, part in grads.items()}
        return {'loss': loss, **metrics, 'grad_norm': optax.tree.norm(grads), **groups}

    inputs = [*_not_finite('batch', batch), *_not_finite('parameters', params)]
    error, found = jax.jit(checkify.checkify(step_fn, errors=checkify.nan_checks))(params['trainable'])
    metrics = {name: float(value) for name, value in found.items()}
    first = _nan_location(error)
    if first is None and not _is_finite(metrics):
        first = _first_infinity(step_fn, params['trainable'])
    return Replay(metrics, inputs, first)


def _is_finite(metrics: dict[str, float]) -> bool:
    return bool(np.isfinite([metrics['loss'], metrics['grad_norm']]).all())


def _not_finite(name: str, tree: Any) -> list[str]:
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and (count := int(np.sum(~np.isfinite(np.asarray(leaf))))):
            found.append(f'{name}{jax.tree_util.keystr(path)}: {count} of {leaf.size} values are not finite')
    return found


def _nan_location(error: checkify.Error) -> str | None:
    """Returns what `checkify` found, with the innermost source line outside of installed packages; None if nothing."""
    try:
        checkify.check_error(error)
    except checkify.JaxRuntimeError as found:
        chain = [found, found.__cause__, found.__context__]
        frames = [frame for link in chain if link is not None for frame in traceback.extract_tb(link.__traceback__)]
        ours = [f for f in frames if 'site-packages' not in f.filename and f.filename != __file__]
        text = ' '.join(str(found).split())
        return f'{text} at {ours[-1].filename}:{ours[-1].lineno} ({ours[-1].name}): {ours[-1].line}' if ours else text
    return None


def _first_infinity(step_fn: Any, trainable: Params) -> str:
    """Finds the first operation with an infinite result by running them one by one: `checkify` finds NaNs only."""
    with jax.disable_jit(), jax.debug_infs(True):
        try:
            step_fn(trainable)
        except FloatingPointError as error:
            return ' '.join(str(error).split())
    return 'an infinity that running the operations one by one does not reproduce'
