"""Writes what sampling needs of a run, and nothing else: `python -m fv_jax.export --checkpoint RUN --output OUT`.

OUT is a folder, which opens like a run's: the parameters as an Orbax checkpoint, and README.md, the model card. Or it
is a file, *.safetensors: a small network in float16, with its configuration; a config takes that of a VAE as
`stage.vae`, and `fv_jax.open_run` that of a stage as a run. The file in the package was made so.

    --parameters last        those after the last step, where the run keeps an average too (default: the average)
    --lora merge             LoRA as part of the weights; default: kept apart
    --dtype bfloat16         of the numbers in a folder; default: as they are stored
    --forward cpu,tpu,cuda   also the forward functions of a stage 2 or a VAE, as files that run without fv_jax: for one
    --size 17x256x384        video of these frames, height and width; how to load them stands in the model card

Exit codes: 0 done; 2 wrong usage; 1 failed, and nothing was written.
"""

import argparse
import dataclasses
import json
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fv_jax.checkpoints import streaming
from fv_jax.checkpoints.manager import CheckpointError
from fv_jax.core import config as config_lib
from fv_jax.core import exit_codes, files
from fv_jax.core.checks import require
from fv_jax.core.command_line import Parser, UsageError
from fv_jax.core.commands import run_command
from fv_jax.core.output_paths import check_output
from fv_jax.kernels.attention import PORTABLE
from fv_jax.models.dit import DiTConfig
from fv_jax.models.vae import VAEConfig
from fv_jax.stages import registry
from fv_jax.stages.protocol import ExportedFunction
from fv_jax.training.state import ModelDef
from fv_jax.weights import exported_functions, model_card, single_file, trained_runs
from fv_jax.weights.fingerprints import params_fingerprint
from fv_jax.weights.layouts import key_table, official_dit
from fv_jax.weights.layouts.key_table import Parameters

log = logging.getLogger('fv_jax.export')

