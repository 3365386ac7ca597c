"""Held-out diagnostics of stage 2 that its plain loss does not show: "training collapses early and the loss does not
show it" (FlashVideo's author).

For every held-out clip, on fixed noise:

  loss_t/k       the loss where t is in the middle of the k-th tenth of its distribution; 0 is next to the data
  loss_noise/k   the loss where the noise-augmentation timestep is in the middle of the k-th tenth of its range
  loss_vs_copy   the loss over that of a predictor that gives the degraded clip's latents back
  loss_vs_mean   the loss over that of a predictor that gives the clip's mean latents

where both predictors know the noised low-res latents, so that their errors are c (z_high - z_low) and
c (z_high - mean), at any t. For every clip enhanced with the sampler, in 8-bit pixels:

  psnr, ssim     to the ground truth, PSNR in dB; psnr_degraded is the degraded clip's, psnr_ceiling that of the ground
                 truth after encoding and decoding
  sharpness      standard deviation of the Laplacian over that of the ceiling; sharpness_degraded is the degraded clip's
  flicker        change from frame to frame over the ceiling's; flicker_degraded is the degraded clip's; none of images
  energy         root mean square of the enhanced latents over that of z_high
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fv_jax.core.parallel_context import ParallelContext
from fv_jax.data.transforms import to_float, to_uint8
from fv_jax.diffusion import time_grids
from fv_jax.evaluation import full_reference, no_reference, temporal
from fv_jax.stages.frozen_vae import JittedVAE
from fv_jax.stages.latent_stage import EnhancementStage
from fv_jax.stages.noise import heldout_keys
from fv_jax.stages.protocol import Batch, evaluation_loss
from fv_jax.training.heldout import HeldoutBatch

TENTHS = 10
# The k-th tenth of t is paired with the (3 k mod 10)-th tenth of the noise range: ten pairs, each tenth of both once.
_STRIDE = 3
_EPSILON = 1e-6
MAX_PSNR = 99.0  # dB, for equal videos, whose PSNR is infinite

Params = Any


@dataclasses.dataclass(frozen=True)
class DiagnosticResult:
    """What diagnostics return.

    Attributes:
      metrics: means over the held-out clips, by name.
      videos: (name, uint8 FHWC): degraded, enhanced and ground truth side by side.
    """

    metrics: dict[str, float]
    videos: list[tuple[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class SuperResDiagnostics:
    """Computes the diagnostics of parameters of a run on fixed held-out batches.

    Attributes:
      stage: the stage.
      make_model: builds the network from its parameters.
      vae: decodes latents.
      context: how activations are sharded and which attention kernel runs.
      batches: the held-out batches, encoded.
      truths: the ground truth of each batch (B, F, H, W, 3) in [-1, 1]; None compares with the ceiling.
      key: of the fixed noise.
      to_host: copies an array, which may be sharded over devices, to the host.
    """

    stage: EnhancementStage
    make_model: Callable[[Params], nnx.Module]
    vae: JittedVAE
    context: ParallelContext
    batches: Sequence[HeldoutBatch]
    truths: Sequence[jax.Array | np.ndarray | None]
    key: jax.Array
    to_host: Callable[[jax.Array], np.ndarray] = np.asarray

    def __call__(self, params: Params) -> DiagnosticResult:
        clips, videos = [], []
        for batch, references in zip(self.batches, self._references, strict=True):
            losses = self._losses(params, batch)
            for pixels, video in self._pixel_metrics(params, batch, references):
                videos.append((f'heldout_{len(clips)}', video))
                clips.append(losses | pixels)
        return DiagnosticResult({name: float(np.mean([clip[name] for clip in clips])) for name in clips[0]}, videos)

    def _losses(self, params: Params, heldout: HeldoutBatch) -> dict[str, float]:
        batch = heldout.arrays
        w, s = probe_points(self.stage, batch['z_low_BFHWC'].shape[1])
        t = time_grids.shift_times(w, self.stage.config.shift)
        probed = [jax.device_get(self._probe(params, *heldout, t[k], s[k])) for k in range(TENTHS)]
        losses = np.array([float(loss) for loss, _, _ in probed])
        found = {f'loss_t/{k}': losses[k] for k in range(TENTHS)}
        low, high = self.stage.noise_augmentation_timesteps(batch['z_low_BFHWC'].shape[1])
        if low < high:
            found |= {f'loss_noise/{k * _STRIDE % TENTHS}': losses[k] for k in range(TENTHS)}
        _, degraded, mean = (float(value) for value in probed[0])
        return found | {
            'loss_vs_copy': losses.mean() / max(degraded, _EPSILON),
            'loss_vs_mean': losses.mean() / max(mean, _EPSILON),
        }

    @functools.cached_property
    def _probe(self) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
        """(params, batch, clips, t, noise-augmentation timestep) -> losses: the network's, the two predictors'."""

        @jax.jit
        def probe(params, batch, clips_B, t, noise_augmentation_timestep):
            times = jnp.full(clips_B.shape, t), jnp.full(clips_B.shape, noise_augmentation_timestep)
            noised = self.stage.noise_at(batch, heldout_keys(self.key, clips_B), *times)
            loss, _ = evaluation_loss(self.stage, self.make_model(params), noised, context=self.context)
            data = noised.data_BFHWC
            degraded = jnp.mean((data - self.stage.scale_latents(batch['z_low_BFHWC'])) ** 2)
            mean = jnp.mean((data - data.mean(axis=(1, 2, 3), keepdims=True)) ** 2)
            return loss, degraded, mean

        return probe

    @functools.cached_property
    def _sample(self) -> Callable[[Params, Batch, jax.Array], jax.Array]:
        def sample(params, batch, clips_B):
            keys_B = heldout_keys(self.key, clips_B)
            return self.stage.sample(self.make_model(params), batch, keys_B, context=self.context)['z_sample_BFHWC']

        return jax.jit(sample)

    @functools.cached_property
    def _references(self) -> list[dict[str, np.ndarray]]:
        """Of every batch: its degraded clips and their ceiling, decoded once, and the ground truth; uint8 BFHWC."""
        found = []
        for heldout, truth in zip(self.batches, self.truths, strict=True):
            names = 'z_low_BFHWC', 'z_high_BFHWC'
            degraded, ceiling = (self._decode(heldout.arrays[name], heldout.num_clips) for name in names)
            shown = ceiling if truth is None else to_uint8(self.to_host(truth)[: heldout.num_clips])
            found.append({'degraded': degraded, 'ceiling': ceiling, 'truth': shown})
        return found

    def _pixel_metrics(
        self, params: Params, heldout: HeldoutBatch, references: dict[str, np.ndarray]
    ) -> Iterator[tuple[dict[str, float], np.ndarray]]:
        """Enhances the clips of a batch; yields the pixel metrics of each and the video that shows it."""
        z = self._sample(params, *heldout)
        enhanced = self._decode(z, heldout.num_clips)
        energy = np.asarray(self.to_host(rms(z) / jnp.maximum(rms(heldout.arrays['z_high_BFHWC']), _EPSILON)))
        for i in range(heldout.num_clips):
            videos = {name: array[i] for name, array in references.items()} | {'enhanced': enhanced[i]}
            shown = np.concatenate([videos[name] for name in ('degraded', 'enhanced', 'truth')], axis=2)
            yield pixel_metrics(videos) | {'energy': float(energy[i])}, shown

    def _decode(self, z_BFHWC: jax.Array, num_clips: int) -> np.ndarray:
        """Decodes the first clips. The whole batch is decoded, as its examples may be sharded over devices."""
        return to_uint8(self.to_host(self.vae.decode(z_BFHWC))[:num_clips].astype(np.float32))


def probe_points(stage: EnhancementStage, latent_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns where the loss is evaluated, a pair for each tenth of the distribution of t.

    Args:
      stage: the stage.
      latent_frames: of the clips; the range of the noise augmentation depends on it.

    Returns:
      t before its shift, float32 (10,), in the middle of every tenth, ascending from the data; and the
      noise-augmentation timesteps paired with them, int32 (10,).
    """
    middle = (np.arange(TENTHS) + 0.5) / TENTHS
    low, high = stage.noise_augmentation_timesteps(latent_frames)
    s = np.rint(low + (high - low) * middle[np.arange(TENTHS) * _STRIDE % TENTHS]).astype(np.int32)
    return middle.astype(np.float32), s


