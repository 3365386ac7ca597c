"""Stage 1: generates the latents of a low-resolution preview from noise and text (model guide 5.1 and 5.2).

With z the clip's latents and c the latent scale factor, a network is trained on (c z, noise) by v-prediction
(arXiv:2202.00512) or by flow matching (`diffusion/prediction_types`, with the equations):

    loss = mean (prediction_theta - prediction)^2, float32                  (1)
         = mean 1/(1 - a^2) (x0_theta - c z)^2 for v-prediction

Unlike stage 2, there are no 'official' numerics: the official timesteps are integers, the state float32
(model guide 1.7).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError, check_choice, check_range
from fv_jax.core.parallel_context import ParallelContext
from fv_jax.diffusion import guidance, noise_schedules, process, samplers, time_grids
from fv_jax.diffusion.dpm_solver import NoiseFn
from fv_jax.diffusion.prediction_types import PREDICTION_TYPES, Steps
from fv_jax.diffusion.trajectory import Trajectory
from fv_jax.models.dit import DiT
from fv_jax.stages.latent_stage import PreviewStage
from fv_jax.stages.noise import PreviewNoise, per_example_normal, sampler_noise
from fv_jax.stages.protocol import Batch, DiffusersPipeline, Metrics, OfficialStage, Shape
from fv_jax.stages.sampler_configs import PreviewSamplerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowResConfig(PreviewSamplerConfig):
    """How stage 1 is trained and sampled. The defaults are the official ones.

    Attributes:
      prediction_type: what the network is trained to predict (`diffusion/prediction_types`).
      shift: of times, for flow matching: above 1 towards the noise, in training and in the sampler's grid; 1 is none.
      scale_factor: multiplies the VAE's latents.
      caption_dropout: the probability that the text of a training example is replaced by zeros.
      text_length: number of all-zero text tokens for a batch without text.
      guidance_steps: the n of the guidance kind 'official'; None for num_steps.
    """

    prediction_type: samplers.Predicted = 'v_prediction'
    shift: float = 1.0
    scale_factor: float = 0.7
    caption_dropout: float = 0.1
    text_length: int = 226
    guidance_steps: int | None = None

    def __post_init__(self):
        check_range(self, 'caption_dropout', low=0, high=1)
        check_choice(self, 'prediction_type', choices=PREDICTION_TYPES)
        check_choice(self, 'guidance_kind', choices=guidance.SCHEDULES)
        samplers.check_sampler(self.sampler, self.prediction_type)
        check_range(self, 'shift', 'scale_factor', 'text_length', 'num_steps', above=0)
        check_range(self, 'guidance_exponent', 'guidance_steps', above=0)
        check_range(self, 'guidance_scale', low=0)
        if self.prediction_type == 'v_prediction':
            check_range(self, 'num_steps', low=2, high=noise_schedules.NUM_TIMESTEPS)
            shifts = f"shift={self.shift}: 'v_prediction' draws all timesteps alike; leave it at 1"
            require(self.shift == 1, shifts, ConfigError)


class NoisedClip(NamedTuple):
    """A noised batch; latents are scaled. t is 1 at the noise, 0 at the data."""

    noise_BFHWC: jax.Array
    data_BFHWC: jax.Array
    text_BLD: jax.Array
    t_B: jax.Array


# `noise_schedules` in the words of diffusers (model guide 5.1).
_DIFFUSERS_SCHEDULE = {
    'num_train_timesteps': noise_schedules.NUM_TIMESTEPS,
    'beta_start': 0.00085,
    'beta_end': 0.012,
    'beta_schedule': 'scaled_linear',
    'prediction_type': 'v_prediction',
    'rescale_betas_zero_snr': True,
    'snr_shift_scale': 1.0,
    'timestep_spacing': 'trailing',
    'set_alpha_to_one': True,
    'clip_sample': False,
}


@dataclasses.dataclass(frozen=True)
class LowRes(PreviewStage):
    """Stage 1; see the module."""

    config: LowResConfig

    strategy = 'fsdp'
    official = OfficialStage(
        'stage1.pt',
        LowResConfig(),
        network={'embed_num_frames': False, 'embed_noise_augmentation_timestep': False, 'embed_interval': False},
        clip={'frames': 49, 'height': 256, 'width': 480},
    )

    def sample_noise_and_time(self, batch: Batch, keys_B: jax.Array, progress: jax.Array | None = None) -> NoisedClip:
        """Draws times, noise and caption dropout for every example, each from the example's own key."""
        z, text = batch['z_high_BFHWC'], self.text(batch)
        time_B, noise_B, drop_B = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 3))(keys_B), 1, 0)
        kept_B = jax.vmap(jax.random.uniform)(drop_B) >= self.config.caption_dropout
        return NoisedClip(
            noise_BFHWC=per_example_normal(noise_B, z.shape),
            data_BFHWC=self.scale_latents(z),
            text_BLD=jnp.where(process.expand_dims_like(kept_B, text), text, 0),
            t_B=time_grids.stratified_times(time_B, self.config.shift),
        )

    def loss(
        self, model: DiT, noised: NoisedClip, *, context: ParallelContext, average: DiT | None = None
    ) -> tuple[jax.Array, Metrics]:
        """Computes the loss (1) of a noised batch.

        Metrics: the loss of the examples in the upper and lower half of the distribution of t (each assumed to be half
        of the batch, as in a stratified one of even size); root mean squares of (1).
        """
        prediction_type = PREDICTION_TYPES[self.config.prediction_type]
        example = prediction_type.example(noised.data_BFHWC, noised.noise_BFHWC, noised.t_B)
        predicted = model(example.x, example.timestep_B, noised.text_BLD, context=context).astype(jnp.float32)
        loss_B = jnp.mean((predicted - example.target) ** 2, axis=(1, 2, 3, 4))
        near_noise_B = noised.t_B >= time_grids.shift_times(0.5, self.config.shift)
        return jnp.mean(loss_B), {
            'loss_near_noise': 2 * jnp.mean(jnp.where(near_noise_B, loss_B, 0)),
            'loss_near_data': 2 * jnp.mean(jnp.where(near_noise_B, 0, loss_B)),
            'prediction_norm': jnp.sqrt(jnp.mean(predicted**2)),
            'target_norm': jnp.sqrt(jnp.mean(example.target**2)),
        }

    def sample(self, model: DiT, batch: Batch, keys_B: jax.Array, *, context: ParallelContext) -> dict[str, jax.Array]:
        """Samples `z_sample_BFHWC`, unscaled, from the texts of a batch; returned with the latents of the batch."""
        shape = batch['z_high_BFHWC'].shape
        noise, noise_fn = sampler_noise(keys_B, shape)
        x = self.trajectory(model, noise, self.text(batch), noise_fn, context=context).integrate()
        latents = {name: value for name, value in batch.items() if name.startswith('z_')}
        return latents | {'z_sample_BFHWC': self.unscale_latents(x)}

    def sampling_trajectory(
        self, model: DiT, inputs: Batch, noise: PreviewNoise, shape: Shape, *, context: ParallelContext
    ) -> Trajectory:
        x, noise_fn = noise.preview(shape)
        if self.first_state:
            data = self.scale_latents(inputs['z_high_BFHWC'])
            x = PREDICTION_TYPES[self.config.prediction_type].first_state(data, x, self._steps())
        text = inputs['text_BLD']
        return self.trajectory(model, x, text, noise_fn, context=context).then(self.unscale_latents)

    def noise_levels(self) -> np.ndarray:
        return PREDICTION_TYPES[self.config.prediction_type].noise_levels(self._steps())

    def trajectory(
        self, model: DiT, x: jax.Array, text_BLD: jax.Array, noise_fn: NoiseFn | None, *, context: ParallelContext
    ) -> Trajectory:
        """Returns the trajectory from the first state to data, by the sampler, grid and guidance of the config.

        Args:
          model: the network.
          x: the first state, unit normal noise (B, F, H, W, C), or scaled latents noised to `first_state`.
          text_BLD: text embeddings.
          noise_fn: the noise of each sampler step (`noise.sampler_noise`); only dpmpp_2m_sde needs it.
          context: the parallel context.

        Returns:
          The trajectory to scaled latents, float32.
        """
        predict_fn = self.predict_fn(model, text_BLD, context=context)
        prediction_type = PREDICTION_TYPES[self.config.prediction_type]
        return prediction_type.trajectory(predict_fn, x.astype(jnp.float32), self._steps(), noise_fn)

    def _steps(self) -> Steps:
        return Steps(self.config.sampler, self.config.num_steps, self.config.shift, self.first_state)

    def predict_fn(self, model: DiT, text_BLD: jax.Array, *, context: ParallelContext) -> guidance.FlowFn:
        """Returns the guided prediction of the network, float32.

        All-zero text, the unconditional input (model guide 6), comes first in a batched evaluation.
        """

        def predict(x: jax.Array, time: time_grids.Times, text_BLD: jax.Array) -> jax.Array:
            return model(x, jnp.full(x.shape[:1], time.timestep), text_BLD, context=context).astype(jnp.float32)

        null, scale = jnp.zeros_like(text_BLD), self._guidance_schedule()
        if self.config.guidance_batched:
            return guidance.classifier_free_batched(predict, text_BLD, null, scale, cond_first=False)
        cond_fn, null_fn = (functools.partial(predict, text_BLD=text) for text in (text_BLD, null))
        return guidance.classifier_free(cond_fn, null_fn, scale)

    def is_guided(self) -> bool:
        return not guidance.is_unguided(self._guidance_schedule())

    def diffusers_pipeline(self) -> DiffusersPipeline:
        config = self.config
        wrong = (
            f'options.prediction_type={config.prediction_type}: diffusers samples this network for v_prediction only'
        )
        require(config.prediction_type == 'v_prediction', wrong, ConfigError)
        stochastic, kind = config.sampler == 'dpmpp_2m_sde', config.guidance_kind
        name = 'CogVideoXDPMScheduler' if stochastic else 'CogVideoXDDIMScheduler'
        notes = ['the timesteps and the noise of each step are those of diffusers, and differ slightly']
        if config.sampler not in ('dpmpp_2m_sde', 'ddim'):
            notes.append(f'diffusers does not have the sampler {config.sampler}; {name} is used')
        if kind not in ('official', 'constant'):
            notes.append(f'diffusers does not have guidance of the kind {kind}; it is constant')
        call = (
            f'prompt, num_inference_steps={config.num_steps}, guidance_scale={config.guidance_scale}, '
            f'use_dynamic_cfg={kind == "official"}, max_sequence_length={config.text_length}'
        )
        scheduler = {'_class_name': name, **_DIFFUSERS_SCHEDULE}
        return DiffusersPipeline('FlashVideoPreviewPipeline', call, scheduler, notes=tuple(notes))

    def _guidance_schedule(self) -> np.ndarray:
        """Computes the guidance scale by timestep."""
        config = self.config
        n = config.guidance_steps or config.num_steps
        return guidance.guidance_schedule(config.guidance_kind, config.guidance_scale, config.guidance_exponent, n)
