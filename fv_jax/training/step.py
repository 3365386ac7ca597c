"""One training step: loss, gradient of the trainable parameters, optimizer update, moving average.

The update is skipped where the loss or the gradient is not finite. A batch may be processed in m microbatches, one
after the other (gradient accumulation). With g_j and L_j a microbatch's gradient and loss,

    g = 1/m sum_j g_j,    L = 1/m sum_j L_j                                                    (1)

which are those of the whole batch, since all noise and times of a step are sampled for the whole batch before it is
split. The sum is float32 and sharded like the parameters; it exists once, beside the gradient being computed.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fv_jax.core.parallel_context import ParallelContext
from fv_jax.stages.noise import heldout_keys, per_example_keys
from fv_jax.stages.protocol import Batch, Metrics, NoisedBatch, Stage, evaluation_loss, evaluation_noise
from fv_jax.training.optimizer import OptimConfig, learning_rates, update_ema
from fv_jax.training.state import ModelDef, Params, TrainState

Tree = Any
Step = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]
Evaluate = Callable[[Params, Batch, jax.Array, jax.Array], Metrics]
Sample = Callable[[Params, Batch, jax.Array, jax.Array], dict[str, jax.Array]]


def _batch_size(batch: Batch) -> int:
    return next(iter(batch.values())).shape[0]


def gradients(
    stage: Stage, network: ModelDef, context: ParallelContext, shardings: TrainState | None, microbatches: int
) -> Callable[[TrainState, NoisedBatch], Tree]:
    """Returns (state, noised) -> ((loss, metrics), gradient of the trainable parameters), by (1) for microbatches.

    The arguments are those of `train_step`.
    """

    def compute(state: TrainState, noised: NoisedBatch) -> Tree:
        average = network.model(state.ema, state.frozen) if stage.takes_average else None

        def loss_fn(trainable: Params) -> tuple[jax.Array, Metrics]:
            return stage.loss(network.model(trainable, state.frozen), noised, context=context, average=average)

        return jax.value_and_grad(loss_fn, has_aux=True)(state.trainable)

    def constrain(found: Tree) -> Tree:
        values, grads = found
        return values, grads if shardings is None else jax.lax.with_sharding_constraint(grads, shardings.trainable)

    def accumulate(state: TrainState, noised: NoisedBatch) -> Tree:
        parts = split_microbatches(noised, microbatches)
        shapes = jax.eval_shape(compute, state, jax.tree.map(lambda x: x[0], parts))

        def add(total: Tree, part: NoisedBatch) -> tuple[Tree, None]:
            found = compute(state, part)
            return constrain(jax.tree.map(lambda t, x: t + x.astype(jnp.float32) / microbatches, total, found)), None

        zeros = constrain(jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes))
        total, _ = jax.lax.scan(add, zeros, parts)
        return jax.tree.map(lambda x, like: x.astype(like.dtype), total, shapes)

    return compute if microbatches == 1 else accumulate


def split_microbatches(noised: NoisedBatch, count: int) -> NoisedBatch:
    """Splits a batch into `count` microbatches: (B, ...) -> (count, B / count, ...).

    Each takes every `count`-th example. Examples that are neighbours on a chip go to different microbatches, so that no
    example moves between chips, and each microbatch has times t from the whole batch.
    """
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0), noised)


def _group_norms(name: str, tree: Params) -> Metrics:
    """Returns the norm of each part of a network, by attribute name; nothing for a network of one part."""
    return {f'{name}/{group}': optax.tree.norm(part) for group, part in tree.items()} if len(tree) > 1 else {}


def _select(good: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)


def _updates_done(opt_state: Any) -> jax.Array:
    """Returns the optimizer's own count, which its learning rate follows: skipped updates do not count."""
    return optax.tree.get_all_with_path(opt_state, 'count')[0][1]


def train_step(
    stage: Stage,
    network: ModelDef,
    tx: optax.GradientTransformation,
    optim: OptimConfig,
    num_steps: int,
    context: ParallelContext,
    shardings: TrainState | None = None,
    microbatches: int = 1,
) -> Step:
    """Returns the jitted step (state, batch, key) -> (state, metrics). It donates the given state.

    The keys of the examples are folded from (step, index in the global batch), so one `key` serves the whole run.

    Where the loss or the gradient is not finite, only the step number changes: parameters, optimizer state and moving
    average stay bit for bit, and `update_norm` is 0. The device decides it, before any parameter is written.

    Args:
      tx, optim: the optimizer, and its configuration for the learning rate and the decay of the moving average.
      num_steps: length of the run, for the schedule.
      shardings: of the state (`state_shardings`); None on one device.
      microbatches: number of parts that a batch is processed in; it divides the batch of each shard.

    Returns:
      The step. Its metrics are scalars: `loss`, the stage's own (the mean over microbatches), `grad_norm` before
      clipping, `update_norm` of the change of the parameters, `param_norm`, these three also as `grad_norm/GROUP` for
      each part of the network, and `learning_rate`.
    """
    rates = learning_rates(optim, num_steps)
    gradients_of = gradients(stage, network, context, shardings, microbatches)

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        keys_B = per_example_keys(key, state.step, _batch_size(batch))
        noised = stage.sample_noise_and_time(batch, keys_B, state.step / num_steps)
        (loss, metrics), grads = gradients_of(state, noised)
        grad_norm = optax.tree.norm(grads)
        good = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        # The optimizer runs in any case; what a non-finite gradient makes of it is discarded below.
        updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
        trainable = _select(good, optax.apply_updates(state.trainable, updates), state.trainable)
        updates = jax.tree.map(jnp.subtract, trainable, state.trainable)  # what arrived, after rounding
        ema = state.ema
        if ema is not None:
            ema = _select(good, update_ema(ema, trainable, optim.ema_decay, state.step), ema)
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
        opt_state = _select(good, opt_state, state.opt_state)
        return TrainState(state.step + 1, trainable, state.frozen, opt_state, ema), metrics

    # Explicit, not left to the compiler: the returned state is the next input, and donation needs equal shardings.
    return jax.jit(step, donate_argnums=0, out_shardings=None if shardings is None else (shardings, None))


def eval_step(stage: Stage, network: ModelDef, context: ParallelContext) -> Evaluate:
    """Returns the jitted (inference params, batch, key, clips_B) -> metrics.

    The same key and clip (`HeldoutBatch.clips`) give the same noise and time at every evaluation, on every mesh.
    """

    @jax.jit
    def step(params: Params, batch: Batch, key: jax.Array, clips_B: jax.Array) -> Metrics:
        noised = evaluation_noise(stage, batch, heldout_keys(key, clips_B))
        loss, metrics = evaluation_loss(stage, network.model(**params), noised, context=context)
        return {'loss': loss, **metrics}

    return step


def sample_step(stage: Stage, network: ModelDef, context: ParallelContext) -> Sample:
    """Returns the jitted (inference params, batch, key, clips_B) -> what the stage samples. See `eval_step`."""

    @jax.jit
    def step(params: Params, batch: Batch, key: jax.Array, clips_B: jax.Array) -> dict[str, jax.Array]:
        return stage.sample(network.model(**params), batch, heldout_keys(key, clips_B), context=context)

    return step
