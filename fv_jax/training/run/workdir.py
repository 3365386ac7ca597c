"""A run's work directory: its configuration, and what may change in it between two starts."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fv_jax.checkpoints.errors import CheckpointError
from fv_jax.checkpoints.manager import Checkpoints
from fv_jax.checkpoints.steps import Steps
from fv_jax.core import config as config_lib
from fv_jax.core import files
from fv_jax.core.checks import error_context
from fv_jax.core.command_line import UsageError
from fv_jax.core.config import did_you_mean
from fv_jax.core.paths import StoragePath
from fv_jax.parallel import distributed
from fv_jax.training.run.config_changes import Change, compare
from fv_jax.training.run.setup import TrainConfig

CONFIG = 'config.json'
TRIAL = '.trial_save'


def check_folder(workdir: StoragePath, config: TrainConfig, allowed: Sequence[str] = ()) -> list[Change]:
    """Compares a configuration with that of the run in the work directory.

    Args:
      workdir: need not exist.
      config: of the requested run.
      allowed: fields and sections that may differ, besides those whose change is safe (`config_changes`).

    Returns:
      The allowed differences; none for a new run.

    Raises:
      UsageError: another field differs, the checkpoint cannot be resumed with a change, a name of `allowed` is no
        field, or the stored configuration cannot be read.
    """
    path = workdir / CONFIG
    allowed = [name.removeprefix('config.') for name in allowed]
    _check_names(config_lib.to_dict(config), allowed)
    # In object storage a name above the folder may be a file as well.
    places = (workdir,) if files.is_remote(workdir) else (workdir, *workdir.parents)
    if file := next((place for place in places if place.is_file()), None):
        raise UsageError(f'--workdir={workdir}: {file} is a file; give a folder')
    if not path.exists():
        return []
    with error_context(f'{path}: cannot be read; choose another --workdir: ', error=UsageError):
        there = config_lib.build(TrainConfig, files.parse_json(path.read_text()))
    changes = compare(there, config, max(Steps(workdir).list_steps(), default=0))
    if impossible := [change for change in changes if not change.is_possible]:
        raise UsageError(f'{workdir}: cannot be resumed with {impossible[0]}')
    refused = [change for change in changes if not (change.is_safe or change.under(allowed))]
    if refused:
        first = refused[0]
        effect = f' ({first.effect})' if first.effect else ''
        more = f' and {len(refused) - 1} more' if len(refused) > 1 else ''
        names = ','.join([*allowed, *(change.field for change in refused)])
        raise UsageError(
            f'{workdir}: contains another run: {first.field} is {first.old!r} there and {first.new!r} here{effect}'
            f'{more}; choose another --workdir, or, to continue anyway, --allow-config-change={names}'
        )
    return changes


def _check_names(values: dict[str, Any], names: Sequence[str]) -> None:
    for name in names:
        group: Any = values
        for key in name.split('.'):
            if not isinstance(group, dict) or key not in group:
                known = group if isinstance(group, dict) else values
                raise UsageError(f'--allow-config-change={name}: no field {key!r}; {did_you_mean(key, known)}')
            group = group[key]


def check_writable(workdir: StoragePath) -> None:
    """Saves and removes a checkpoint of one number, so that what cannot be saved is found before anything is computed.

    All processes call it. Raises UsageError.
    """
    folder, problem = workdir / TRIAL, None
    try:
        _remove_trial(folder)  # of a process that was killed
        Checkpoints(folder).save(0, {'params': {'trial': np.zeros(1, np.float32)}}, {})
    except (CheckpointError, OSError, ValueError) as error:
        problem = error
    distributed.barrier('trial save')
    try:
        _remove_trial(folder)
    except OSError as error:
        problem = problem or error
    if distributed.any_process(problem is not None):
        raise UsageError(f'--workdir={workdir}: a trial save failed: {problem or "in another process"}') from problem


def _remove_trial(folder: StoragePath) -> None:
    """Removes the trial save; the first process does. Raises OSError."""
    if jax.process_index() == 0 and folder.exists():
        files.remove_folder(folder, suffix='')


def write_run_config(workdir: StoragePath, config: TrainConfig) -> None:
    """Writes the configuration to the work directory; the first process does."""
    if jax.process_index() == 0:
        files.write_json(workdir / CONFIG, config_lib.to_dict(config))
