"""Stage 2: low-res latents to high-res latents by flow matching (arXiv:2210.02747; model guide 5.3 and 7).

With z_low the latents of the upsampled low-res clip, z_high those of the high-res clip, c the latent scale factor and a
the noise schedule's signal share at the noise-augmentation timestep:

    source   = a c z_low + sqrt(1 - a^2) noise                    (1)
    x_t      = t source + (1 - t) c z_high                        (2)   t = 1 at the source, 0 at the data
    velocity = dx/dt = source - c z_high                          (3)
    loss     = mean over all elements of (velocity_theta - velocity)^2, float32

The official network counts time the other way and predicts data - source: `_velocity` flips that sign, and nothing else
does. It embeds 1000 t, which is 1000 at the source in both countings.

'official' numerics are those of the official bfloat16 run (model guide 5.3): its time grid, the *embedded*
noise-augmentation timestep rounded to bfloat16 (676 for 675, in training too; the schedule is read at 675) and the
sampler's state in bfloat16.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from fv_jax.core.config import check_choice, check_range
from fv_jax.core.parallel_context import ParallelContext
from fv_jax.diffusion import guidance, noise_schedules, process, samplers, time_grids
from fv_jax.diffusion.trajectory import Trajectory
from fv_jax.models.dit import DiT
from fv_jax.stages.latent_stage import EnhancementStage, NoisedPair
from fv_jax.stages.noise import EnhanceNoise, per_example_normal
from fv_jax.stages.protocol import (
    Batch,
    BatchSize,
    DiffusersPipeline,
    ExportedFunction,
    Metrics,
    OfficialStage,
    Shape,
)
from fv_jax.stages.sampler_configs import EnhancementSamplerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuperResConfig(EnhancementSamplerConfig):
    """How stage 2 is trained and sampled.

    The defaults are the official ones except for two: a run of our own has no prompt prefix, and trains on the means of
    the VAE's latents.

    Attributes:
      noise_augmentation_timestep_range: (lowest, highest), both included, that training draws from, one for each
        example, stratified over the global batch. None: always noise_augmentation_timestep.
      image_noise_augmentation_timestep_range: the same for batches of images (one latent frame). None: as for clips.
      scale_factor: multiplies the VAE's latents.
      caption_dropout: the probability that the text of a training example is replaced by zeros.
      text_length: number of all-zero text tokens for a batch without text.
    """

    noise_augmentation_timestep_range: tuple[int, int] | None = None
    image_noise_augmentation_timestep_range: tuple[int, int] | None = None
    scale_factor: float = 1.15258426
    caption_dropout: float = 0.1
    text_length: int = 226
    prompt_prefix: str = ''
    sample_posterior: bool = False
    prediction_type: ClassVar[samplers.Predicted] = 'flow'

    def __post_init__(self):
        check_range(self, 'noise_augmentation_timestep', *_RANGES, low=0, high=noise_schedules.NUM_TIMESTEPS - 1)
        check_range(self, 'caption_dropout', low=0, high=1)
        samplers.check_sampler(self.sampler, self.prediction_type)
        check_choice(self, 'numerics', choices=time_grids.STATE_DTYPES)
        check_range(self, 'shift', 'scale_factor', 'num_steps', 'text_length', above=0)
        check_range(self, 'guidance_scale', low=0)


_RANGES = ('noise_augmentation_timestep_range', 'image_noise_augmentation_timestep_range')
OFFICIAL = SuperResConfig(**dataclasses.asdict(EnhancementSamplerConfig()))  # model guide 4 and 6


@dataclasses.dataclass(frozen=True)
class SuperRes(EnhancementStage):
    """Stage 2; see the module."""

    config: SuperResConfig

    strategy = 'fsdp_split_frames'
    official = OfficialStage(
        'stage2.pt',
        OFFICIAL,
        network={'embed_num_frames': True, 'embed_noise_augmentation_timestep': True, 'embed_interval': False},
        clip={'frames': 49, 'height': 1072, 'width': 1920},
    )

    def noise_augmentation_timesteps(self, latent_frames: int) -> tuple[int, int]:
        config = self.config
        at = config.noise_augmentation_timestep
        of_clips = config.noise_augmentation_timestep_range or (at, at)
        return of_clips if latent_frames > 1 else config.image_noise_augmentation_timestep_range or of_clips

    def sample_noise_and_time(self, batch: Batch, keys_B: jax.Array, progress: jax.Array | None = None) -> NoisedPair:
        """Draws times, noise, caption dropout and noise-augmentation timesteps, each example's from its own key.

        Times and timesteps are stratified over the batch; the order of the strata of the timesteps is drawn from the
        key of the first example.
        """
        time_B, _, drop_B, index_B = split_keys(keys_B)
        low, high = self.noise_augmentation_timesteps(latent_frames=batch['z_low_BFHWC'].shape[1])
        s_B = time_grids.stratified_integers(index_B, jax.random.fold_in(index_B[0], 1), low, high)
        noised = self.noise_at(batch, keys_B, time_grids.stratified_times(time_B, self.config.shift), s_B)
        kept_B = jax.vmap(jax.random.uniform)(drop_B) >= self.config.caption_dropout
        text = jnp.where(process.expand_dims_like(kept_B, noised.text_BLD), noised.text_BLD, 0)
        return noised._replace(text_BLD=text)

    def noise_at(
        self, batch: Batch, keys_B: jax.Array, t_B: jax.Array, noise_augmentation_timestep_B: jax.Array
    ) -> NoisedPair:
        """Noises a batch at given times, see `EnhancementStage.noise_at`.

        Raises:
          ValueError: low-res and high-res latents differ in size.
        """
        z_low, z_high = batch['z_low_BFHWC'], batch['z_high_BFHWC']
        if z_low.shape != z_high.shape:
            raise ValueError(f'z_low is {z_low.shape} and z_high {z_high.shape}: upsample the low-res clip first')
        _, noise_B, _, _ = split_keys(keys_B)
        noise = per_example_normal(noise_B, z_low.shape)
        return NoisedPair(
            source_BFHWC=self.make_source(z_low, noise, noise_augmentation_timestep_B),
            data_BFHWC=self.scale_latents(z_high),
            text_BLD=self.text(batch),
            t_B=t_B,
            noise_augmentation_timestep_B=noise_augmentation_timestep_B,
        )

    def loss(
        self, model: DiT, noised: NoisedPair, *, context: ParallelContext, average: DiT | None = None
    ) -> tuple[jax.Array, Metrics]:
        """Computes the loss of a noised batch.

        Metrics: the loss of the examples in the upper and lower half of the distribution of t (each assumed to be half
        of the batch, as in a stratified one of even size); root mean squares of (3).
        """
        x_t = process.interpolate(noised.source_BFHWC, noised.data_BFHWC, noised.t_B)  # (2)
        target = process.velocity(noised.source_BFHWC, noised.data_BFHWC)  # (3)
        timesteps = 1000 * noised.t_B, noised.noise_augmentation_timestep_B
        predicted = self._velocity(model, x_t, noised.text_BLD, *timesteps, context)
        loss_B = jnp.mean((predicted - target) ** 2, axis=(1, 2, 3, 4))
        near_source_B = noised.t_B >= time_grids.shift_times(0.5, self.config.shift)
        return jnp.mean(loss_B), {
            'loss_near_source': 2 * jnp.mean(jnp.where(near_source_B, loss_B, 0)),
            'loss_near_data': 2 * jnp.mean(jnp.where(near_source_B, 0, loss_B)),
            'velocity_norm': jnp.sqrt(jnp.mean(predicted**2)),
            'target_norm': jnp.sqrt(jnp.mean(target**2)),
        }

    def sample(self, model: DiT, batch: Batch, keys_B: jax.Array, *, context: ParallelContext) -> dict[str, jax.Array]:
        """Samples `z_sample_BFHWC`, unscaled, from a batch, and returns it beside the latents of the batch."""
        z_low = batch['z_low_BFHWC']
        source = self.make_source(z_low, per_example_normal(keys_B, z_low.shape))
        x = self.trajectory(model, source, self.text(batch), context=context).integrate()
        latents = {name: value for name, value in batch.items() if name.startswith('z_')}
        return latents | {'z_sample_BFHWC': self.unscale_latents(x)}

    def sampling_trajectory(
        self, model: DiT, inputs: Batch, noise: EnhanceNoise, shape: Shape, *, context: ParallelContext
    ) -> Trajectory:
        source = self.make_source(inputs['z_low_BFHWC'], noise.augmentation(shape))
        return self.trajectory(model, source, inputs['text_BLD'], context=context).then(self.unscale_latents)

    def make_source(
        self, z_low: jax.Array, noise: jax.Array, noise_augmentation_timestep_B: jax.Array | None = None
    ) -> jax.Array:
        """Computes the source (1).

        Args:
          z_low: unscaled latents (B, F, H, W, C).
          noise: unit normal, shaped like `z_low`.
          noise_augmentation_timestep_B: indices into the noise schedule; None for that of the config.

        Returns:
          Scaled, noised latents, float32.
        """
        if noise_augmentation_timestep_B is None:
            noise_augmentation_timestep_B = jnp.full(z_low.shape[:1], self.config.noise_augmentation_timestep)
        sqrt_alphas = jnp.asarray(noise_schedules.sqrt_alphas_by_timestep())
        return process.add_noise(self.scale_latents(z_low), noise, sqrt_alphas[noise_augmentation_timestep_B])

    def trajectory(self, model: DiT, source: jax.Array, text_BLD: jax.Array, *, context: ParallelContext) -> Trajectory:
        """Returns the trajectory from a source to data, by the sampler, grid and guidance of the config.

        Args:
          model: the network.
          source: (1), scaled latents.
          text_BLD: text embeddings.
          context: the parallel context.

        Returns:
          The trajectory to scaled latents, float32.
        """
        config = self.config
        state = source.astype(time_grids.STATE_DTYPES[config.numerics])
        function = self.sampler_fn(model, text_BLD, context=context)
        trajectory = samplers.SAMPLERS[config.sampler].trajectory(function, state, self.time_grid())
        return trajectory.then(lambda x: x.astype(jnp.float32))

    def time_grid(self) -> time_grids.Times:
        """Returns the grid of the sampler."""
        return time_grids.flow_time_grid(self.config.num_steps, self.config.shift, self.config.numerics)

    def sampler_fn(self, model: DiT, text_BLD: jax.Array, *, context: ParallelContext) -> Callable[..., jax.Array]:
        """Returns the function that the sampler calls."""
        return self.velocity_fn(model, text_BLD, context=context)

    def _noise_augmentation(self, timestep_B: jax.Array | None) -> jax.Array | int:
        """Returns the given indices into the noise schedule; for None that of the config."""
        return self.config.noise_augmentation_timestep if timestep_B is None else timestep_B

    def velocity_fn(
        self,
        model: DiT,
        text_BLD: jax.Array,
        noise_augmentation_timestep_B: jax.Array | None = None,
        *,
        context: ParallelContext,
    ) -> guidance.FlowFn:
        """Returns the velocity (3), guided against all-zero text (model guide 6). Times may be (B,).

        Args:
          model: the network.
          text_BLD: text embeddings.
          noise_augmentation_timestep_B: indices into the noise schedule; None for that of the config.
          context: the parallel context.
        """
        source = self._noise_augmentation(noise_augmentation_timestep_B)

        def velocity(x: jax.Array, time: time_grids.Times, text_BLD: jax.Array) -> jax.Array:
            # Repeated for both branches of guidance, where these are one batch.
            at_B = (jnp.resize(jnp.asarray(value), x.shape[:1]) for value in (time.timestep, source))
            return self._velocity(model, x, text_BLD, *at_B, context)

        null, scale = jnp.zeros_like(text_BLD), self.config.guidance_scale
        if self.config.guidance_batched:
            return guidance.classifier_free_batched(velocity, text_BLD, null, scale, cond_first=True)
        cond_fn, null_fn = (functools.partial(velocity, text_BLD=text) for text in (text_BLD, null))
        return guidance.classifier_free(cond_fn, null_fn, scale)

    def is_guided(self) -> bool:
        return not guidance.is_unguided(self.config.guidance_scale)

    def exported_functions(self, size: BatchSize, *, context: ParallelContext) -> list[ExportedFunction]:
        """Returns `velocity`: (x_BFHWC, timestep_B, text_BLD) -> dx/dt at t = timestep / 1000, without guidance."""
        unguided, latents = self.without_guidance(), (size.examples, *size.latents, self.network.latent_channels)

        def velocity(model: DiT, x: jax.Array, timestep_B: jax.Array, text_BLD: jax.Array) -> jax.Array:
            velocity_fn = unguided.velocity_fn(model, text_BLD, context=context)
            return velocity_fn(x, time_grids.Times(timestep_B[0] / 1000, timestep_B[0]))

        text = (size.examples, *self.text_shape)
        shapes = {'x_BFHWC': latents, 'timestep_B': (size.examples,), 'text_BLD': text}
        return [ExportedFunction('velocity', velocity, shapes)]

    def diffusers_pipeline(self) -> DiffusersPipeline:
        config, notes = self.config, []
        at, embedded = config.noise_augmentation_timestep, None
        if self.network.embed_noise_augmentation_timestep:
            embedded = float(time_grids.embedded_timestep(jnp.asarray([at]), config.numerics)[0])
        if config.sampler != 'euler':
            notes.append(f'the sampler {config.sampler} is not used; diffusers takes Euler steps')
        if config.numerics != 'exact':
            notes.append("the time grid is exact, not that of 'official' numerics")
        settings = {
            'signal_share': float(noise_schedules.sqrt_alphas_by_timestep()[at]),
            'num_inference_steps': config.num_steps,
            'guidance_scale': config.guidance_scale,
            'prompt_prefix': config.prompt_prefix,
            'sample_posterior': config.sample_posterior,
            'text_length': config.text_length,
        }
        scheduler = {'_class_name': 'FlowMatchEulerDiscreteScheduler', 'shift': config.shift}
        return DiffusersPipeline(
            'FlashVideoEnhancePipeline',
            'frames, prompt',
            scheduler | {'num_train_timesteps': noise_schedules.NUM_TIMESTEPS},
            settings,
            noise_augmentation_timestep=embedded,
            predicts_opposite=True,
            notes=tuple(notes),
        )

    def _velocity(
        self, model, x, text_BLD, timestep_B, noise_augmentation_timestep_B, context, interval_B=None
    ) -> jax.Array:
        """Computes dx/dt in our time, or its mean over an interval, float32.

        The official network predicts data - source: the sign is flipped here.
        """
        embedded_B = time_grids.embedded_timestep(noise_augmentation_timestep_B, self.config.numerics)
        extra = (embedded_B,) if self.network.embed_noise_augmentation_timestep else ()
        interval = {} if interval_B is None else {'interval_B': interval_B}
        return -model(x, timestep_B, text_BLD, *extra, **interval, context=context).astype(jnp.float32)


def split_keys(keys_B: jax.Array) -> jax.Array:
    """Splits the keys of the examples into those of t, noise, caption dropout and augmentation timestep, (4, B)."""
    return jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 4))(keys_B), 1, 0)
