"""A run's work directory: its configuration, and what may change in it between two starts."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fv_jax.checkpoints.manager import FOLDER, CheckpointError, Checkpoints, list_steps
from fv_jax.core import config as config_lib
from fv_jax.core.checks import error_context
from fv_jax.core.command_line import UsageError
from fv_jax.core.config import did_you_mean
from fv_jax.core.files import parse_json, write_json
from fv_jax.parallel import distributed
from fv_jax.training.run.config_changes import Change, compare
from fv_jax.training.run.setup import TrainConfig

CONFIG = 'config.json'
TRIAL = '.trial_save'


def check_folder(workdir: Path, config: TrainConfig, allowed: Sequence[str] = ()) -> list[Change]:
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
    if file := next((place for place in (workdir, *workdir.parents) if place.is_file()), None):
        raise UsageError(f'--workdir={workdir}: {file} is a file; give a folder')
    if not path.exists():
        return []
    with error_context(f'{path}: cannot be read; choose another --workdir: ', error=UsageError):
        there = config_lib.build(TrainConfig, parse_json(path.read_text()))
    changes = compare(there, config, max(list_steps(workdir / FOLDER), default=0))
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


def check_writable(workdir: Path) -> None:
    """Saves and removes a checkpoint of one number, so that what cannot be saved is found before anything is computed.

    All processes call it. Raises UsageError.
    """
    folder = workdir / TRIAL
    try:
        Checkpoints(folder).save(0, {'params': {'trial': np.zeros(1, np.float32)}}, {})
    except (CheckpointError, OSError, ValueError) as error:
        raise UsageError(f'--workdir={workdir}: a trial save failed: {error}') from error
    finally:
        distributed.barrier('trial save')
        if jax.process_index() == 0:
            shutil.rmtree(folder, ignore_errors=True)


def write_run_config(workdir: Path, config: TrainConfig) -> None:
    """Writes the configuration to the work directory; the first process does."""
    if jax.process_index() == 0:
        write_json(workdir / CONFIG, config_lib.to_dict(config))
