"""A flow map: stage 2 without guidance in few evaluations, distilled from a stage 2 with guidance.

t is 1 at the source, 0 at the data, as in `super_res`. With w the guidance scale, phi the teacher, c the text, and
1 = t_0 > t_1 > ... > t_K = 0 the times of the teacher's sampler, its knots:

    v*(x, t)      = phi(x, t, null) + w (phi(x, t, c) - phi(x, t, null))                                   (1)
    x_r           = x_t - (t - r) u(x_t, t, r)                        t and r are knots                    (2)
    u_theta       = the network with an added embedding of t - r, the mean velocity of (2)                 (3)

Any subset of the knots is a grid of the sampler: one network serves 1 to K evaluations. It is trained on three kinds of
targets, of which each step draws one, by `jax.lax.switch`:

    velocity, r = t            v*(x_t, t)                                                                  (4)
    step, r the next knot      (x_t - x*_r) / (t - r), x*_r by a step of the teacher's sampler             (5)
    split, r any later knot    [(t - s) u_ema(x_t, t, s) + (s - r) u_ema(x_s, s, r)] / (t - r)             (6)
                               s a knot between them, x_s = x_t - (t - s) u_ema(x_t, t, s)

    loss = mean over all elements of (u_theta - target)^2, float32, without weights and without gradient of the target

(4) alone is guidance distillation (arXiv:2210.03142); (6) is SplitMeanFlow's identity (arXiv:2507.16884), and with
s = (t + r) / 2 the target of shortcut models (arXiv:2410.12557); u is the mean velocity of MeanFlow (arXiv:2505.13447).
None of them differentiates the network in time: the derivative of fused attention is not defined forwards.

Where the network has LoRA, the teacher is the network without it; otherwise its frozen parameters are stored beside
those that are trained.
"""

import dataclasses
import functools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.filterlib import Filter

from fv_jax.core.abstract_module import abstract_module
from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.core.parallel_context import ParallelContext
from fv_jax.diffusion import guidance, process, samplers, time_grids
from fv_jax.diffusion.samplers import MeanVelocityFn
from fv_jax.diffusion.time_grids import Times
from fv_jax.diffusion.trajectory import take_step
from fv_jax.models.dit import DiT, DiTConfig
from fv_jax.models.lora import LoRAParam
from fv_jax.stages.flow_map_targets import TARGETS, VELOCITY, FlowMapConfig, draw_intervals, draw_targets
from fv_jax.stages.protocol import (
    Batch,
    BatchSize,
    DiffusersPipeline,
    ExportedFunction,
    Metrics,
    OfficialStage,
    Program,
    TargetCost,
)
from fv_jax.stages.sampler_configs import EnhancementSamplerConfig
from fv_jax.stages.super_res import SuperRes, SuperResConfig, split_keys


class NoisedInterval(NamedTuple):
    """A noised batch of a flow map: a `NoisedPair`, and the knots, by index, and the kind of its targets.

    Kind and roll-out are those of the step: the same for all examples.
    """

    source_BFHWC: jax.Array
    data_BFHWC: jax.Array
    text_BLD: jax.Array
    t_B: jax.Array
    noise_augmentation_timestep_B: jax.Array
    start_B: jax.Array
    middle_B: jax.Array
    end_B: jax.Array
    kind_B: jax.Array
    rollout_B: jax.Array


