"""Shows what a run, an export, a file of weights or a data set holds: `python -m fv_jax.inspect RUN`.

For a run or an exported folder: its steps, how it was launched, its last metrics, and the parameters of a checkpoint;
for an official file (.pt, .safetensors), a diffusers folder or an exported file: the network in it. Parameters are
listed with shape, stored dtype, logical axes and whether they are trainable. For a folder of shards: what its manifests
state of its clips and videos. No array and no shard is read, and no device but the CPU is used.

    --step N     the checkpoint of this step instead of the newest
    --verify     compare the files of the checkpoint with their checksums
    --depth N    sum up parameters by the first N parts of their names

Exit codes: 0 success; 2 wrong usage; 1 unreadable or damaged.
"""

import argparse
import dataclasses
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from fv_jax import weights
from fv_jax.checkpoints.errors import CheckpointError
from fv_jax.checkpoints.manager import Checkpoints
from fv_jax.core import config as config_lib
from fv_jax.core import exit_codes
from fv_jax.core.checks import require
from fv_jax.core.command_line import Parser, UsageError, format_error, weights_flag
from fv_jax.core.commands import run_command
from fv_jax.core.console import print_result
from fv_jax.core.files import format_bytes, parse_json
from fv_jax.core.paths import StoragePath
from fv_jax.data.preparation import statistics
from fv_jax.stages import registry
from fv_jax.training.monitoring.metric_writer import JSONL
from fv_jax.training.run.launch_record import RUN
from fv_jax.training.state import ModelDef
from fv_jax.weights import exported_network, reader, trained_runs
from fv_jax.weights.layouts import key_table


@dataclasses.dataclass(frozen=True)
class Row:
    """A parameter. axes: logical, one per dimension. trainable: None if unknown."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    axes: tuple[str | None, ...] | None = None
    trainable: bool | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.size * self.dtype.itemsize


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments (without the program's name) and returns its exit code."""
    return run_command('inspect', _inspect, argv, errors={CheckpointError: exit_codes.FAILED})


def _inspect(argv: Sequence[str]) -> int:
    parser = Parser('python -m fv_jax.inspect', 'Shows what a run, an export, a file of weights or a data set holds.')
    parser.add_argument('path', type=weights_flag, help='the folder of a run, an export or shards, or weights')
    parser.add_argument('--step', type=int, help='the step of the checkpoint (default: the newest)')
    parser.add_argument(
        '--verify', action='store_true', help='compare the files of the checkpoint with their checksums'
    )
    parser.add_argument('--depth', type=int, help='sum up parameters by the first DEPTH parts of their names')
    arguments = parser.parse_flags(argv)
    if arguments.depth is not None and arguments.depth < 1:
        raise UsageError(f'--depth={arguments.depth}: must be at least 1')
    jax.config.update('jax_platforms', 'cpu')
    if not arguments.path.exists():
        raise FileNotFoundError(
            f'{arguments.path}: does not exist; name the folder of a run, an export or shards, or weights'
        )
    if arguments.path.is_dir() and statistics.holds_sets(arguments.path):
        if arguments.step is not None or arguments.verify or arguments.depth is not None:
            raise UsageError('--step, --verify, --depth: need a folder with checkpoints, or weights')
        for line in statistics.describe_sets(arguments.path):
            print_result(line)
        return 0
    if weights.is_weights(arguments.path) or exported_network.is_folder(arguments.path):
        if arguments.step is not None or arguments.verify:
            raise UsageError('--step, --verify: need a folder with checkpoints')
        rows, problem = _weights(arguments.path), None
    else:
        rows, problem = _checkpoint(arguments)
    _table(rows, arguments.depth)
    require(problem is None, f'{arguments.path}: is damaged: {problem}', CheckpointError)
    return 0


# --- reading ---


def _checkpoint(arguments: argparse.Namespace) -> tuple[list[Row], str | None]:
    """Prints what a folder holds; returns the parameters and, with --verify, what is damaged (None for nothing)."""
    folder = arguments.path
    checkpoints = Checkpoints(folder, read_only=True)
    meta = checkpoints.meta(arguments.step)
    step, config = meta['step'], meta['config']
    what = f'stage {config["stage"]["kind"]}' if 'stage' in config else ', '.join(config)
    print_result(f'{folder}: {what}, step {step} of {_listed(checkpoints.steps)}')
    for name, digest in meta.get('digests', {}).items():
        print_result(f'trained with the {"VAE" if name == "vae" else "text encoder"} {digest}')
    if progress := meta.get('progress'):
        counts = ', '.join(
            f'{name} {progress[name]}' for name in ('bad_steps', 'spikes', 'num_rollbacks') if name in progress
        )
        print_result(f'anomalies so far: {counts}')
    problem = checkpoints.verify(step) if arguments.verify else None
    if arguments.verify:
        print_result(f'checksums: {"DAMAGED: " + problem if problem else "intact"}')
    _starts(folder / RUN)
    _print_metrics(folder / JSONL, step)
    there = checkpoints.contents(step)
    for item, leaves in there.items():
        size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in leaves.values())
        print_result(f'item {item}: {len(leaves)} arrays, {format_bytes(size)}')
    known = _known(config)
    return [_row(path, *leaf, known) for path, leaf in there.get('params', {}).items()], problem