SUFFIX = '.safetensors'
FORWARD = 'forward'  # the folder of the forward functions
_SIZE = r'(\d+)x(\d+)x(\d+)'


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments (without the program's name) and returns its exit code."""
    return run_command('export', _export, argv, errors={CheckpointError: exit_codes.FAILED})


def _export(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    _check(arguments)
    exported = _opened(arguments)
    output = arguments.output.absolute()
    with files.atomic_write(output) as partial:
        if output.suffix == SUFFIX:
            _write_file(partial, exported)
            size = partial.stat().st_size
        else:
            _write_folder(partial, exported, arguments)
            size = sum(path.stat().st_size for path in partial.rglob('*') if path.is_file())
    log.info(f'{arguments.output}: step {exported.step}, {size:,} bytes')
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser('python -m fv_jax.export', 'Writes what sampling needs of a run: a folder, or one small file.')
    add = parser.add_argument
    add('--checkpoint', type=Path, required=True, help='the work directory of a run')
    add('--output', type=Path, required=True, help='a folder, or a file *.safetensors (float16)')
    add('--step', type=int, help='which checkpoint (default: the newest)')
    add('--parameters', choices=('average', 'last'), default='average', help='which ones (default: %(default)s)')
    add('--lora', choices=('keep', 'merge'), default='keep', help='kept apart, or part of the weights')
    add('--dtype', choices=('float32', 'bfloat16', 'float16'), help='of the numbers in a folder')
    add('--forward', help='also the forward functions, for these platforms: cpu,tpu,cuda')
    add('--size', help='of the video that the forward functions take: FRAMESxHEIGHTxWIDTH')
    add('--license', default='not stated', help='of the weights, for the model card (default: %(default)s)')
    add('--overwrite', action='store_true', help='replace a folder that is there')
    return parser.parse_flags(argv)


def _check(arguments: argparse.Namespace) -> None:
    output = arguments.output
    require(output.suffix in ('', SUFFIX), f'--output={output}: must end in {SUFFIX}, or be a folder', UsageError)
    check_output(output, arguments.checkpoint, arguments.overwrite or not output.is_dir(), 'run')
    # Another run would be lost.
    if output.is_dir() and not (output / model_card.NAME).is_file():
        raise UsageError(f'--output={output}: is a folder that this command did not write; choose another')
    require(not output.is_file() or output.suffix == SUFFIX, f'--output={output}: is a file', UsageError)
    if output.suffix and (arguments.dtype not in (None, 'float16') or arguments.forward):
        flag = '--forward' if arguments.forward else f'--dtype={arguments.dtype}'
        raise UsageError(f'{flag}: a file {SUFFIX} is the parameters in float16; give a folder as --output')
    if (arguments.forward is None) != (arguments.size is None):
        raise UsageError('--forward and --size: give both or neither')
    if arguments.forward is not None:
        _check_forward(arguments.forward.split(','), arguments.size)


def _check_forward(platforms: Sequence[str], size: str) -> None:
    if unknown := [name for name in platforms if name not in exported_functions.PLATFORMS]:
        raise UsageError(
            f'--forward={",".join(platforms)}: {unknown[0]!r} is none of {", ".join(exported_functions.PLATFORMS)}'
        )
    if re.fullmatch(_SIZE, size) is None:
        raise UsageError(f'--size={size}: give FRAMESxHEIGHTxWIDTH, for example 17x256x384')


# --- what is written ---


@dataclasses.dataclass(frozen=True)
class _Exported:
    """config: of the run, with the network as it is written. about: how it came about, for the model card."""

    step: int
    config: dict[str, Any]
    stage: registry.StageConfig
    values: Parameters
    digests: dict[str, str]
    about: dict[str, str]


def _opened(arguments: argparse.Namespace) -> _Exported:
    """Nothing large is read yet but for the hash."""
    stored = streaming.CheckpointReader(arguments.checkpoint, arguments.step)
    meta = stored.meta
    if 'stage' not in meta['config']:
        raise UsageError(f'--checkpoint={arguments.checkpoint}: holds no stage; a T5 is exported by fv_jax.convert')
    stage = config_lib.build(registry.StageConfig, meta['config']['stage'], 'config.stage')
    arrays = stored.arrays()
    if arguments.parameters == 'last':
        arrays |= streaming.CheckpointReader(arguments.checkpoint, meta['step'], streaming.STATE).arrays()
    values, stage = _as_asked(key_table.cast_parameters(arrays), stage, arguments)
    about = {
        'source': str(arguments.checkpoint),
        'step': str(meta['step']),
        'parameters': _which(meta['config'], arguments.parameters),
        'hash': params_fingerprint(values),
        'license': arguments.license,
    }
    config = meta['config'] | {'stage': config_lib.to_dict(stage), 'exported': about}
    return _Exported(meta['step'], config, stage, values, meta.get('digests', {}), about)


def _as_asked(
    values: Parameters, stage: registry.StageConfig, arguments: argparse.Namespace
) -> tuple[Parameters, registry.StageConfig]:
    if isinstance(config := stage.network, DiTConfig):
        if arguments.lora == 'merge':
            values, config = official_dit.merge_lora_parameters(values, config)
        # float16 is how numbers are stored, never what a network holds.
        if arguments.dtype in ('float32', 'bfloat16'):
            config = dataclasses.replace(config, param_dtype=arguments.dtype)
        stage = dataclasses.replace(stage, network=config)
    return key_table.cast_parameters(values, arguments.dtype), stage


def _which(config: dict[str, Any], parameters: str) -> str:
    decay = config.get('optim', {}).get('ema_decay', 0)
    return f'average (decay {decay})' if decay and parameters == 'average' else 'as after the last step'


def _write_file(path: Path, exported: _Exported) -> None:
    stage = exported.stage
    if isinstance(stage.network, VAEConfig):
        single_file.write(path, exported.values, stage.network)
        return
    run = {'step': exported.step, 'config': exported.config, 'digests': exported.digests}
    single_file.write(path, exported.values, stage.network, {single_file.RUN: json.dumps(run)})


def _write_folder(folder: Path, exported: _Exported, arguments: argparse.Namespace) -> None:
    network = ModelDef.from_stage(registry.build(exported.stage))
    groups = {'trainable': network.trainable, 'frozen': network.frozen}
    params = {name: key_table.to_nested(state, exported.values) for name, state in groups.items()}
    forwards = _forwards(exported, arguments) if arguments.forward else []
    streaming.save(folder, exported.step, params, exported.config, exported.digests)
    functions = _write_forwards(folder / FORWARD, exported, forwards, arguments.forward.split(',')) if forwards else []
    loader = exported_functions.LOADER if functions else ''
    card = model_card.render(folder.name, exported.config, exported.digests, exported.about, functions, loader)
    (folder / model_card.NAME).write_text(card, encoding='utf-8')


def _forwards(exported: _Exported, arguments: argparse.Namespace) -> list[ExportedFunction]:
    frames, height, width = (int(part) for part in re.fullmatch(_SIZE, arguments.size).groups())
    meta = {'config': exported.config, 'digests': exported.digests}
    latent_spec = trained_runs.latent_spec(trained_runs.stage_config_of(arguments.checkpoint, meta))
    stage = registry.build(exported.stage)
    return exported_functions.functions(stage, latent_spec, (frames, height, width), context=PORTABLE)


def _write_forwards(
    folder: Path, exported: _Exported, forwards: Sequence[ExportedFunction], platforms: Sequence[str]
) -> list[str]:
    stage = registry.build(exported.stage)
    folder.mkdir(parents=True)
    for forward in forwards:
        artefact = exported_functions.export_stablehlo(forward, stage, platforms)
        (folder / f'{forward.name}{exported_functions.SUFFIX}').write_bytes(artefact)
    wanted = exported_functions.parameter_names(stage)
    arrays = ((name, exported.values[name].numpy().astype(dtype)) for name, dtype in wanted)
    exported_functions.write_parameters(folder / exported_functions.PARAMETERS, arrays)
    return [f'{forward}, for {", ".join(platforms)}' for forward in forwards]


if __name__ == '__main__':
    sys.exit(main())