def pixel_metrics(videos: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Computes the metrics in pixels of the uint8 videos (FHWC) `enhanced`, `degraded`, `ceiling` and `truth`.

    They are those of `suite` that need no weights, means over frames.
    """
    videos = {name: to_float(video) for name, video in videos.items()}
    found = {}
    for name, suffix in (('enhanced', ''), ('degraded', '_degraded'), ('ceiling', '_ceiling')):
        psnr = full_reference.psnr(videos[name], videos['truth'])
        found[f'psnr{suffix}'] = float(np.mean(np.minimum(psnr, MAX_PSNR)))
        found[f'ssim{suffix}'] = float(np.mean(full_reference.ssim(videos[name], videos['truth'])))
    relative = {'sharpness': _laplacian}
    if len(videos['truth']) > 1:
        relative['flicker'] = temporal.flicker
    for metric, per_frame in relative.items():
        ceiling = max(float(np.mean(per_frame(videos['ceiling']))), _EPSILON)
        found[metric] = float(np.mean(per_frame(videos['enhanced']))) / ceiling
        found[f'{metric}_degraded'] = float(np.mean(per_frame(videos['degraded']))) / ceiling
    return found


def _laplacian(video: np.ndarray) -> np.ndarray:
    """Computes the standard deviation of the Laplacian of every frame."""
    return np.sqrt(no_reference.sharpness(video))


def rms(x: jax.Array) -> jax.Array:
    """Returns the root mean square of every example, (B,)."""
    return jnp.sqrt(jnp.mean(x.astype(jnp.float32) ** 2, axis=tuple(range(1, x.ndim))))
