"""The save policy: when a run is saved, and what happens when a save fails."""

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from fv_jax.checkpoints.errors import CheckpointError
from fv_jax.checkpoints.manager import Checkpoints
from fv_jax.training import state
from fv_jax.training.config import LoopConfig
from fv_jax.training.progress import PROGRESS, Progress

log = logging.getLogger(__name__)


@dataclasses.dataclass
class SavePolicy:
    """Saves a run's state asynchronously, and tolerates a number of failed saves.

    Attributes:
      config: of the run.
      digests: fingerprints of the networks that made its data.
      any_host: two flags of this process -> which of them is set in any process; all processes call it alike.
      check_lock: raises CheckpointError where this run no longer holds its work directory (`run_lock`).
      failed: number of consecutive failed saves.
    """

    checkpoints: Checkpoints
    loop: LoopConfig
    config: Mapping[str, Any]
    digests: Mapping[str, str]
    any_host: Callable[[bool, bool], jax.Array | np.ndarray]
    check_lock: Callable[[], None] = lambda: None
    failed: int = 0
    _last: float = dataclasses.field(default_factory=lambda: time.monotonic())  # a clock that cannot be set back
    _step: int | None = None  # of the save in progress
    _flags: jax.Array | np.ndarray | None = None

    def is_due(self) -> bool:
        """Returns whether `loop.save_minutes` have passed since the last save."""
        minutes = self.loop.save_minutes
        return minutes > 0 and time.monotonic() - self._last >= 60 * minutes

    def start(self, step: int, train_state: state.TrainState, progress: Progress) -> None:
        """Waits for the save before, and starts one. The state may be donated afterwards. Raises as `wait`."""
        self.check_lock()
        self.wait()
        self._last = time.monotonic()
        more = {PROGRESS: progress.to_dict()}
        self.checkpoints.start(step, state.to_items(train_state), self.config, self.digests, more)
        self._step, self._flags = step, None

    def poll(self) -> None:
        """Reports the result of a save that has finished. All processes call it after every step. Raises as `wait`.

        It never waits: the flags of all processes are combined at one step and read at the next.
        """
        if self._step is None:
            return
        before, self._flags = self._flags, self.any_host(*self.checkpoints.poll())
        if before is None:
            return
        in_progress, failed = np.asarray(before)
        if failed or not in_progress:
            self.wait()

    def wait(self) -> bool:
        """Waits for the save in progress, and returns whether the last save succeeded. All processes call it.

        Raises CheckpointError after more than `loop.max_failed_saves` consecutive failures, or at the last step.
        """
        if self._step is None:
            return not self.failed
        step, self._step = self._step, None
        try:
            self.checkpoints.wait()
        except CheckpointError as problem:
            self.failed += 1
            # A failed save of the last step cannot be made up for by a later one.
            if self.failed > self.loop.max_failed_saves or step >= self.loop.num_steps:
                raise
            log.warning(
                f'{problem}. The run continues; consecutive failed saves: {self.failed}, at most '
                f'{self.loop.max_failed_saves} (config.loop.max_failed_saves). Free disk space'
            )
            return False
        self.failed = 0
        log.info(f'saved step {step}')
        return True

    def __enter__(self) -> 'SavePolicy':
        return self

    def __exit__(self, kind: type | None, error: object, traceback: object) -> None:
        """Completes the save in progress, whatever ends the run."""
        self.checkpoints.close()
        if self._step is not None:
            _, failed = self.checkpoints.poll()
            if failed:
                log.warning(f'step {self._step} could not be saved')
            else:
                log.info(f'saved step {self._step}')
