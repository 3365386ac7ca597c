"""The state that a training run starts from: its own newest checkpoint, another run's parameters, a file's, or new."""

import dataclasses
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from fv_jax import weights
from fv_jax.checkpoints.manager import FOLDER, CheckpointError, Checkpoints, DamagedError
from fv_jax.core.config import ConfigError
from fv_jax.parallel import arrays, distributed
from fv_jax.training import state
from fv_jax.training.progress import PROGRESS, Progress
from fv_jax.training.run.datasets import Digests
from fv_jax.training.run.setup import Assembly, RunConfig

log = logging.getLogger(__name__)

DAMAGED = 'damaged'  # in a run's folder


@dataclasses.dataclass
class CheckpointHistory:
    """The run's checkpoints that can be gone on from. steps: ascending. damaged: what is wrong with newer ones, a line
    each, by their steps.
    """

    checkpoints: Checkpoints
    steps: list[int]
    damaged: dict[int, str]

    def drop(self, problem: str) -> None:
        """Takes the newest for damaged. Raises CheckpointError when there is none before it."""
        self.damaged[self.steps.pop()] = problem
        if not self.steps:
            raise CheckpointError(
                f'{self.checkpoints.folder}: no checkpoint is whole; of step {max(self.damaged)}, '
                f'{self.damaged[max(self.damaged)]}. Bring one back, or choose another --workdir'
            )


def valid_checkpoints(workdir: Path) -> CheckpointHistory | None:
    """The run's own checkpoints, the newest of which is as it was written; None where it has none yet.

    Raises CheckpointError when it has some and none is whole.
    """
    if not (workdir / FOLDER).is_dir():
        return None
    reader = Checkpoints(workdir, read_only=True)
    history = CheckpointHistory(reader, reader.steps, {})
    if not history.steps:
        return None
    while distributed.any_process((problem := _problem(reader, history.steps[-1])) is not None):
        history.drop(problem or 'another process found it damaged')
    return history


def _problem(reader: Checkpoints, step: int) -> str | None:
    try:
        reader.meta(step)  # in every process: Orbax has them wait for each other
    except DamagedError as error:
        return str(error)
    # One process reads all of it through.
    return None if jax.process_index() else reader.verify(step)


def restore(parts: Assembly, history: CheckpointHistory) -> tuple[state.TrainState, Progress]:
    """The state and the progress of the newest checkpoint that can be read. Raises CheckpointError."""
    while True:
        step, problem = history.steps[-1], None
        try:
            meta = history.checkpoints.meta(step)
            items = history.checkpoints.restore(state.to_items(parts.abstract_state), step)
        except DamagedError as error:
            problem = str(error)
        if not distributed.any_process(problem is not None):
            return state.from_items(items, ema=parts.ema), Progress.from_dict(meta.get(PROGRESS, {}))
        history.drop(problem or 'another process found it damaged')


def starting_state(parts: Assembly, history: CheckpointHistory | None) -> tuple[state.TrainState, Progress]:
    """The newest checkpoint of this run, or the parameters of another, or new ones; over the mesh from the start."""
    config = parts.config
    if history is not None:
        found = restore(parts, history)
        for step, problem in history.damaged.items():
            log.warning(f'the checkpoint of step {step} is damaged: {problem}. Going back to step {history.steps[-1]}')
        return found
    # Placed alike in all cases, so that the step is one program: a resumed run's numbers are those of the first.
    if config.init_from is None:
        return jax.jit(parts.new_state, out_shardings=parts.shardings)(jax.random.key(config.seed)), Progress()
    numbers = _load_init_params(parts, config.init_from, state.to_items(parts.abstract_state)['params'])
    log.info(f'with the parameters of {config.init_from}')
    given = jax.jit(parts.state_of, donate_argnums=(0, 1), out_shardings=parts.shardings)(*numbers)
    return given, Progress()


def quarantine(workdir: Path, history: CheckpointHistory | None) -> None:
    """Moves damaged checkpoints out of the way of those that will be saved, to DIR/damaged/STEP."""
    if history is not None and jax.process_index() == 0:
        for step in history.damaged:
            (workdir / DAMAGED).mkdir(exist_ok=True)
            shutil.rmtree(workdir / DAMAGED / str(step), ignore_errors=True)
            os.replace(workdir / FOLDER / str(step), workdir / DAMAGED / str(step))
    distributed.wait_for_all('damaged checkpoints')


def check_digests(history: CheckpointHistory | None, workdir: Path, digests: Digests) -> None:
    """Refuses to go on with another VAE or text encoder under the same name."""
    if history is None:
        return
    before = history.checkpoints.meta(history.steps[-1]).get('digests', {})
    for name, digest in before.items():
        if digests.get(name, digest) != digest:
            raise ConfigError(
                f'config.stage.{name}: is {digests[name]} now, and {workdir} was trained with {digest}; bring that '
                'back or choose another --workdir'
            )


def _load_init_params(parts: Assembly, name: str, abstract: Any) -> tuple[Any, Any]:
    """The parameters that `init_from` names: (trainable, frozen), over the mesh."""
    if not weights.is_weights(name):
        model = parts.network.model(**Checkpoints(name, read_only=True).restore({'params': abstract})['params'])
        parts.stage.start_from(model)
        return state.numbers_of(parts.stage, model)
    with arrays.in_host_memory():
        model = _load_init_network(parts.config, name)
        parts.stage.start_from(model)
        numbers = state.numbers_of(parts.stage, model)
    return arrays.place(numbers, (parts.shardings.trainable, parts.shardings.frozen))


def _load_init_network(config: RunConfig, name: str) -> nnx.Module:
    """The network that `init_from` names a file of."""
    if config.stage.dit is not None:
        return weights.starting_dit(name, config.stage.dit, jax.random.key(config.seed))
    network = weights.load_vae(name)
    there, wanted = (dataclasses.replace(c, dtype='float32') for c in (network.config, config.stage.autoencoder_net))
    if there != wanted:
        raise ConfigError(f'config.init_from={name}: is a VAE of other sizes, {there}; this run has {wanted}')
    return network
