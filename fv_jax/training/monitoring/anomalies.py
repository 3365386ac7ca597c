"""The anomaly guard: detects steps with a non-finite loss or gradient, and loss spikes.

A step whose loss or gradient is not finite leaves the state unchanged on the device (`step.train_step`). The host reads
the metrics of a step while the next one runs; here it counts such steps and decides when the run must be rolled back.
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping
from typing import Literal

import jax

from fv_jax.core.config import check_range
from fv_jax.stages.protocol import Batch
from fv_jax.training.progress import Progress
from fv_jax.training.state import TrainState

WINDOW = 100  # number of good losses whose median and spread define a spike
MIN_LOSSES = 20  # with fewer of them no spike is detected
MIN_RELATIVE_SPREAD = 0.01  # of the median: nearly equal losses would make a spike of any small change
SIGMAS_PER_MAD = 1.4826  # standard deviations of a Gaussian per median absolute deviation


@dataclasses.dataclass(frozen=True)
class BadStepsConfig:
    """What happens when a step's loss or gradient is not finite. The update of such a step is always skipped.

    Attributes:
      max_consecutive: number of consecutive bad steps at which `on_limit` applies.
      on_limit: 'rollback' continues from the newest checkpoint, with another data order and new noise; 'stop' ends the
        run.
      max_rollbacks: number of rollbacks in a run after which it is ended instead.
      spike_sigmas: a loss this many robust standard deviations above the median of the last good losses is reported
        and counted as a spike; its update is applied. 0 detects none.
      max_dumps: number of bad steps and spikes of a run that are stored for `--replay`, each with the parameters.
    """

    max_consecutive: int = 3
    on_limit: Literal['rollback', 'stop'] = 'rollback'
    max_rollbacks: int = 2
    spike_sigmas: float = 12.0
    max_dumps: int = 2

    def __post_init__(self):
        check_range(self, 'max_consecutive', low=1)
        check_range(self, 'max_rollbacks', 'spike_sigmas', 'max_dumps', low=0)


@dataclasses.dataclass(frozen=True)
class Anomaly:
    """What is wrong with a step.

    Attributes:
      kind: a bad step has a non-finite metric; a spike has a finite loss far above the last ones.
      reason: one line with the metric and its value.
      needs_rollback: whether the run cannot continue from its current state.
    """

    kind: Literal['bad step', 'spike']
    reason: str
    needs_rollback: bool = False


@dataclasses.dataclass(frozen=True)
class BadStep:
    """A step with an anomaly, as it is stored for a replay.

    Attributes:
      step: counted from 1.
      metrics: what `train_step` returned.
      batch: encoded. key: what the noise of its examples was folded from.
      state: after the step, or after the next one where that had been dispatched already.
    """

    step: int
    anomaly: Anomaly
    metrics: dict[str, float]
    batch: Batch
    key: jax.Array
    state: TrainState


class AnomalyGuard:
    """Checks the metrics of every step, in order, and keeps the counts in the run's progress."""

    def __init__(self, config: BadStepsConfig, progress: Progress):
        self._config, self._progress = config, progress
        self.consecutive = 0  # bad steps up to the last one checked

    def check(self, metrics: Mapping[str, float]) -> Anomaly | None:
        """Returns what is wrong with a step, or None, and counts it. `metrics` are those of `train_step`."""
        progress = self._progress
        skipped = _not_finite(metrics, 'loss', 'grad_norm')
        # An update that overflows is known only after it was applied: the parameters are lost.
        applied = _not_finite(metrics, 'update_norm', 'param_norm')
        if skipped or applied:
            self.consecutive += 1
            progress.bad_steps += 1
            needs_rollback = bool(applied) or self.consecutive >= self._config.max_consecutive
            return Anomaly('bad step', (skipped or applied)[0], needs_rollback)
        self.consecutive = 0
        reason = self._spike(metrics['loss'])
        if reason is not None:
            progress.spikes += 1
            return Anomaly('spike', reason)
        progress.losses = [*progress.losses, metrics['loss']][-WINDOW:]
        return None

    def reset_after_rollback(self) -> None:
        """Resets the count of consecutive bad steps, and counts the rollback."""
        self.consecutive = 0
        self._progress.num_rollbacks += 1

    def _spike(self, loss: float) -> str | None:
        losses, sigmas = self._progress.losses, self._config.spike_sigmas
        if not sigmas or len(losses) < MIN_LOSSES:
            return None
        median = statistics.median(losses)
        spread = SIGMAS_PER_MAD * statistics.median(abs(value - median) for value in losses)
        spread = max(spread, MIN_RELATIVE_SPREAD * abs(median))
        if not loss > median + sigmas * spread:
            return None
        return f'loss {loss:.4g}; the last losses have a median of {median:.4g} and a spread of {spread:.2g}'


def _not_finite(metrics: Mapping[str, float], *names: str) -> list[str]:
    return [f'{name} is {metrics[name]}' for name in names if not math.isfinite(metrics[name])]
