"""When a run is saved, and what happens when it cannot be."""

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from fv_jax.checkpoints.manager import CheckpointError, Checkpoints
from fv_jax.training import state
from fv_jax.training.config import LoopConfig
from fv_jax.training.progress import PROGRESS, Progress

log = logging.getLogger(__name__)


@dataclasses.dataclass
class SavePolicy:
    """Saves a run's state beside its steps. config: the run's, as a dict. votes: which of two things is so anywhere."""

    checkpoints: Checkpoints
    loop: LoopConfig
    config: Mapping[str, Any]
    digests: Mapping[str, str]
    votes: Callable[[bool, bool], jax.Array | np.ndarray]
    failed: int = 0  # saves in a row
    _last: float = dataclasses.field(default_factory=lambda: time.monotonic())  # no clock that can be set back
    _step: int | None = None  # what is being saved
    _vote: jax.Array | np.ndarray | None = None

    def due(self) -> bool:
        """Whether it is time by the clock."""
        minutes = self.loop.save_minutes
        return minutes > 0 and time.monotonic() - self._last >= 60 * minutes

    def start(self, step: int, train_state: state.TrainState, progress: Progress) -> None:
        """Returns when the state is copied, and may be donated. Waits for the save before, and raises as `wait`."""
        self.wait()
        self._last = time.monotonic()
        more = {PROGRESS: progress.to_dict()}
        self.checkpoints.start(step, state.to_items(train_state), self.config, self.digests, more)
        self._step, self._vote = step, None

    def look(self) -> None:
        """To be called after every step, by all processes: says what has become of the save, as soon as it is known to
        all of them. Nobody waits: they are asked at one step and answer at the next. Raises as `wait`.
        """
        if self._step is None:
            return
        before, self._vote = self._vote, self.votes(*self.checkpoints.poll())
        if before is None:
            return
        at_work, failed = np.asarray(before)
        if failed or not at_work:
            self.wait()

    def wait(self) -> bool:
        """Returns when nothing is being saved any more; whether the last save could be. All processes call it.

        Raises CheckpointError when it could not too often in a row.
        """
        if self._step is None:
            return not self.failed
        step, self._step = self._step, None
        try:
            self.checkpoints.wait()
        except CheckpointError as problem:
            self.failed += 1
            # At the end of a run there is nothing to go on with.
            if self.failed > self.loop.max_failed_saves or step >= self.loop.num_steps:
                raise
            log.warning(
                f'{problem}. The run goes on; {self.failed} save(s) in a row have failed, and after '
                f'{self.loop.max_failed_saves} it stops (config.loop.max_failed_saves). Make room now'
            )
            return False
        self.failed = 0
        log.info(f'saved step {step}')
        return True

    def __enter__(self) -> 'SavePolicy':
        return self

    def __exit__(self, kind: type | None, error: object, traceback: object) -> None:
        """Whatever ends the run, what is being written is written to the end."""
        self.checkpoints.close()
        if self._step is not None:
            _, failed = self.checkpoints.poll()
            if failed:
                log.warning(f'step {self._step} could not be saved')
            else:
                log.info(f'saved step {self._step}')
