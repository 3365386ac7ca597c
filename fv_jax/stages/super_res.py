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
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.filterlib import Filter

from fv_jax.core.config import ConfigError, nearest
from fv_jax.core.parallel_context import Rules
from fv_jax.diffusion import guidance, noise_schedules, process, samplers, time_grids
from fv_jax.models.dit import DiT, DiTConfig
from fv_jax.stages.protocol import Batch, Encoder, Metrics, encode_videos, row_keys, row_normal, text_or_zeros


@dataclasses.dataclass(frozen=True)
class SuperResConfig:
    """How stage 2 is trained and sampled. The defaults are the official ones; for the last two see `OFFICIAL`.

    noise_augmentation_timestep: index into the 1000-step noise schedule that the low-res latents are noised to.
    noise_augmentation_timestep_range: (lowest, highest), both included, that training draws from, one for each example,
      stratified over the global batch. None: always noise_augmentation_timestep.
    image_noise_augmentation_timestep_range: the same for batches of images (one latent frame). None: as for clips.
    shift: pushes t towards the source, in training and in the sampler's grid; 1 = off.
    scale_factor: what the VAE's latents are multiplied by.
    caption_dropout: the share of training rows whose text is replaced by zeros.
    text_length: number of all-zero text tokens where a batch has no text.
    guidance_scale: 1 = off. guidance_batched: one evaluation at twice the batch, or two (less memory).
    prompt_prefix: what a preview's prompt is preceded by when it is enhanced.
    sample_posterior: draw the source's latents from the VAE's distribution, as the official code does, when enhancing;
      else take its means, which is what is trained on here.
    """

    noise_augmentation_timestep: int = 675
    noise_augmentation_timestep_range: tuple[int, int] | None = None
    image_noise_augmentation_timestep_range: tuple[int, int] | None = None
    shift: float = 2.5
    scale_factor: float = 1.15258426
    caption_dropout: float = 0.1
    text_length: int = 226
    guidance_scale: float = 13.0
    guidance_batched: bool = True
    num_steps: int = 5
    sampler: str = 'euler'
    numerics: time_grids.Numerics = 'exact'
    prompt_prefix: str = ''
    sample_posterior: bool = False

    def __post_init__(self):
        last = noise_schedules.NUM_TIMESTEPS - 1
        for name, limit in (('noise_augmentation_timestep', last), ('caption_dropout', 1)):
            if not 0 <= getattr(self, name) <= limit:
                raise ConfigError(f'{name}={getattr(self, name)}: must be between 0 and {limit}')
        for name in ('noise_augmentation_timestep_range', 'image_noise_augmentation_timestep_range'):
            low, high = getattr(self, name) or (0, last)
            if not 0 <= low <= high <= last:
                raise ConfigError(f'{name}={(low, high)}: must be lowest <= highest, from 0 to {last}')
        samplers.check_sampler(self.sampler, 'flow')
        if self.numerics not in time_grids.STATE_DTYPES:
            raise ConfigError(f'numerics={self.numerics}: {nearest(self.numerics, time_grids.STATE_DTYPES)}')
        for name in ('shift', 'scale_factor', 'num_steps', 'text_length'):
            if getattr(self, name) <= 0:
                raise ConfigError(f'{name}={getattr(self, name)}: must be positive')
        if self.guidance_scale < 0:
            raise ConfigError(f'guidance_scale={self.guidance_scale}: must not be negative')

    def noise_augmentation_timesteps(self, latent_frames: int) -> tuple[int, int]:
        """(lowest, highest) that training draws from, for clips of so many latent frames."""
        of_clips = self.noise_augmentation_timestep_range or (
            self.noise_augmentation_timestep,
            self.noise_augmentation_timestep,
        )
        return of_clips if latent_frames > 1 else self.image_noise_augmentation_timestep_range or of_clips


OFFICIAL = SuperResConfig(prompt_prefix='medium motion,', sample_posterior=True)  # model guide 4 and 6


class Draw(NamedTuple):
    """A batch with everything random drawn; the latents are scaled."""

    source_BFHWC: jax.Array
    data_BFHWC: jax.Array
    text_BLD: jax.Array
    t_B: jax.Array
    noise_augmentation_timestep_B: jax.Array


