"""A step run again, slowly, to see where its numbers stop being finite."""

import dataclasses
import traceback
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import checkify

from fv_jax.core.parallel_context import Rules
from fv_jax.stages.protocol import Batch, Metrics, Stage, row_keys
from fv_jax.training.state import Network, Params


@dataclasses.dataclass(frozen=True)
class Replay:
    """figures: loss, metrics and gradient norms of the step, by name. inputs: what was not finite before anything was
    computed, a line each. where: the first operation that made a NaN or an infinity, with its place in the source, or
    None.
    """

    figures: dict[str, float]
    inputs: list[str]
    where: str | None

    @property
    def finite(self) -> bool:
        return not self.inputs and all(np.isfinite([self.figures['loss'], self.figures['grad_norm']]))


def replay(
    stage: Stage, network: Network, params: Params, batch: Batch, key: jax.Array, step: int, rules: Rules
) -> Replay:
    """Loss and gradient of an encoded batch, as `train_step` takes them at a state whose number is `step`, checked
    operation by operation.

    params: {'trainable', 'frozen'}.
    """
    keys_B = row_keys(key, step, next(iter(batch.values())).shape[0])

    def loss_fn(trainable: Params) -> tuple[jax.Array, Metrics]:
        draw = stage.draw(batch, keys_B)
        return stage.loss_of(network.model(trainable, params['frozen']), draw, rules=rules)

    def step_fn(trainable: Params) -> Metrics:
        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(trainable)
        groups = {f'grad_norm/{name}': optax.tree.norm(part) for name, part in grads.items()}
        return {'loss': loss, **metrics, 'grad_norm': optax.tree.norm(grads), **groups}

    inputs = [*_not_finite('batch', batch), *_not_finite('parameters', params)]
    error, found = jax.jit(checkify.checkify(step_fn, errors=checkify.nan_checks))(params['trainable'])
    figures = {name: float(value) for name, value in found.items()}
    where = _place(error)
    if where is None and not np.isfinite([figures['loss'], figures['grad_norm']]).all():
        where = _first_infinity(step_fn, params['trainable'])
    return Replay(figures, inputs, where)


def _not_finite(name: str, tree: Any) -> list[str]:
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and (count := int(np.sum(~np.isfinite(np.asarray(leaf))))):
            found.append(f'{name}{jax.tree_util.keystr(path)}: {count} of {leaf.size} numbers are not finite')
    return found


def _place(error: checkify.Error) -> str | None:
    """What `checkify` found, and the innermost line of this package, or of its caller, that it comes from."""
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
    """By running one operation after the other: `checkify` looks for NaNs alone."""
    with jax.disable_jit(), jax.debug_infs(True):
        try:
            step_fn(trainable)
        except FloatingPointError as error:
            return ' '.join(str(error).split())
    return 'an infinity, of which nothing more is known'
