"""Figures that show whether stage 2 learns, where its plain loss does not: "training collapses early and the loss does
not show it" (FlashVideo's author).

Of every held-out clip, on fixed noise:

  loss_t/k       the loss where t is in the middle of the k-th tenth of its distribution; 0 is next to the data
  loss_noise/k   the loss where the noise-augmentation timestep is in the middle of the k-th tenth of its range
  loss_vs_copy   the loss over that of a predictor that gives the degraded clip's latents back
  loss_vs_mean   the loss over that of a predictor that gives the clip's mean latents

both predictors knowing the source, so that their errors are c (z_high - z_low) and c (z_high - mean), at any t. And of
every clip enhanced with the real sampler, in 8-bit pixels:

  psnr           to the truth, in dB; psnr_degraded is the degraded clip's, psnr_ceiling that of the truth after the VAE
  detail         mean gradient magnitude over that of the ceiling; detail_degraded is the degraded clip's
  flicker        change from frame to frame over the ceiling's; flicker_degraded is the degraded clip's
  energy         root mean square of the enhanced latents over that of z_high
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fv_jax.core.parallel_context import ParallelContext
from fv_jax.data.transforms import to_float, to_uint8
from fv_jax.diffusion import time_grids
from fv_jax.evaluation import metrics
from fv_jax.stages.frozen_vae import JittedVAE
from fv_jax.stages.latent_stage import EnhancementStage
from fv_jax.stages.noise import per_example_keys
from fv_jax.stages.protocol import Batch, evaluation_loss

TENTHS = 10
_STRIDE = (
    3  # the tenth of t number k meets the tenth of the noise number 3 k mod 10: ten pairs, each tenth of both once
)
_LEAST = 1e-6
_MOST_DB = 99.0  # of equal videos, whose PSNR has no end

Params = Any


@dataclasses.dataclass(frozen=True)
class Health:
    """figures: by name, means over the held-out clips. videos: (name, uint8 FHWC), degraded, enhanced and truth side by
    side.
    """

    figures: dict[str, float]
    videos: list[tuple[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class HealthCheck:
    """Measures the parameters of a run.

    stage, model_of: the stage, and what makes its network from parameters.
    batches: held-out ones, encoded; always the same.
    truths: their high-res videos (B, F, H, W, 3) in [-1, 1], where the held-out clips are video; None compares with the
      ceiling.
    to_host: brings an array that may be spread over chips into memory.
    """

    stage: EnhancementStage
    model_of: Callable[[Params], nnx.Module]
    vae: JittedVAE
    context: ParallelContext
    batches: Sequence[Batch]
    truths: Sequence[jax.Array | np.ndarray | None]
    key: jax.Array
    to_host: Callable[[jax.Array], np.ndarray] = np.asarray

    def __call__(self, params: Params) -> Health:
        rows, videos = [], []
        for i, batch in enumerate(self.batches):
            figures = self._losses(params, batch, i)
            seen, video = self._seen(params, batch, i)
            rows.append(figures | seen)
            videos.append((f'heldout_{i}', video))
        return Health({name: float(np.mean([row[name] for row in rows])) for name in rows[0]}, videos)

    def _losses(self, params: Params, batch: Batch, index: int) -> dict[str, float]:
        w, s = probes(self.stage, batch['z_low_BFHWC'].shape[1])
        t = time_grids.shift_times(w, self.stage.config.shift)
        found = [jax.device_get(self._probe(params, batch, index, t[k], s[k])) for k in range(TENTHS)]
        losses = np.array([float(loss) for loss, _, _ in found])
        figures = {f'loss_t/{k}': losses[k] for k in range(TENTHS)}
        low, high = self.stage.noise_augmentation_timesteps(batch['z_low_BFHWC'].shape[1])
        if low < high:
            figures |= {f'loss_noise/{k * _STRIDE % TENTHS}': losses[k] for k in range(TENTHS)}
        _, degraded, mean = (float(value) for value in found[0])
        return figures | {
            'loss_vs_copy': losses.mean() / max(degraded, _LEAST),
            'loss_vs_mean': losses.mean() / max(mean, _LEAST),
        }

    @functools.cached_property
    def _probe(self) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
        """(params, batch, its index, t, noise-augmentation timestep) -> losses: the network's, the two predictors'."""

        @jax.jit
        def probe(params, batch, index, t, noise_augmentation_timestep):
            rows = batch['z_low_BFHWC'].shape[0]
            keys_B = per_example_keys(self.key, index, rows)
            times = jnp.full(rows, t), jnp.full(rows, noise_augmentation_timestep)
            noised = self.stage.noise_at(batch, keys_B, *times)
            loss, _ = evaluation_loss(self.stage, self.model_of(params), noised, context=self.context)
            data = noised.data_BFHWC
            degraded = jnp.mean((data - self.stage.scale_latents(batch['z_low_BFHWC'])) ** 2)
            mean = jnp.mean((data - data.mean(axis=(1, 2, 3), keepdims=True)) ** 2)
            return loss, degraded, mean

        return probe

    @functools.cached_property
    def _sample(self) -> Callable[[Params, Batch, jax.Array], jax.Array]:
        def sample(params, batch, key):
            return self.stage.sample(self.model_of(params), batch, key, context=self.context)['z_sample_BFHWC']

        return jax.jit(sample)

    @functools.cached_property
    def _references(self) -> list[dict[str, np.ndarray]]:
        """Decodes once, for every batch's first clip: the degraded clip and the VAE's ceiling, beside the truth."""
        found = []
        for batch, truth in zip(self.batches, self.truths, strict=True):
            degraded, ceiling = (self._decoded(batch[name]) for name in ('z_low_BFHWC', 'z_high_BFHWC'))
            seen = ceiling if truth is None else to_uint8(self.to_host(truth)[0])
            found.append({'degraded': degraded, 'ceiling': ceiling, 'truth': seen})
        return found

    def _seen(self, params: Params, batch: Batch, index: int) -> tuple[dict[str, float], np.ndarray]:
        """Figures of the first clip of a batch in pixels, and the video that shows it."""
        z = self._sample(params, batch, jax.random.fold_in(self.key, index))
        seen = self._references[index] | {'enhanced': self._decoded(z)}
        figures = compared(seen) | {'energy': _rms(z) / max(_rms(batch['z_high_BFHWC']), _LEAST)}
        return figures, np.concatenate([seen[name] for name in ('degraded', 'enhanced', 'truth')], axis=2)

    def _decoded(self, z_BFHWC: jax.Array) -> np.ndarray:
        """The first clip. All are decoded: over a mesh, rows stay where they are."""
        return to_uint8(self.to_host(self.vae.video(z_BFHWC))[0].astype(np.float32))


def probes(stage: EnhancementStage, latent_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the loss is measured: w before its shift, in the middle of every tenth, from the data on, and the source
    timesteps that go with them.
    """
    middle = (np.arange(TENTHS) + 0.5) / TENTHS
    low, high = stage.noise_augmentation_timesteps(latent_frames)
    s = np.rint(low + (high - low) * middle[np.arange(TENTHS) * _STRIDE % TENTHS]).astype(np.int32)
    return middle.astype(np.float32), s


def compared(seen: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The figures in pixels, from the uint8 videos `enhanced`, `degraded`, `ceiling` and `truth`."""
    seen = {name: to_float(video) for name, video in seen.items()}
    detail = max(metrics.detail(seen['ceiling']), _LEAST)
    flicker = max(metrics.flicker(seen['ceiling']), _LEAST)
    return {
        'psnr': min(metrics.psnr(seen['enhanced'], seen['truth']), _MOST_DB),
        'psnr_degraded': min(metrics.psnr(seen['degraded'], seen['truth']), _MOST_DB),
        'psnr_ceiling': min(metrics.psnr(seen['ceiling'], seen['truth']), _MOST_DB),
        'detail': metrics.detail(seen['enhanced']) / detail,
        'detail_degraded': metrics.detail(seen['degraded']) / detail,
        'flicker': metrics.flicker(seen['enhanced']) / flicker,
        'flicker_degraded': metrics.flicker(seen['degraded']) / flicker,
    }


def _rms(x: jax.Array) -> float:
    return float(jnp.sqrt(jnp.mean(x.astype(jnp.float32) ** 2)))