@dataclasses.dataclass(frozen=True)
class SuperRes:
    """The stage. A batch holds `z_high_BFHWC` and `z_low_BFHWC` as the VAE makes them, not scaled, or `high_res_BFHWC`
    and `low_res_BFHWC`, videos of one size in [-1, 1] for `encoder`; and `text_BLD` where there is any.
    """

    config: SuperResConfig
    dit: DiTConfig
    encoder: Encoder | None = None

    def sampled_with(self, *, num_steps: int | None = None, guidance_scale: float | None = None) -> 'SuperRes':
        """The same stage with another number of sampler steps or another guidance; None keeps what it has."""
        config = self.config
        num_steps = config.num_steps if num_steps is None else num_steps
        guidance_scale = config.guidance_scale if guidance_scale is None else guidance_scale
        config = dataclasses.replace(config, num_steps=num_steps, guidance_scale=guidance_scale)
        return dataclasses.replace(self, config=config)

    def init(self, rngs: nnx.Rngs) -> DiT:
        return DiT(self.dit, rngs=rngs)

    def trainable(self) -> Filter:
        return nnx.Param

    def start_from(self, model: DiT) -> None:
        pass

    def encode(self, batch: Batch) -> Batch:
        videos = {'high_res_BFHWC': 'z_high_BFHWC', 'low_res_BFHWC': 'z_low_BFHWC'}
        encoded = encode_videos(batch, videos, self.encoder)
        if 'z_low_BFHWC' not in encoded:
            raise ValueError('the clips have no low-quality twins: prepare them with latents.low_variants=1 or more')
        return encoded

    def draw(self, batch: Batch, keys_B: jax.Array) -> Draw:
        """Everything random of every row, each from the row's key; which row has which part of the noise-augmentation
        timesteps is a matter of the batch, and drawn from the first row's.
        """
        time_B, _, drop_B, index_B = _row_keys(keys_B)
        low, high = self.config.noise_augmentation_timesteps(latent_frames=batch['z_low_BFHWC'].shape[1])
        s_B = time_grids.stratified_integers(index_B, jax.random.fold_in(index_B[0], 1), low, high)
        draw = self.draw_at(batch, keys_B, time_grids.stratified_times(time_B, self.config.shift), s_B)
        kept_B = jax.vmap(jax.random.uniform)(drop_B) >= self.config.caption_dropout
        text = jnp.where(process.per_row(kept_B, draw.text_BLD), draw.text_BLD, 0)
        return draw._replace(text_BLD=text)

    def draw_at(
        self, batch: Batch, keys_B: jax.Array, t_B: jax.Array, noise_augmentation_timestep_B: jax.Array
    ) -> Draw:
        """A draw of these times, with the rows' own noise and all of their text."""
        z_low, z_high = batch['z_low_BFHWC'], batch['z_high_BFHWC']
        if z_low.shape != z_high.shape:
            raise ValueError(f'z_low is {z_low.shape} and z_high {z_high.shape}: upsample the low-res clip first')
        _, noise_B, _, _ = _row_keys(keys_B)
        return Draw(
            source_BFHWC=self.source(z_low, row_normal(noise_B, z_low.shape), noise_augmentation_timestep_B),
            data_BFHWC=self.scaled(z_high),
            text_BLD=self.text(batch),
            t_B=t_B,
            noise_augmentation_timestep_B=noise_augmentation_timestep_B,
        )

    def loss_of(self, model: DiT, draw: Draw, *, rules: Rules) -> tuple[jax.Array, Metrics]:
        """The loss of a given draw. Metrics: the loss of the rows in the upper and lower half of the distribution of t
        (each taken to be half of the batch, as in a stratified one of even size); root mean squares of (3).
        """
        x_t = process.interpolate(draw.source_BFHWC, draw.data_BFHWC, draw.t_B)  # (2)
        target = process.velocity(draw.source_BFHWC, draw.data_BFHWC)  # (3)
        predicted = self._velocity(
            model, x_t, 1000 * draw.t_B, draw.text_BLD, draw.noise_augmentation_timestep_B, rules
        )
        loss_B = jnp.mean((predicted - target) ** 2, axis=(1, 2, 3, 4))
        near_source_B = draw.t_B >= time_grids.shift_times(0.5, self.config.shift)
        return jnp.mean(loss_B), {
            'loss_near_source': 2 * jnp.mean(jnp.where(near_source_B, loss_B, 0)),
            'loss_near_data': 2 * jnp.mean(jnp.where(near_source_B, 0, loss_B)),
            'velocity_norm': jnp.sqrt(jnp.mean(predicted**2)),
            'target_norm': jnp.sqrt(jnp.mean(target**2)),
        }

    def sample(self, model: DiT, batch: Batch, key: jax.Array, *, rules: Rules) -> dict[str, jax.Array]:
        """`z_sample_BFHWC` as the VAE decodes it, beside the batch's own latents."""
        z_low = batch['z_low_BFHWC']
        source = self.source(z_low, row_normal(row_keys(key, 0, z_low.shape[0]), z_low.shape))
        x = self.transport(model, source, self.text(batch), rules=rules)
        latents = {name: value for name, value in batch.items() if name.startswith('z_')}
        return latents | {'z_sample_BFHWC': self.unscaled(x)}

    def source(
        self, z_low: jax.Array, noise: jax.Array, noise_augmentation_timestep_B: jax.Array | None = None
    ) -> jax.Array:
        """(1): the noised, scaled latents; `z_low` is not scaled. Without timesteps: all at the config's."""
        if noise_augmentation_timestep_B is None:
            noise_augmentation_timestep_B = jnp.full(z_low.shape[:1], self.config.noise_augmentation_timestep)
        sqrt_alphas = jnp.asarray(noise_schedules.sqrt_alphas_by_timestep())
        return process.add_noise(self.scaled(z_low), noise, sqrt_alphas[noise_augmentation_timestep_B])

    def transport(self, model: DiT, source: jax.Array, text_BLD: jax.Array, *, rules: Rules) -> jax.Array:
        """From a source to data (scaled latents, float32), with the config's sampler, grid and guidance."""
        config = self.config
        grid = time_grids.flow_times(config.num_steps, config.shift, config.numerics)
        state = source.astype(time_grids.STATE_DTYPES[config.numerics])
        velocity_fn = self.velocity_fn(model, text_BLD, rules=rules)
        return samplers.SAMPLERS[config.sampler].run(velocity_fn, state, grid).astype(jnp.float32)

    def velocity_fn(self, model: DiT, text_BLD: jax.Array, *, rules: Rules) -> guidance.FlowFn:
        """Our velocity, guided against all-zero text (model guide 6), at the config's noise-augmentation timestep."""

        def velocity(x: jax.Array, time: time_grids.Times, text_BLD: jax.Array) -> jax.Array:
            timestep_B = jnp.full(x.shape[:1], time.timestep)
            noise_augmentation_timestep_B = jnp.full(x.shape[:1], self.config.noise_augmentation_timestep)
            return self._velocity(model, x, timestep_B, text_BLD, noise_augmentation_timestep_B, rules)

        null, scale = jnp.zeros_like(text_BLD), self.config.guidance_scale
        if self.config.guidance_batched:
            return guidance.classifier_free_batched(velocity, text_BLD, null, scale, cond_first=True)
        cond_fn, null_fn = (functools.partial(velocity, text_BLD=text) for text in (text_BLD, null))
        return guidance.classifier_free(cond_fn, null_fn, scale)

    def text(self, batch: Batch) -> jax.Array:
        """The batch's text embeddings, or all-zero ones."""
        return text_or_zeros(batch, (batch['z_low_BFHWC'].shape[0], self.config.text_length, self.dit.text_dim))

    def scaled(self, z: jax.Array) -> jax.Array:
        """The VAE's latents as the network sees them, float32."""
        return self.config.scale_factor * z.astype(jnp.float32)

    def unscaled(self, x: jax.Array) -> jax.Array:
        """The inverse of `scaled`."""
        return x / self.config.scale_factor

    def _velocity(self, model, x, timestep_B, text_BLD, noise_augmentation_timestep_B, rules) -> jax.Array:
        """dx/dt in our time, float32: the official network predicts data - source, so this is where the sign flips."""
        embedded_B = time_grids.embedded_timestep(noise_augmentation_timestep_B, self.config.numerics)
        extra = (embedded_B,) if self.dit.embed_noise_augmentation_timestep else ()
        return -model(x, timestep_B, text_BLD, *extra, rules=rules).astype(jnp.float32)


def _row_keys(keys_B: jax.Array) -> jax.Array:
    """A row's keys of its t, its noise, its caption's dropout and its noise-augmentation timestep, (4, B)."""
    return jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 4))(keys_B), 1, 0)
