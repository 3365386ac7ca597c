"""The anomaly guard: steps whose loss or gradient is not finite, and loss spikes.

The step itself leaves the state alone where its numbers are not finite (`step.train_step`). Here the host, which reads
a step's metrics while the next one runs, counts them and says when it is enough.
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

WINDOW = 100  # good losses that a spike is measured by
LEAST = 20  # of them; before, there are no spikes
LEAST_SPREAD = 0.01  # of the median: losses that are all alike make no spike of the next
MAD_SIGMAS = 1.4826  # standard deviations of a Gaussian to one median absolute deviation


@dataclasses.dataclass(frozen=True)
class BadStepsConfig:
    """What happens when a step's loss or gradient is not finite. Its update is never done.

    in_a_row: so many of them are enough.
    then: 'rollback' goes on from the newest checkpoint, with clips and noise drawn anew; 'stop' ends the run.
    max_rollbacks: of a run. One more ends it.
    spike_sigmas: a loss so many robust standard deviations above the median of the last good ones is said and counted
      as a spike; its update is done. 0 looks for none.
    bundles: how many bad steps and spikes are kept for `--replay`, each with the parameters; 0 keeps none.
    """

    in_a_row: int = 3
    then: Literal['rollback', 'stop'] = 'rollback'
    max_rollbacks: int = 2
    spike_sigmas: float = 12.0
    bundles: int = 2

    def __post_init__(self):
        check_range(self, 'in_a_row', low=1)
        check_range(self, 'max_rollbacks', 'spike_sigmas', 'bundles', low=0)


@dataclasses.dataclass(frozen=True)
class Anomaly:
    """reason: what is wrong, in words. enough: the run cannot go on like this."""

    kind: Literal['bad step', 'spike']
    reason: str
    enough: bool = False


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
    """Looks at every step's metrics, in order."""

    def __init__(self, config: BadStepsConfig, progress: Progress):
        self._config, self._progress = config, progress
        self.in_a_row = 0  # bad steps, up to the last one looked at

    def look(self, values: Mapping[str, float]) -> Anomaly | None:
        """What is wrong with a step, counted in the progress. `values` are `train_step`'s metrics."""
        progress = self._progress
        wrong = [f'{name} is {values[name]}' for name in ('loss', 'grad_norm') if not math.isfinite(values[name])]
        # An update that overflows is seen too late to be left out.
        broken = [
            f'{name} is {values[name]}' for name in ('update_norm', 'param_norm') if not math.isfinite(values[name])
        ]
        if wrong or broken:
            self.in_a_row += 1
            progress.bad_steps += 1
            return Anomaly('bad step', (wrong or broken)[0], bool(broken) or self.in_a_row >= self._config.in_a_row)
        self.in_a_row = 0
        reason = self._spike(values['loss'])
        if reason is not None:
            progress.spikes += 1
            return Anomaly('spike', reason)
        progress.losses = [*progress.losses, values['loss']][-WINDOW:]
        return None

    def rolled_back(self) -> None:
        """Begins anew."""
        self.in_a_row = 0
        self._progress.order += 1

    def _spike(self, loss: float) -> str | None:
        losses, sigmas = self._progress.losses, self._config.spike_sigmas
        if not sigmas or len(losses) < LEAST:
            return None
        median = statistics.median(losses)
        spread = MAD_SIGMAS * statistics.median(abs(value - median) for value in losses)
        spread = max(spread, LEAST_SPREAD * abs(median))
        if not loss > median + sigmas * spread or not loss > median:
            return None
        return f'loss {loss:.4g} beside a median of {median:.4g} and a spread of {spread:.2g}'
