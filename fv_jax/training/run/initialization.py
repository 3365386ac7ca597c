"""The initial state of a training run: its own newest checkpoint, existing parameters, or new ones."""

import dataclasses
import logging
import os
import shutil
from pathlib import Path

import jax

from fv_jax.checkpoints.manager import FOLDER, CheckpointError, Checkpoints, DamagedError
from fv_jax.core.config import ConfigError
from fv_jax.parallel import distributed
from fv_jax.training import state
from fv_jax.training.progress import PROGRESS, Progress
from fv_jax.training.run.datasets import Digests
from fv_jax.training.run.init_params import load_init_params
from fv_jax.training.run.setup import TrainSetup

log = logging.getLogger(__name__)

DAMAGED = 'damaged'  # in a run's folder


@dataclasses.dataclass
class CheckpointHistory:
    """The checkpoints that a run can resume from.

    Attributes:
      steps: of the intact checkpoints, ascending, as far as it is known.
      damaged: step -> what is wrong, for newer checkpoints that failed verification.
    """

    checkpoints: Checkpoints
    steps: list[int]
    damaged: dict[int, str]

    def mark_newest_damaged(self, problem: str) -> None:
        """Removes the newest step from the intact ones. Raises CheckpointError when none is left."""
        self.damaged[self.steps.pop()] = problem
        if not self.steps:
            raise CheckpointError(
                f'{self.checkpoints.folder}: no checkpoint is intact; step {max(self.damaged)}: '
                f'{self.damaged[max(self.damaged)]}. Restore one from a copy, or choose another --workdir'
            )


def valid_checkpoints(workdir: Path) -> CheckpointHistory | None:
    """Returns the run's own checkpoints, the newest of which has been verified; None if it has none yet.

    Raises CheckpointError when it has checkpoints, and none is intact.
    """
    if not (workdir / FOLDER).is_dir():
        return None
    reader = Checkpoints(workdir, read_only=True)
    history = CheckpointHistory(reader, reader.steps, {})
    if not history.steps:
        return None
    while distributed.any_process((problem := _problem(reader, history.steps[-1])) is not None):
        history.mark_newest_damaged(problem or 'another process found it damaged')
    return history


def _problem(reader: Checkpoints, step: int) -> str | None:
    try:
        reader.meta(step)  # in every process: Orbax synchronizes them
    except DamagedError as error:
        return str(error)
    # One process is enough to read all files.
    return None if jax.process_index() else reader.verify(step)


def restore(setup: TrainSetup, history: CheckpointHistory) -> tuple[state.TrainState, Progress]:
    """Restores the newest checkpoint that can be read. Raises CheckpointError."""
    while True:
        step, problem = history.steps[-1], None
        try:
            meta = history.checkpoints.meta(step)
            items = history.checkpoints.restore(state.to_items(setup.abstract_state), step)
        except DamagedError as error:
            problem = str(error)
        if not distributed.any_process(problem is not None):
            return state.from_items(items, ema=setup.ema), Progress.from_dict(meta.get(PROGRESS, {}))
        history.mark_newest_damaged(problem or 'another process found it damaged')


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


def quarantine(workdir: Path, history: CheckpointHistory | None) -> None:
    """Moves damaged checkpoints to DIR/damaged/STEP, so that their steps can be saved again.

    Raises:
      OSError: a folder cannot be moved.
    """
    if history is not None and jax.process_index() == 0:
        for step in history.damaged:
            (workdir / DAMAGED).mkdir(exist_ok=True)
            shutil.rmtree(workdir / DAMAGED / str(step), ignore_errors=True)
            os.replace(workdir / FOLDER / str(step), workdir / DAMAGED / str(step))
    distributed.barrier('damaged checkpoints')


def check_digests(history: CheckpointHistory | None, workdir: Path, digests: Digests) -> None:
    """Refuses to resume with another VAE or text encoder under the same name. Raises ConfigError."""
    if history is None:
        return
    before = history.checkpoints.meta(history.steps[-1]).get('digests', {})
    for name, digest in before.items():
        if digests.get(name, digest) != digest:
            raise ConfigError(
                f'config.stage.{name}: has the fingerprint {digests[name]}, and {workdir} was trained with {digest}; '
                'restore that one or choose another --workdir'
            )
