"""Stage 1: noise and a text to a low-resolution preview's latents (model guide 5.1 and 5.2).

With z the clip's latents and c the latent scale factor, a network is trained on (c z, noise) by v-prediction, or by the
flow from noise to data (`diffusion/prediction_types`, with the equations):

    loss = mean (prediction_theta - prediction)^2, float32                  (1)
         = mean 1/(1 - a^2) (x0_theta - c z)^2 for v-prediction

There are no 'official' numerics as in stage 2: the official timesteps are whole numbers, the state float32
(model guide 1.7).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.filterlib import Filter

from fv_jax.core.config import ConfigError, nearest
from fv_jax.core.parallel_context import Rules
from fv_jax.diffusion import guidance, noise_schedules, process, samplers, time_grids
from fv_jax.diffusion.dpm_solver import NoiseFn
from fv_jax.diffusion.prediction_types import PREDICTION_TYPES, Steps
from fv_jax.models.dit import DiT, DiTConfig
from fv_jax.models.lora import LoRAParam
from fv_jax.stages.protocol import Batch, Encoder, Metrics, encode_videos, row_keys, row_normal, text_or_zeros


@dataclasses.dataclass(frozen=True)
class LowResConfig:
    """How stage 1 is trained and sampled. The defaults are the official ones.

    shift: of the prediction type 'flow'; pushes t towards the noise, in training and in the sampler's grid; 1 = off.
    scale_factor: what the VAE's latents are multiplied by.
    caption_dropout: the share of training rows whose text is replaced by zeros.
    text_length: number of all-zero text tokens where a batch has no text.
    guidance_kind: how the scale depends on the timestep (`diffusion/guidance`).
    guidance_scale: 1 = off, of 'official' 0. guidance_exponent: of 'official' and 'cosine'.
    guidance_steps: the n of 'official'; None for num_steps.
    guidance_batched: one evaluation at twice the batch, or two (less memory).
    sampler: one of `samplers.SAMPLERS` for the prediction type.
    """

    prediction_type: samplers.Predicted = 'v_prediction'
    shift: float = 1.0
    scale_factor: float = 0.7
    caption_dropout: float = 0.1
    text_length: int = 226
    guidance_kind: guidance.Kind = 'official'
    guidance_scale: float = 8.0
    guidance_exponent: int = 5
    guidance_steps: int | None = None
    guidance_batched: bool = True
    num_steps: int = 51
    sampler: str = 'dpmpp_2m_sde'

    def __post_init__(self):
        if not 0 <= self.caption_dropout <= 1:
            raise ConfigError(f'caption_dropout={self.caption_dropout}: must be between 0 and 1')
        for name, known in (('prediction_type', PREDICTION_TYPES), ('guidance_kind', guidance.TABLES)):
            if getattr(self, name) not in known:
                raise ConfigError(f'{name}={getattr(self, name)}: {nearest(getattr(self, name), known)}')
        samplers.check_sampler(self.sampler, self.prediction_type)
        for name in ('shift', 'scale_factor', 'text_length', 'guidance_exponent', 'num_steps', 'guidance_steps'):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f'{name}={value}: must be positive')
        if self.guidance_scale < 0:
            raise ConfigError(f'guidance_scale={self.guidance_scale}: must not be negative')
        if self.prediction_type == 'v_prediction' and not 2 <= self.num_steps <= noise_schedules.NUM_TIMESTEPS:
            raise ConfigError(
                f'num_steps={self.num_steps}: a noise schedule has 2 to {noise_schedules.NUM_TIMESTEPS} steps'
            )
        if self.prediction_type == 'v_prediction' and self.shift != 1:
            raise ConfigError(f"shift={self.shift}: 'v_prediction' draws all timesteps alike; leave it at 1")


class Draw(NamedTuple):
    """A batch with everything random drawn; the latents are scaled. t is 1 at the noise, 0 at the data."""

    noise_BFHWC: jax.Array
    data_BFHWC: jax.Array
    text_BLD: jax.Array
    t_B: jax.Array


def drawn_noise(keys_B: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, NoiseFn]:
    """The noise that a sampler starts from and what it adds at each step, each row's from its own key alone."""

    def draw(number: jax.Array | int) -> jax.Array:
        return row_normal(jax.vmap(lambda key: jax.random.fold_in(key, number))(keys_B), shape)

    return draw(0), lambda step: draw(1 + step)