@dataclasses.dataclass(frozen=True)
class FlowMap(SuperRes):
    """A flow map; see the module."""

    config: FlowMapConfig

    takes_average = True
    is_distilled = True
    official: ClassVar[OfficialStage | None] = None

    # --- the network and its teacher ---

    def init(self, rngs: nnx.Rngs) -> DiT:
        model = super().init(rngs)
        if self._stores_teacher:
            model.teacher = DiT(self.teacher.network, rngs=rngs)
        return model

    def trainable(self) -> Filter:
        if self.network.lora is None:
            return nnx.All(nnx.Param, nnx.Not(nnx.PathContains('teacher')))
        return nnx.Any(LoRAParam, nnx.PathContains('interval_embed'))

    def adapt_initial_params(self, model: DiT) -> None:
        """Makes the teacher of a network that is to be trained as a whole: a copy of the network as it is."""
        if self._stores_teacher:
            model.teacher = _part(model, self.teacher.network)

    @property
    def _stores_teacher(self) -> bool:
        return self.network.lora is None and self.config.has_teacher

    @property
    def teacher(self) -> SuperRes:
        """The stage of the teacher: its network, sampler and guidance."""
        config, network = self.config, self.network
        fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(SuperResConfig)}
        fields |= {
            'num_steps': config.num_knots * config.teacher_substeps,
            'sampler': config.teacher_sampler,
            'guidance_scale': config.teacher_guidance_scale,
        }
        stored = network.param_dtype if network.lora is not None else network.dtype
        network = dataclasses.replace(network, embed_interval=False, lora=None, param_dtype=stored)
        return SuperRes(SuperResConfig(**fields), network)

    def teacher_of(self, model: DiT) -> DiT:
        """Returns the teacher's network. Raises ValueError for a model without it."""
        if self.network.lora is not None:
            return _part(model, self.teacher.network, copy=False)
        require(self.config.has_teacher, 'this flow map was exported without its teacher, and cannot be trained')
        return model.teacher

    # --- batches ---

    def needs_text(self) -> bool:
        return not guidance.is_unguided(self.config.teacher_guidance_scale)

    def sample_noise_and_time(
        self, batch: Batch, keys_B: jax.Array, progress: jax.Array | None = None
    ) -> NoisedInterval:
        """Draws the kind of targets and the roll-out of the step, and of every example interval and noise.

        In an evaluation (`progress` None) all targets are velocities (4).
        """
        time_B, _, draw_B, index_B = split_keys(keys_B)
        kind, rollout = jnp.int32(VELOCITY), jnp.bool(False)
        if progress is not None:
            kind, rollout = draw_targets(self.config, draw_B[0])
        intervals = draw_intervals(self.config, time_B, draw_B, kind, progress)
        low, high = self.noise_augmentation_timesteps(latent_frames=batch['z_low_BFHWC'].shape[1])
        s_B = time_grids.stratified_integers(index_B, jax.random.fold_in(index_B[0], 1), low, high)
        noised = self.noise_at(batch, keys_B, self._knots(intervals.start_B).t, s_B)
        each = (jnp.broadcast_to(value, keys_B.shape) for value in (kind, rollout))
        return NoisedInterval(*noised, *intervals, *each)

    @property
    def knots(self) -> Times:
        """The times of the knots, K + 1 each."""
        config = self.config
        return time_grids.flow_time_grid(config.num_knots, config.shift, config.numerics)

    def _knots(self, index: jax.Array | np.ndarray) -> Times:
        return take_step(Times(*(jnp.asarray(part) for part in self.knots)), index)

    # --- the loss ---

    def loss(
        self, model: DiT, noised: NoisedInterval, *, context: ParallelContext, average: DiT | None = None
    ) -> tuple[jax.Array, Metrics]:
        """Computes the loss of a noised batch.

        Metrics: `target_kind`, the index into `TARGETS`; the mean of t - r; root mean squares of u and its target.
        """
        x_t = process.interpolate(noised.source_BFHWC, noised.data_BFHWC, noised.t_B)
        start, end = self._knots(noised.start_B), self._knots(noised.end_B)
        if self.config.rollout_share:
            x_t = jax.lax.cond(noised.rollout_B[0], lambda: self._rollout(average, noised, start, context), lambda: x_t)
        x_t = jax.lax.stop_gradient(x_t)
        target = jax.lax.stop_gradient(self._target(model, average, noised, x_t, context))
        predicted = self._mean_velocity_fn(model, noised, context)(x_t, start, end)
        loss = jnp.mean((predicted - target) ** 2)
        return loss, {
            'target_kind': noised.kind_B[0].astype(jnp.float32),
            'interval': jnp.mean(start.t - end.t),
            'velocity_norm': jnp.sqrt(jnp.mean(predicted**2)),
            'target_norm': jnp.sqrt(jnp.mean(target**2)),
        }

    def _target(
        self, model: DiT, average: DiT, noised: NoisedInterval, x_t: jax.Array, context: ParallelContext
    ) -> jax.Array:
        start, middle, end = (self._knots(i) for i in (noised.start_B, noised.middle_B, noised.end_B))
        averaged = self._mean_velocity_fn(average, noised, context)
        guided = self.teacher.velocity_fn(
            self.teacher_of(model), noised.text_BLD, noised.noise_augmentation_timestep_B, context=context
        )

        def velocity() -> jax.Array:
            return guided(x_t, start)

        def step() -> jax.Array:
            return (self._teacher_step(guided, x_t, noised.start_B) - x_t) / _like(end.t - start.t, x_t)

        def split() -> jax.Array:
            return split_target(averaged, x_t, start, middle, end)

        # A step of Euler's method is that of the velocity at its start.
        is_euler = self.config.teacher_sampler == 'euler' and self.config.teacher_substeps == 1
        branches = [velocity, velocity if is_euler else step, split]
        used = [i for i, share in enumerate(self.config.target_shares) if share or i == VELOCITY]
        different = list(dict.fromkeys(branches[i] for i in used))
        index = jnp.asarray([different.index(branches[i]) if i in used else 0 for i in range(3)])
        return jax.lax.switch(index[noised.kind_B[0]], different)

    def _teacher_step(self, guided: guidance.FlowFn, x: jax.Array, start_B: jax.Array) -> jax.Array:
        """Returns the state that the teacher's sampler makes at the next knot."""
        config, count = self.config, self.config.teacher_substeps
        times = time_grids.flow_time_grid(config.num_knots * count, config.shift, config.numerics)
        grid, take = Times(*(jnp.asarray(part) for part in times)), samplers.SAMPLERS[config.teacher_sampler].step
        for i in range(count):
            here, there = (
                take_step(grid, jnp.minimum(start_B * count + j, count * config.num_knots)) for j in (i, i + 1)
            )
            x = x + take(guided, x, here, there)
        return x

    def _rollout(self, average: DiT, noised: NoisedInterval, start: Times, context: ParallelContext) -> jax.Array:
        """Returns the state at the start of the interval that the averaged network makes of the source, in one jump."""
        source, begin = noised.source_BFHWC, self._knots(jnp.zeros_like(noised.start_B))
        u = self._mean_velocity_fn(average, noised, context)(source, begin, start)
        return source + _like(start.t - begin.t, source) * u

    def _mean_velocity_fn(self, model: DiT, noised: NoisedInterval, context: ParallelContext) -> MeanVelocityFn:
        return self.mean_velocity_fn(model, noised.text_BLD, noised.noise_augmentation_timestep_B, context=context)

    # --- sampling ---

    def with_sampler_config(self, config: EnhancementSamplerConfig) -> 'FlowMap':
        """Returns the stage with other sampler settings. Raises ConfigError for those that would move its knots."""
        for name in ('shift', 'numerics'):
            wanted, here = getattr(config, name), getattr(self.config, name)
            fixed = f'{name}={wanted}: must be {here}, the knots of this flow map are fixed by its training'
            require(wanted == here, fixed, ConfigError)
        return super().with_sampler_config(config)

    def time_grid(self) -> Times:
        """The knots that a sample jumps to: `num_steps` intervals as equal in number of knots as they can be."""
        config = self.config
        index = np.floor(np.arange(config.num_steps + 1) * config.num_knots / config.num_steps + 0.5).astype(int)
        return Times(*(part[index] for part in self.knots))

    def sampler_fn(self, model: DiT, text_BLD: jax.Array, *, context: ParallelContext) -> MeanVelocityFn:
        return self.mean_velocity_fn(model, text_BLD, context=context)

    def mean_velocity_fn(
        self,
        model: DiT,
        text_BLD: jax.Array,
        noise_augmentation_timestep_B: jax.Array | None = None,
        *,
        context: ParallelContext,
    ) -> MeanVelocityFn:
        """Returns u (3) as a function of (x, time t, time r), float32. Of velocities alone r is taken for t.

        The arguments are those of `velocity_fn`.
        """
        source = self._noise_augmentation(noise_augmentation_timestep_B)

        def mean_velocity(x: jax.Array, here: Times, there: Times) -> jax.Array:
            interval = here.timestep - there.timestep if self.config.has_intervals else 0.0 * here.timestep
            each = (jnp.broadcast_to(jnp.asarray(value), x.shape[:1]) for value in (here.timestep, source, interval))
            timestep_B, source_B, interval_B = each
            return self._velocity(model, x, text_BLD, timestep_B, source_B, context, interval_B)

        return mean_velocity

    # --- descriptions ---

    def diffusers_pipeline(self) -> DiffusersPipeline:
        raise ConfigError('a flow map embeds the length of each interval, which no network of diffusers does')

    def programs(self, size: BatchSize) -> list[Program]:
        """Describes the training step with the cost of its targets, and the encoding of each video of a clip."""
        step, *rest = super().programs(size)
        branches = 1 if guidance.is_unguided(self.config.teacher_guidance_scale) else 2
        evaluations = samplers.SAMPLERS[self.config.teacher_sampler].evaluations * self.config.teacher_substeps
        forwards = (branches, branches * evaluations, 2)
        jump = self.config.rollout_share  # a jump of the averaged network, in so many steps
        costs = [
            TargetCost(name, share, count + jump)
            for name, share, count in zip(TARGETS, self.config.target_shares, forwards, strict=True)
            if share
        ]
        return [dataclasses.replace(step, targets=tuple(costs)), *rest]

    def exported_functions(self, size: BatchSize, *, context: ParallelContext) -> list[ExportedFunction]:
        """Returns `mean_velocity`: (x_BFHWC, timestep_B, next_timestep_B, text_BLD) -> u, times in thousandths."""
        latents, text = (size.examples, *size.latents, self.network.latent_channels), (size.examples, *self.text_shape)

        def mean_velocity(model, x, timestep_B, next_timestep_B, text_BLD) -> jax.Array:
            here, there = (Times(value / 1000, value) for value in (timestep_B, next_timestep_B))
            return self.mean_velocity_fn(model, text_BLD, context=context)(x, here, there)

        times = {'timestep_B': (size.examples,), 'next_timestep_B': (size.examples,)}
        return [ExportedFunction('mean_velocity', mean_velocity, {'x_BFHWC': latents, **times, 'text_BLD': text})]


