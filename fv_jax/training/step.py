"""One update: loss of a batch, gradient of the trainable part, AdamW, average. None where they are not finite.

A batch may be taken in m microbatches, one after the other. With g_j and L_j a microbatch's gradient and loss,

    g = 1/m sum_j g_j,    L = 1/m sum_j L_j                                                    (1)

which are the whole batch's, for all of a step's randomness is drawn for the whole batch before it is split. There is
one float32 sum, where the parameters are, beside the gradient that is being computed.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fv_jax.core.parallel_context import Rules
from fv_jax.stages.protocol import Batch, Draw, Metrics, Stage, row_keys
from fv_jax.training.optimizer import OptimConfig, learning_rates, update_ema
from fv_jax.training.state import Network, Params, TrainState

Tree = Any
Step = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]
Evaluate = Callable[[Params, Batch, jax.Array, int], Metrics]
Sample = Callable[[Params, Batch, jax.Array], dict[str, jax.Array]]


def _rows(batch: Batch) -> int:
    return next(iter(batch.values())).shape[0]


def gradients(
    stage: Stage, network: Network, rules: Rules, shardings: TrainState | None, microbatches: int
) -> Callable[[TrainState, Draw], Tree]:
    """(state, draw) -> ((loss, metrics), gradient of the trainable part), by (1) where there are microbatches.

    The arguments are those of `train_step`.
    """

    def of(state: TrainState, draw: Draw) -> Tree:
        def loss_fn(trainable: Params) -> tuple[jax.Array, Metrics]:
            return stage.loss_of(network.model(trainable, state.frozen), draw, rules=rules)

        return jax.value_and_grad(loss_fn, has_aux=True)(state.trainable)

    def placed(found: Tree) -> Tree:
        values, grads = found
        return values, grads if shardings is None else jax.lax.with_sharding_constraint(grads, shardings.trainable)

    def accumulated(state: TrainState, draw: Draw) -> Tree:
        parts = split(draw, microbatches)
        shapes = jax.eval_shape(of, state, jax.tree.map(lambda x: x[0], parts))

        def add(total: Tree, part: Draw) -> tuple[Tree, None]:
            found = of(state, part)
            return placed(jax.tree.map(lambda t, x: t + x.astype(jnp.float32) / microbatches, total, found)), None

        zeros = placed(jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes))
        total, _ = jax.lax.scan(add, zeros, parts)
        return jax.tree.map(lambda x, like: x.astype(like.dtype), total, shapes)

    return of if microbatches == 1 else accumulated


def split(draw: Draw, count: int) -> Draw:
    """Every `count`-th row for each of so many microbatches: (B, ...) -> (count, B / count, ...). Rows that are
    neighbours on a chip go to different microbatches, so that none has to travel, and each sees all of the batch's t.
    """
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0), draw)


def _group_norms(name: str, tree: Params) -> Metrics:
    """The norm of each part of a network, by the names that its attributes have."""
    return {f'{name}/{group}': optax.tree.norm(part) for group, part in tree.items()} if len(tree) > 1 else {}


def _chosen(good: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)


def _updates_done(opt_state: Any) -> jax.Array:
    """How many there were, by the optimizer's own count, which its rate follows: fewer than steps once one was bad."""
    return optax.tree.get_all_with_path(opt_state, 'count')[0][1]


def train_step(
    stage: Stage,
    network: Network,
    tx: optax.GradientTransformation,
    optim: OptimConfig,
    num_steps: int,
    rules: Rules,
    shardings: TrainState | None = None,
    microbatches: int = 1,
) -> Step:
    """(state, batch, key) -> (state, metrics), jitted; the given state's memory is reused.

    shardings: where the state lives (`state_shardings`); None on one device.
    microbatches: that a batch is taken in; they divide the rows of every shard of it.

    The keys of the rows are folded from (step, global row), so the same `key` serves the whole run.
    Metrics are scalars: `loss`, the stage's own (of microbatches, their mean), `grad_norm` before clipping,
    `update_norm`, `param_norm`, each also as `grad_norm/GROUP` for the parts of the network, and `learning_rate`.

    Where the loss or the gradient is not finite, only the step's number changes: parameters, optimizer and average stay
    bit for bit, and `update_norm` is 0. That is decided on the device, before the first parameter is written.
    """
    rates = learning_rates(optim, num_steps)
    gradients_of = gradients(stage, network, rules, shardings, microbatches)

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        draw = stage.draw(batch, row_keys(key, state.step, _rows(batch)))
        (loss, metrics), grads = gradients_of(state, draw)
        grad_norm = optax.tree.norm(grads)
        good = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
        updates = jax.tree.map(lambda update: jnp.where(good, update, 0), updates)
        trainable = _chosen(good, optax.apply_updates(state.trainable, updates), state.trainable)
        ema = state.ema
        if ema is not None:
            ema = _chosen(good, update_ema(ema, trainable, optim.ema_decay, state.step), ema)
        metrics = {
            'loss': loss,
            **metrics,
            'grad_norm': grad_norm,
            'update_norm': optax.tree.norm(updates),
            'param_norm': optax.tree.norm(trainable),
            'learning_rate': rates(_updates_done(state.opt_state)),
            **_group_norms('grad_norm', grads),
            **_group_norms('update_norm', updates),
            **_group_norms('param_norm', trainable),
        }
        opt_state = _chosen(good, opt_state, state.opt_state)
        return TrainState(state.step + 1, trainable, state.frozen, opt_state, ema), metrics

    # Said, not left to the compiler: what comes out must be what goes in.
    return jax.jit(step, donate_argnums=0, out_shardings=None if shardings is None else (shardings, None))


def eval_step(stage: Stage, network: Network, rules: Rules) -> Evaluate:
    """(inference params, batch, key, index of the batch) -> metrics, jitted. The same key and index give the same
    noise at every evaluation.
    """

    @jax.jit
    def step(params: Params, batch: Batch, key: jax.Array, index: jax.Array) -> Metrics:
        draw = stage.draw(batch, row_keys(key, index, _rows(batch)))
        loss, metrics = stage.loss_of(network.model(**params), draw, rules=rules)
        return {'loss': loss, **metrics}

    return step


def sample_step(stage: Stage, network: Network, rules: Rules) -> Sample:
    """(inference params, batch, key) -> what the stage samples, jitted."""
    return jax.jit(lambda params, batch, key: stage.sample(network.model(**params), batch, key, rules=rules))
