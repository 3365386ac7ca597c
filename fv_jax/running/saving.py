"""When a run is saved, and what happens when it cannot be."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from fv_jax.checkpoints.manager import CheckpointError, Checkpoints
from fv_jax.parallel import distributed
from fv_jax.running.data import Say
from fv_jax.training import state
from fv_jax.training.loop import LoopConfig
from fv_jax.training.progress import PROGRESS, Progress


@dataclasses.dataclass
class Saver:
    """Saves a run's state. config: the run's, as a dict."""

    checkpoints: Checkpoints
    loop: LoopConfig
    config: Mapping[str, Any]
    digests: Mapping[str, str]
    say: Say
    failed: int = 0  # saves in a row
    _last: float = dataclasses.field(default_factory=lambda: time.monotonic())  # no clock that can be set back

    def due(self) -> bool:
        """Whether it is time by the clock."""
        minutes = self.loop.save_minutes
        return minutes > 0 and time.monotonic() - self._last >= 60 * minutes

    def __call__(self, step: int, train_state: state.TrainState, progress: Progress) -> bool:
        """Whether the state could be saved. Raises CheckpointError when it could not too often in a row."""
        more = {PROGRESS: progress.to_dict()}
        self._last = time.monotonic()
        problem = None
        try:
            self.checkpoints.save(step, state.to_items(train_state), self.config, self.digests, more)
        except CheckpointError as error:
            problem = error
        # What one process could not write, none has saved.
        if not distributed.any_process(problem is not None):
            self.failed = 0
            self.say(f'saved step {step}')
            return True
        self.failed += 1
        problem = problem or CheckpointError(f'{self.checkpoints.folder}: step {step} could not be saved by a process')
        # At the end of a run there is nothing to go on with.
        if self.failed > self.loop.failed_saves or step >= self.loop.num_steps:
            raise problem
        self.say(
            f'WARNING: {problem}. The run goes on; {self.failed} save(s) in a row have failed, and after '
            f'{self.loop.failed_saves} it stops (config.loop.failed_saves). Make room now'
        )
        return False