def _known(config: Mapping[str, Any]) -> dict[str, tuple[tuple[str | None, ...] | None, bool]]:
    """Maps the dotted path of a parameter to its axes and whether it is trainable, by tracing the stage's network."""
    if 'stage' not in config:  # a text encoder
        return {}
    stage = registry.build(config_lib.build(registry.StageConfig, config['stage'], 'config.stage'))
    network = ModelDef.from_stage(stage)
    return {
        name: (leaf.get_metadata().get('axes'), trainable)
        for part, trainable in ((network.trainable, True), (network.frozen, False))
        for name, (_, leaf) in key_table.named_parameters(part).items()
    }


def _row(path: str, shape: tuple[int, ...], dtype: np.dtype, known: Mapping[str, Any]) -> Row:
    group, _, name = path.replace('/', '.').partition('.')
    axes, trainable = known.get(name, (None, group == 'trainable'))
    return Row(name, shape, dtype, axes, trainable)


def _weights(path: StoragePath) -> list[Row]:
    if (kind := exported_network.read_kind(path)) is not None:
        config = exported_network.read_config(path)
        stored = {key.replace('/', '.'): tensor for key, tensor in exported_network.read_tensors(path).items()}
        run = trained_runs.exported_run(path)
        of = f' of a {run["config"]["stage"]["kind"]} run at step {run["step"]}' if run else ''
        print_result(f'{path}: an exported {"folder" if path.is_dir() else "file"}, {kind}{of}')
    else:
        source = reader.open_weights(path, param_dtype=None)
        config, stored = source.config, source.parameters()
        print_result(f'{path}: official layout, {type(config).__name__.removesuffix("Config")}')
        for note in source.notes:
            print_result(f'note: {note}')
    for field in dataclasses.fields(config):
        print_result(f'  {field.name} = {getattr(config, field.name)!r}')
    leaves = key_table.named_parameters(nnx.state(reader.abstract_network(config)))
    return [
        Row(name, tuple(stored[name].shape), np.dtype(stored[name].dtype), leaf.get_metadata().get('axes'))
        for name, (_, leaf) in leaves.items()
        if name in stored
    ]


# --- printing ---


def _starts(path: StoragePath) -> None:
    if not path.exists():
        return
    try:
        starts = parse_json(path.read_text())
        last = starts[-1]
        devices = ', '.join(f'{count} x {kind}' for kind, count in last['devices'].items())
        when = f'{last["started"]} at step {last["step"]} on {devices}, git {last["git"]}'
        command = ' '.join(last['command'])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        print_result(f'the launch record cannot be read: {path}: {format_error(error)}')
        return
    print_result(f'launched {len(starts)} time(s), last {when}')
    print_result(f'  {command}')


def _print_metrics(path: StoragePath, step: int) -> None:
    """Prints the last metrics of each kind up to the step."""
    if not path.exists():
        return
    newest: dict[str, dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        row = _parsed(line)
        if row and row['step'] <= step:
            kind = next((name.partition('/')[0] for name in row if '/' in name and not name.startswith('grad')), '')
            newest['training' if 'loss' in row else kind] = row
    for kind, row in newest.items():
        values = {name.removeprefix(f'{kind}/'): value for name, value in row.items() if name != 'step'}
        text = '  '.join(f'{n} {v:.4g}' if isinstance(v, float) else f'{n} {v}' for n, v in values.items())
        print_result(f'{kind} at step {row["step"]}: {text}')


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        row = parse_json(line)
    except ValueError:
        return None  # the last row of a run that was killed while writing it
    return row if isinstance(row, dict) and isinstance(row.get('step'), int) else None


def _table(rows: Sequence[Row], depth: int | None) -> None:
    for line in _lines(rows) if depth is None else _summed(rows, depth):
        print_result(line)
    total, trainable = sum(row.size for row in rows), sum(row.size for row in rows if row.trainable)
    counted = '' if all(row.trainable is None for row in rows) else f', {trainable:,} of them trainable'
    print_result(f'{len(rows)} parameters, {total:,} elements{counted}, {format_bytes(sum(row.bytes for row in rows))}')


def _lines(rows: Sequence[Row]) -> Iterator[str]:
    width = max((len(row.name) for row in rows), default=0)
    words = {True: 'trainable', False: 'frozen', None: '-'}
    for row in rows:
        shape = 'x'.join(map(str, row.shape)) or 'scalar'
        axes = '-' if row.axes is None else ','.join(axis or '.' for axis in row.axes) or '-'
        kind = words[row.trainable]
        yield f'{row.name:<{width}}  {shape:>18}  {row.dtype.name:>8}  {axes:<28}  {kind:<9}  {row.size:,}'


def _summed(rows: Sequence[Row], depth: int) -> Iterator[str]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault('.'.join(row.name.split('.')[:depth]), []).append(row)
    width = max(map(len, groups), default=0)
    for name, some in groups.items():
        sizes = sum(row.size for row in some), sum(row.bytes for row in some)
        yield f'{name:<{width}}  {len(some):>5} parameters  {sizes[0]:>16,} elements  {format_bytes(sizes[1]):>10}'


def _listed(steps: Sequence[int]) -> str:
    shown = [*steps[:3], '...', *steps[-3:]] if len(steps) > 7 else steps
    return ', '.join(map(str, shown))


if __name__ == '__main__':
    sys.exit(main())