@dataclasses.dataclass(frozen=True)
class LowRes:
    """The stage. A batch holds `z_high_BFHWC` as the VAE makes them, not scaled, or `high_res_BFHWC`, videos of the
    preview's size in [-1, 1] for `encoder`; and `text_BLD` where there is any.
    """

    config: LowResConfig
    dit: DiTConfig
    encoder: Encoder | None = None

    def sampled_with(
        self,
        *,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_kind: guidance.Kind | None = None,
        guidance_exponent: int | None = None,
        sampler: str | None = None,
    ) -> 'LowRes':
        """The same stage with another number of steps, guidance or sampler; None keeps what it has."""
        asked = (num_steps, guidance_scale, guidance_kind, guidance_exponent, sampler)
        names = ('num_steps', 'guidance_scale', 'guidance_kind', 'guidance_exponent', 'sampler')
        given = {name: value for name, value in zip(names, asked, strict=True) if value is not None}
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **given))

    def init(self, rngs: nnx.Rngs) -> DiT:
        return DiT(self.dit, rngs=rngs)

    def trainable(self) -> Filter:
        return nnx.Param if self.dit.lora is None else LoRAParam

    def start_from(self, model: DiT) -> None:
        pass

    def encode(self, batch: Batch) -> Batch:
        return encode_videos(batch, {'high_res_BFHWC': 'z_high_BFHWC'}, self.encoder)

    def draw(self, batch: Batch, keys_B: jax.Array) -> Draw:
        """Everything random of every row, each from the row's key."""
        z, text = batch['z_high_BFHWC'], self.text(batch)
        time_B, noise_B, drop_B = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 3))(keys_B), 1, 0)
        kept_B = jax.vmap(jax.random.uniform)(drop_B) >= self.config.caption_dropout
        return Draw(
            noise_BFHWC=row_normal(noise_B, z.shape),
            data_BFHWC=self.config.scale_factor * z.astype(jnp.float32),
            text_BLD=jnp.where(process.per_row(kept_B, text), text, 0),
            t_B=time_grids.stratified_times(time_B, self.config.shift),
        )

    def loss_of(self, model: DiT, draw: Draw, *, rules: Rules) -> tuple[jax.Array, Metrics]:
        """The loss (1) of a given draw. Metrics: the loss of the rows in the upper and lower half of the distribution
        of t (each taken to be half of the batch, as in a stratified one of even size); root mean squares of (1).
        """
        example = PREDICTION_TYPES[self.config.prediction_type].example(draw.data_BFHWC, draw.noise_BFHWC, draw.t_B)
        predicted = model(example.x, example.timestep_B, draw.text_BLD, rules=rules).astype(jnp.float32)
        loss_B = jnp.mean((predicted - example.target) ** 2, axis=(1, 2, 3, 4))
        near_noise_B = draw.t_B >= time_grids.shift_times(0.5, self.config.shift)
        return jnp.mean(loss_B), {
            'loss_near_noise': 2 * jnp.mean(jnp.where(near_noise_B, loss_B, 0)),
            'loss_near_data': 2 * jnp.mean(jnp.where(near_noise_B, 0, loss_B)),
            'prediction_norm': jnp.sqrt(jnp.mean(predicted**2)),
            'target_norm': jnp.sqrt(jnp.mean(example.target**2)),
        }

    def sample(self, model: DiT, batch: Batch, key: jax.Array, *, rules: Rules) -> dict[str, jax.Array]:
        """`z_sample_BFHWC` as the VAE decodes it, of the batch's texts, beside the batch's own latents."""
        shape = batch['z_high_BFHWC'].shape
        noise, noise_fn = drawn_noise(row_keys(key, 0, shape[0]), shape)
        z = self.generate(model, noise, self.text(batch), noise_fn, rules=rules)
        latents = {name: value for name, value in batch.items() if name.startswith('z_')}
        return latents | {'z_sample_BFHWC': z}

    def generate(
        self, model: DiT, noise: jax.Array, text_BLD: jax.Array, noise_fn: NoiseFn | None, *, rules: Rules
    ) -> jax.Array:
        """From unit noise (B, F, H, W, C) and text to latents as the VAE decodes them, not scaled, float32.

        noise_fn: what the sampler adds at each step: the second of `drawn_noise`. Only dpmpp_2m_sde needs it.
        """
        config = self.config
        predict_fn = self.predict_fn(model, text_BLD, rules=rules)
        steps = Steps(config.sampler, config.num_steps, config.shift)
        x = PREDICTION_TYPES[config.prediction_type].integrate(predict_fn, noise.astype(jnp.float32), steps, noise_fn)
        return x / config.scale_factor

    def predict_fn(self, model: DiT, text_BLD: jax.Array, *, rules: Rules) -> guidance.FlowFn:
        """What the network predicts, float32, guided against all-zero text (model guide 6), which stands first."""

        def predict(x: jax.Array, time: time_grids.Times, text_BLD: jax.Array) -> jax.Array:
            return model(x, jnp.full(x.shape[:1], time.timestep), text_BLD, rules=rules).astype(jnp.float32)

        config, null = self.config, jnp.zeros_like(text_BLD)
        n = config.guidance_steps or config.num_steps
        scale = guidance.scales(config.guidance_kind, config.guidance_scale, config.guidance_exponent, n)
        if config.guidance_batched:
            return guidance.classifier_free_batched(predict, text_BLD, null, scale, cond_first=False)
        cond_fn, null_fn = (functools.partial(predict, text_BLD=text) for text in (text_BLD, null))
        return guidance.classifier_free(cond_fn, null_fn, scale)

    def text(self, batch: Batch) -> jax.Array:
        """The batch's text embeddings, or all-zero ones."""
        return text_or_zeros(batch, (batch['z_high_BFHWC'].shape[0], self.config.text_length, self.dit.text_dim))