def split_target(u: MeanVelocityFn, x_t: jax.Array, start: Times, middle: Times, end: Times) -> jax.Array:
    """Computes (6): the mean velocity over an interval from those over its two parts (arXiv:2507.16884, eq. 7)."""
    first, second = (_like(length, x_t) for length in (start.t - middle.t, middle.t - end.t))
    u_first = u(x_t, start, middle)
    u_second = u(x_t - first * u_first, middle, end)
    return (first * u_first + second * u_second) / (first + second)


def _like(values_B: jax.Array, x: jax.Array) -> jax.Array:
    return process.expand_dims_like(values_B, x)


def _part(model: DiT, config: DiTConfig, *, copy: bool = True) -> DiT:
    """Returns the network of `config` with parameters of `model`, in the dtypes of `config`.

    Args:
      model: whose parameters include those of the network.
      config: of the network.
      copy: whether the parameters are copied.
    """
    graphdef, abstract = nnx.split(abstract_module(functools.partial(DiT, config)))
    there = dict(nnx.to_flat_state(nnx.state(model)))

    def value(path: tuple, leaf: nnx.Variable) -> nnx.Variable:
        found = there[path][...]
        return leaf.replace(jnp.array(found, leaf.dtype, copy=True) if copy else found.astype(leaf.dtype))

    return nnx.merge(graphdef, nnx.from_flat_state([(p, value(p, leaf)) for p, leaf in nnx.to_flat_state(abstract)]))
