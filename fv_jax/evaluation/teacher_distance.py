"""Held-out diagnostics of a flow map: how far its samples are from those of its teacher, from the same noise.

Beside those of `diagnostics` in pixels, of a sample by the configured number of evaluations, for n evaluations:

  psnr_teacher_n    to the teacher's sample, in dB
  lpips_teacher_n   LPIPS AlexNet to it; where its weights are installed
  flicker_n         change from frame to frame over the teacher's; none of images
  energy_n          root mean square of the latents over that of the teacher's
  energy_t/k        the same of the states at the k-th knot from the source, of a sample by all knots

psnr_of_teacher is the teacher's, to the ground truth. The held-out loss is that of the velocity, to the teacher's.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fv_jax.data.transforms import to_float
from fv_jax.diffusion.trajectory import Trajectory
from fv_jax.evaluation import full_reference, perceptual, temporal
from fv_jax.evaluation.diagnostics import MAX_PSNR, Params, SuperResDiagnostics, rms
from fv_jax.evaluation.weight_files import MissingPackageError
from fv_jax.stages.noise import heldout_keys, per_example_normal
from fv_jax.stages.protocol import Batch
from fv_jax.training.heldout import HeldoutBatch

COUNTS = (1, 2, 5)  # evaluations, as far as there are knots
_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class TeacherDistance(SuperResDiagnostics):
    """Computes the diagnostics of a distilled stage (`Stage.is_distilled`); the attributes are those of its base."""

    @property
    def counts(self) -> Sequence[int]:
        """The numbers of evaluations that are measured."""
        knots = self.stage.config.num_knots
        return sorted({n for n in COUNTS if n < knots} | {knots})

    def _losses(self, params: Params, heldout: HeldoutBatch) -> dict[str, float]:
        """Returns nothing: the velocity of the data, which the losses of deciles are measured by, is not learned."""
        return {}

    def _pixel_metrics(
        self, params: Params, heldout: HeldoutBatch, references: dict[str, np.ndarray]
    ) -> Iterator[tuple[dict[str, float], np.ndarray]]:
        z_teacher, z_samples, energies = self._compare(params, *heldout)
        teacher = self._decode(z_teacher, heldout.num_clips)
        samples = {n: self._decode(z, heldout.num_clips) for n, z in z_samples.items()}
        energies = {name: self.to_host(values_B) for name, values_B in energies.items()}
        for i, (metrics, _) in enumerate(super()._pixel_metrics(params, heldout, references)):
            metrics |= {name: float(values_B[i]) for name, values_B in energies.items()}
            metrics['psnr_of_teacher'] = _psnr(teacher[i], references['truth'][i])
            for n, videos in samples.items():
                metrics |= {f'{name}_{n}': value for name, value in self._distances(videos[i], teacher[i]).items()}
            shown = [references['degraded'][i], *(videos[i] for videos in samples.values()), teacher[i]]
            yield metrics, np.concatenate([*shown, references['truth'][i]], axis=2)

    def _distances(self, video: np.ndarray, teacher: np.ndarray) -> dict[str, float]:
        found = {'psnr_teacher': _psnr(video, teacher)}
        video, teacher = to_float(video), to_float(teacher)
        if self._lpips is not None and min(video.shape[1:3]) >= perceptual.ALEXNET_MIN_SIDE:
            found['lpips_teacher'] = float(np.mean(perceptual.lpips(video, teacher, self._lpips)))
        if len(video) > 1:
            change = max(float(np.mean(temporal.flicker(teacher))), _EPSILON)
            found['flicker'] = float(np.mean(temporal.flicker(video))) / change
        return found

    @functools.cached_property
    def _lpips(self) -> perceptual.LPIPSWeights | None:
        try:
            return perceptual.load_lpips('alexnet')
        except MissingPackageError:
            return None

    @functools.cached_property
    def _compare(self) -> Callable[[Params, Batch, jax.Array], tuple]:
        """(params, batch, clips) -> unscaled latents of the teacher, of samples by n, and energies by name, (B,)."""
        stage, settings = self.stage, self.stage.sampler_config()

        def compare(params, batch, clips_B):
            model, z_low, text = self.make_model(params), batch['z_low_BFHWC'], stage.text(batch)
            # The noise of `Stage.sample`.
            source = stage.make_source(z_low, per_example_normal(heldout_keys(self.key, clips_B), z_low.shape))
            of_teacher = stage.teacher.trajectory(stage.teacher_of(model), source, text, context=self.context)
            states = _states(of_teacher)[:: stage.config.teacher_substeps]
            samples, energies = {}, {}
            for n in self.counts:
                sampled = stage.with_sampler_config(dataclasses.replace(settings, num_steps=n))
                own = _states(sampled.trajectory(model, source, text, context=self.context))
                samples[n] = stage.unscale_latents(own[-1])
                energies[f'energy_{n}'] = rms(own[-1]) / jnp.maximum(rms(states[-1]), _EPSILON)
            for k in range(1, len(states)):
                energies[f'energy_t/{k}'] = rms(own[k]) / jnp.maximum(rms(states[k]), _EPSILON)
            return stage.unscale_latents(states[-1]), samples, energies

        return jax.jit(compare)


def _states(trajectory: Trajectory) -> jax.Array:
    """Returns all states of a trajectory of a flow, from the first to the last, (n + 1, B, ...), float32."""

    def advance(state: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
        state = trajectory.advance(state, i)
        return state, state

    _, states = jax.lax.scan(advance, trajectory.start, jnp.arange(trajectory.num_steps))
    return jnp.concatenate([trajectory.start[None], states]).astype(jnp.float32)


def _psnr(video: np.ndarray, other: np.ndarray) -> float:
    psnr = full_reference.psnr(to_float(video), to_float(other))
    return float(np.mean(np.minimum(psnr, MAX_PSNR)))
