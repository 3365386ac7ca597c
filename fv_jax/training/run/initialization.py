"""The initial state of a training run: its own newest checkpoint, existing parameters, or new ones."""

import dataclasses
import logging
from typing import Any

import jax

from fv_jax.checkpoints.errors import CheckpointError, DamagedError
from fv_jax.checkpoints.manager import Checkpoints
from fv_jax.checkpoints.steps import DAMAGED, FOLDER
from fv_jax.core.config import ConfigError
from fv_jax.core.paths import StoragePath
from fv_jax.parallel import distributed
from fv_jax.training import state
from fv_jax.training.progress import PROGRESS, Progress
from fv_jax.training.run.datasets import Digests
from fv_jax.training.run.init_params import load_init_params
from fv_jax.training.run.setup import TrainSetup

log = logging.getLogger(__name__)


@dataclasses.dataclass
class CheckpointHistory:
    """The checkpoints that a run can resume from.

    Attributes:
      steps: of the intact checkpoints, ascending, as far as it is known.
      meta: the JSON of the newest of them.
      damaged: step -> what is wrong, for newer checkpoints that failed verification.
    """

    checkpoints: Checkpoints
    steps: list[int]
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
    damaged: dict[int, str] = dataclasses.field(default_factory=dict)

    def verify_newest(self) -> None:
        """Reads the newest checkpoint that can be read and that its checksums confirm. All processes call it.

        Raises CheckpointError when there is none.
        """
        while distributed.any_process((problem := self._find_problem(self.steps[-1])) is not None):
            self.remove_newest(problem or 'another process found it damaged')

    def remove_newest(self, problem: str) -> None:
        """Removes the newest step from the intact ones. Raises CheckpointError when none is left."""
        self.damaged[self.steps.pop()] = problem
        if not self.steps:
            raise CheckpointError(
                f'{self.checkpoints.folder}: no checkpoint is intact; step {max(self.damaged)}: '
                f'{self.damaged[max(self.damaged)]}. Restore one from a copy, or choose another --workdir'
            )

    def _find_problem(self, step: int) -> str | None:
        try:
            self.meta = self.checkpoints.meta(step)  # in every process: Orbax synchronizes them
        except DamagedError as error:
            return str(error)
        # One process is enough to verify all files.
        return None if jax.process_index() else self.checkpoints.verify(step)


def valid_checkpoints(workdir: StoragePath) -> CheckpointHistory | None:
    """Returns the run's own checkpoints, the newest of which has been verified; None if it has none yet.

    Raises CheckpointError when it has checkpoints, and none is intact.
    """
    if not (workdir / FOLDER).is_dir():
        return None
    reader = Checkpoints(workdir, read_only=True)
    history = CheckpointHistory(reader, reader.steps)
    if not history.steps:
        if damaged := reader.list_damaged():
            raise CheckpointError(
                f'{reader.folder}: no checkpoint is intact; step(s) {", ".join(map(str, sorted(damaged)))} are marked '
                f'as damaged in {workdir / DAMAGED}. Restore one from a copy, or choose another --workdir'
            )
        return None
    history.verify_newest()
    return history


def restore(setup: TrainSetup, history: CheckpointHistory) -> tuple[state.TrainState, Progress]:
    """Restores the newest checkpoint that can be read. Raises CheckpointError."""
    while True:
        step, problem = history.steps[-1], None
        try:
            items = history.checkpoints.restore(state.to_items(setup.abstract_state), step)
        except DamagedError as error:
            problem = str(error)
        if not distributed.any_process(problem is not None):
            return state.from_items(items, ema=setup.ema), Progress.from_dict(history.meta.get(PROGRESS, {}))
        history.remove_newest(problem or 'another process found it damaged')
        history.verify_newest()


def initial_state(setup: TrainSetup, history: CheckpointHistory | None) -> tuple[state.TrainState, Progress]:
    """Returns the sharded state that the run starts from: restored, with the parameters of `init_from`, or new."""
    config = setup.config
    if history is not None:
        found = restore(setup, history)
        for step, problem in history.damaged.items():
            log.warning(
                f'the checkpoint of step {step} is damaged: {problem}. Falling back to step {history.steps[-1]}'
            )
        return found
    # The shardings are the same in all cases, so that the step compiles to one program: resuming is bit-exact.
    if config.init_from is None:
        return jax.jit(setup.init_train_state, out_shardings=setup.shardings)(jax.random.key(config.seed)), Progress()
    params = load_init_params(setup, config.init_from)
    log.info(f'initialized from {config.init_from}')
    given = jax.jit(setup.train_state_from_params, donate_argnums=(0, 1), out_shardings=setup.shardings)(*params)
    return given, Progress()


def mark_damaged(history: CheckpointHistory | None) -> None:
    """Marks the checkpoints that were found damaged, so that their steps can be saved again.

    Raises:
      OSError: a mark cannot be written.
    """
    if history is not None and jax.process_index() == 0:
        for step, problem in history.damaged.items():
            history.checkpoints.mark_damaged(step, problem)
    distributed.barrier('damaged checkpoints')


def check_digests(history: CheckpointHistory | None, workdir: StoragePath, digests: Digests) -> None:
    """Refuses to resume with another VAE or text encoder under the same name. Raises ConfigError."""
    if history is None:
        return
    for name, digest in history.meta.get('digests', {}).items():
        if digests.get(name, digest) != digest:
            raise ConfigError(
                f'config.stage.{name}: has the fingerprint {digests[name]}, and {workdir} was trained with {digest}; '
                'restore that one or choose another --workdir'
            )
