"""Dumps of bad steps in a run's work directory, which `train --replay` recomputes on the CPU in float32.

DIR/bad_steps/STEP/step.npz       the encoded batch, the key, and as JSON the step, the reason, the configuration
DIR/bad_steps/STEP/checkpoints/   the parameters, as they were after the step
"""

import dataclasses
import json
import logging
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fv_jax.checkpoints.errors import CheckpointError
from fv_jax.checkpoints.manager import Checkpoints
from fv_jax.core import config as config_lib
from fv_jax.core.command_line import UsageError, format_error
from fv_jax.core.files import atomic_write, parse_json
from fv_jax.core.local_copies import local_copy
from fv_jax.core.paths import StoragePath
from fv_jax.kernels.attention import SINGLE_DEVICE
from fv_jax.parallel import arrays
from fv_jax.stages import registry
from fv_jax.training.monitoring.anomalies import BadStep
from fv_jax.training.monitoring.replay import Replay, replay
from fv_jax.training.run.setup import TrainConfig, TrainSetup
from fv_jax.training.state import ModelDef

log = logging.getLogger(__name__)

FOLDER, FILE = 'bad_steps', 'step.npz'
_BATCH, _KEY, _RECORD = 'batch/', 'key', 'record'
_UNREADABLE = (
    OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, MemoryError, zipfile.BadZipFile,
)  # fmt: skip
_FIELDS = {'step', 'kind', 'reason', 'params_step', 'metrics', 'config'}  # of a record


def write(setup: TrainSetup, workdir: StoragePath, digests: Mapping[str, str], bad_step: BadStep) -> None:
    """Writes a dump. All processes call it. A failure to write it is reported, and does not stop the run."""
    folder = workdir / FOLDER / str(bad_step.step)
    batch = arrays.to_host(bad_step.batch, setup.partitioner)
    config = config_lib.to_dict(setup.config)
    try:
        params = {'trainable': bad_step.state.trainable, 'frozen': bad_step.state.frozen}
        if setup.stage.takes_average:
            params['average'] = bad_step.state.ema
        Checkpoints(folder).save(bad_step.step, {'params': params}, config, digests)
        if jax.process_index() == 0:
            _write_npz(folder / FILE, batch, bad_step, config)
    except (CheckpointError, OSError) as error:
        log.warning(f'step {bad_step.step} could not be dumped for a replay ({format_error(error)})')
        return
    log.info(f'dumped bad step; to replay it: python -m fv_jax.train --replay {folder / FILE}')


def _write_npz(path: StoragePath, batch: Mapping[str, np.ndarray], bad_step: BadStep, config: dict[str, Any]) -> None:
    record = {
        'step': bad_step.step,
        'kind': bad_step.anomaly.kind,
        'reason': bad_step.anomaly.reason,
        'params_step': int(bad_step.state.step),
        'metrics': {name: str(value) for name, value in bad_step.metrics.items()},
        'config': config,
    }
    # NumPy's files know no bfloat16; float32 holds its numbers exactly.
    plain = {name: x if x.dtype.isbuiltin else x.astype(np.float32) for name, x in batch.items()}
    data = {_BATCH + name: x for name, x in plain.items()}
    data |= {_KEY: np.asarray(jax.random.key_data(bad_step.key)), _RECORD: np.array(json.dumps(record))}
    with atomic_write(path) as partial:
        np.savez(partial, **data)


@dataclasses.dataclass(frozen=True)
class BadStepDump:
    """A bad step as it was stored.

    Attributes:
      folder: where its checkpoint is.
      record: the JSON: step, kind and reason of the anomaly, step of the parameters, metrics, configuration.
      batch: encoded.
      key: what the noise of the run's examples is folded from.
    """

    folder: StoragePath
    record: dict[str, Any]
    batch: dict[str, np.ndarray]
    key: jax.Array


def read(path: StoragePath) -> BadStepDump:
    """Reads step.npz of a dump. Raises UsageError for any other file."""
    try:
        with np.load(local_copy(path), allow_pickle=False) as stored:
            batch = {name.removeprefix(_BATCH): stored[name] for name in stored.files if name.startswith(_BATCH)}
            record, key = parse_json(str(stored[_RECORD])), jax.random.wrap_key_data(stored[_KEY])
        if missing := _FIELDS - record.keys():
            raise ValueError(f'its record has no {", ".join(sorted(missing))}')
    except _UNREADABLE as error:
        raise UsageError(f'--replay={path}: is not a bad-step dump ({format_error(error)})') from None
    return BadStepDump(path.parent, record, batch, key)


def in_float32(config: TrainConfig) -> TrainConfig:
    """Returns the same configuration with the network in float32."""
    network = dataclasses.replace(config.stage.network, dtype='float32')
    return dataclasses.replace(config, stage=dataclasses.replace(config.stage, network=network))


def replay_dump(dump: BadStepDump) -> Replay:
    """Recomputes the step on this process's first device. Raises ConfigError or CheckpointError."""
    config = in_float32(config_lib.build(TrainConfig, dump.record['config']))
    stage = registry.build(config.stage)
    network = ModelDef.from_stage(stage)
    trainable, frozen = jax.eval_shape(lambda key: network.init(stage, key), jax.random.key(0))
    abstract = {'trainable': trainable, 'frozen': frozen}
    if stage.takes_average:
        abstract['average'] = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), trainable)
    params = Checkpoints(dump.folder, read_only=True).restore({'params': abstract})['params']
    params = jax.tree.map(lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, params)
    batch = {name: jnp.asarray(value) for name, value in dump.batch.items()}
    # A step's keys are folded from the number of steps before it.
    where = dump.record['step'] - 1, config.loop.num_steps
    return replay(stage, network, params, batch, dump.key, *where, SINGLE_DEVICE)


def report(dump: BadStepDump, found: Replay) -> None:
    """Logs the result of a replay beside the recorded metrics."""
    record = dump.record
    log.info(f'step {record["step"]}, dumped as a {record["kind"]}: {record["reason"]}')
    if record['params_step'] > record['step'] and record['kind'] == 'bad step':
        log.info('note: the parameters are one step newer, since the next step had already been dispatched')
    for name, value in dump.batch.items():
        if value.dtype.kind == 'f':
            log.info(f'batch {name} {list(value.shape)}: from {np.min(value):.4g} to {np.max(value):.4g}')
    for name, value in found.metrics.items():
        was = record['metrics'].get(name)
        log.info(f'{name} {value:.6g} in float32' + (f', was {float(was):.6g}' if was is not None else ''))
    for line in found.non_finite_inputs:
        log.info(f'NOT FINITE: {line}')
    if found.first_non_finite is not None:
        log.info(f'FIRST NON-FINITE RESULT: {found.first_non_finite}')
    dtype = record['config']['stage']['network']['dtype']
    if found.is_finite:
        hint = f'; the run computes in {dtype}' if dtype != 'float32' else ''
        log.info(f'all values are finite in float32{hint}')
