"""Evaluation inside a training run: the held-out loss, samples, and the metrics of the collapse monitor."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import numpy as np

from fv_jax.core.parallel_context import ParallelContext
from fv_jax.stages.protocol import Stage
from fv_jax.training.heldout import HeldoutBatch
from fv_jax.training.monitoring.collapse import CollapseError, CollapseMonitor, CollapseMonitorConfig
from fv_jax.training.monitoring.metric_writer import MetricWriter, NoMetrics, format_eval_line, format_health_line
from fv_jax.training.progress import Progress
from fv_jax.training.state import ModelDef, Params
from fv_jax.training.step import eval_step, sample_step

Video = tuple[str, np.ndarray]  # name, uint8 (F, H, W, 3)


class Measured(Protocol):
    """What a health check returns: metrics by name, and videos."""

    metrics: dict[str, float]
    videos: Sequence[Video]


@dataclasses.dataclass(frozen=True)
class Validation:
    """What is evaluated.

    Attributes:
      batches: encoded held-out batches, the same at every evaluation.
      show: turns what `Stage.sample` returns into videos for the writer.
      fps: frames per second of those videos.
      health: computes further metrics of parameters, and videos in place of `show`'s; None for stages without any.
    """

    batches: Sequence[HeldoutBatch]
    show: Callable[[dict[str, jax.Array]], Sequence[Video]]
    fps: float = 24.0
    health: Callable[[Params], Measured] | None = None


class Validator:
    """Evaluates parameters during training and writes the results."""

    def __init__(
        self,
        validation: Validation,
        stage: Stage,
        network: ModelDef,
        context: ParallelContext,
        key: jax.Array,
        writer: MetricWriter | NoMetrics,
        monitor: CollapseMonitorConfig,
        progress: Progress,
    ):
        """Compiles nothing yet.

        Args:
          key: of the noise and times, which are the same at every evaluation.
          monitor: limits of the health check's metrics.
          progress: has the best losses and the largest update; updated in place.
        """
        self._validation, self._key, self._writer, self._progress = validation, key, writer, progress
        self._eval_step, self._sample_step = eval_step(stage, network, context), sample_step(stage, network, context)
        self._monitor, self._stop = CollapseMonitor(monitor, progress.best), monitor.stop

    def evaluate(self, step: int, params: Params, heartbeat: Callable[[], None]) -> None:
        """Writes the metrics `eval/...` and `health/...` and videos of these inference parameters.

        Args:
          step: of the training run.
          params: what is sampled with, the moving average where there is one.
          heartbeat: called after every batch, so that a long evaluation does not look like a stall.

        Raises CollapseError if the collapse monitor reports a fault and the run is configured to stop then.
        """
        losses = []
        batches = self._validation.batches
        for batch in batches:
            losses.append(self._eval_step(params, batch.arrays, self._key, batch.clips))
            heartbeat()
        names = ['loss', *(name for name in losses[0] if name != 'loss')]
        weights = [batch.num_clips for batch in batches]
        means = {f'eval/{n}': float(np.average([float(each[n]) for each in losses], weights=weights)) for n in names}
        self._writer.scalars(step, means, format_eval_line(step, means))
        if self._validation.health is None:
            samples = self._sample_step(params, batches[0].arrays, self._key, batches[0].clips)
            self._write_videos(step, self._validation.show(samples))
            return
        measured = self._validation.health(params)
        self._write_videos(step, measured.videos)
        self._check_health(step, measured.metrics | {'update_ratio': self._progress.update_ratio})
        self._progress.update_ratio = 0.0

    def _write_videos(self, step: int, videos: Sequence[Video]) -> None:
        for name, frames in videos:
            self._writer.video(step, name, frames, self._validation.fps)

    def _check_health(self, step: int, figures: dict[str, float]) -> None:
        violations = self._monitor.check(step, figures)
        row = {f'health/{name}': value for name, value in figures.items()} | {
            'health/collapse_warnings': float(len(violations))
        }
        self._writer.scalars(step, row, format_health_line(step, figures, violations))
        if violations and self._stop:
            raise CollapseError(f'step {step}: {violations[0]}; earlier checkpoints are kept')
