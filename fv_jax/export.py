"""Exports the parameters of a run for sampling: `python -m fv_jax.export --checkpoint RUN --output OUT`.

OUT is a folder, which opens like that of a run: the parameters as an Orbax checkpoint, and README.md, the model card.
Or it is a file, *.safetensors: a small network in float16 with its config. A config takes the file of a VAE as
`stage.vae`, and `fv_jax.open_run` opens the file of a stage like a run. The weights in the package are such files.

    --params last                     those of the last step, if the run keeps an EMA (default: the EMA)
    --lora merge                      merges LoRA into the weights; default: kept separate
    --dtype bfloat16                  parameter dtype in a folder; default: as stored
    --export-functions cpu,tpu,cuda   also the forward functions of a stage 2 or a VAE, as StableHLO that runs without
                                      fv_jax; the model card shows how to load them
    --size 17x256x384                 frames, height and width of the video that the functions take

Exit codes: 0 success; 2 wrong usage; 1 failure, nothing was written.
"""

import argparse
import dataclasses
import json
import logging
import re
import sys
from collections.abc import Sequence
from typing import Any

from fv_jax.checkpoints import streaming
from fv_jax.checkpoints.errors import CheckpointError
from fv_jax.core import config as config_lib
from fv_jax.core import exit_codes, files
from fv_jax.core.checks import require
from fv_jax.core.command_line import Parser, UsageError, path_flag
from fv_jax.core.commands import run_command
from fv_jax.core.devices import check_devices
from fv_jax.core.output_paths import check_checkpoint_folder, check_output
from fv_jax.core.paths import StoragePath, absolute
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
FORWARD = 'forward'  # the folder of the exported functions
_SIZE = r'(\d+)x(\d+)x(\d+)'


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments (without the program's name) and returns its exit code."""
    return run_command('export', _export, argv, errors={CheckpointError: exit_codes.FAILED})


def _export(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    _check(arguments)
    check_devices()
    exported = _open_checkpoint(arguments)
    output = absolute(arguments.output)
    if output.suffix == SUFFIX:
        with files.atomic_write(output) as partial:
            _write_file(partial, exported)
        size = files.info(output).size
    else:
        with files.write_folder(output, marker=model_card.NAME) as folder:
            _write_folder(folder, exported, arguments)
        size = sum(info.size for info in files.list_files(output).values())
    log.info(f'{arguments.output}: step {exported.step}, {size:,} bytes')
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        'python -m fv_jax.export', 'Exports the parameters of a run for sampling, to a folder or one small file.'
    )
    add = parser.add_argument
    add('--checkpoint', type=path_flag, required=True, help='the work directory of a run')
    add('--output', type=path_flag, required=True, help='a folder, or a file *.safetensors (float16)')
    add('--step', type=int, help='the step of the checkpoint (default: the newest)')
    add('--params', choices=('ema', 'last'), default='ema', help='EMA parameters, or those of the last step')
    add('--lora', choices=('keep', 'merge'), default='keep', help='keep LoRA separate, or merge it into the weights')
    add('--dtype', choices=('float32', 'bfloat16', 'float16'), help='parameter dtype of a folder (default: as stored)')
    add('--export-functions', help='also export the forward functions for these platforms: cpu,tpu,cuda')
    add('--size', help='of the video that the exported functions take: FRAMESxHEIGHTxWIDTH')
    add('--license', default='not stated', help='of the weights, for the model card (default: %(default)s)')
    add('--overwrite', action='store_true', help='replace an existing folder')
    return parser.parse_flags(argv)


def _check(arguments: argparse.Namespace) -> None:
    output = arguments.output
    require(output.suffix in ('', SUFFIX), f'--output={output}: must end in {SUFFIX}, or be a folder', UsageError)
    check_output(output, arguments.checkpoint, arguments.overwrite or not output.is_dir(), 'run')
    if not output.suffix:
        check_checkpoint_folder(output)
    # Another run would be lost.
    if output.is_dir() and not (output / model_card.NAME).is_file():
        raise UsageError(f'--output={output}: is a folder that this command did not write; choose another')
    require(not output.is_file() or output.suffix == SUFFIX, f'--output={output}: is a file', UsageError)
    if output.suffix and (arguments.dtype not in (None, 'float16') or arguments.export_functions):
        flag = '--export-functions' if arguments.export_functions else f'--dtype={arguments.dtype}'
        raise UsageError(f'{flag}: a file {SUFFIX} holds parameters in float16 only; give a folder as --output')
    if (arguments.export_functions is None) != (arguments.size is None):
        raise UsageError('--export-functions and --size: give both or neither')
    if arguments.export_functions is not None:
        _check_functions(arguments.export_functions.split(','), arguments.size)


def _check_functions(platforms: Sequence[str], size: str) -> None:
    if unknown := [name for name in platforms if name not in exported_functions.PLATFORMS]:
        known = ', '.join(exported_functions.PLATFORMS)
        raise UsageError(f'--export-functions={",".join(platforms)}: {unknown[0]!r} is not one of {known}')
    if re.fullmatch(_SIZE, size) is None:
        raise UsageError(f'--size={size}: give FRAMESxHEIGHTxWIDTH, for example 17x256x384')


# --- what is written ---


@dataclasses.dataclass(frozen=True)
class _Exported:
    """What is exported.

    Attributes:
      step: of the checkpoint.
      config: of the run, with the network as it is written.
      stage: the stage's part of the config.
      values: the parameters by name.
      digests: fingerprints of the VAE and the text encoder.
      about: source and license, for the model card.
    """

    step: int
    config: dict[str, Any]
    stage: registry.StageConfig
    values: Parameters
    digests: dict[str, str]
    about: dict[str, str]


def _open_checkpoint(arguments: argparse.Namespace) -> _Exported:
    """Opens the checkpoint; parameters are read one at a time for their fingerprint."""
    stored = streaming.CheckpointReader(arguments.checkpoint, arguments.step)
    meta = stored.meta
    if 'stage' not in meta['config']:
        raise UsageError(f'--checkpoint={arguments.checkpoint}: holds no stage; use fv_jax.convert for a T5')
    stage = config_lib.build(registry.StageConfig, meta['config']['stage'], 'config.stage')
    arrays = stored.arrays()
    if arguments.params == 'last':
        arrays |= streaming.CheckpointReader(arguments.checkpoint, meta['step'], streaming.STATE).arrays()
    values, stage = _convert_params(key_table.cast_parameters(arrays), stage, arguments)
    about = {
        'source': str(arguments.checkpoint),
        'step': str(meta['step']),
        'parameters': _describe_params(meta['config'], arguments.params),
        'hash': params_fingerprint(values),
        'license': arguments.license,
    }
    config = meta['config'] | {'stage': config_lib.to_dict(stage), 'exported': about}
    return _Exported(meta['step'], config, stage, values, meta.get('digests', {}), about)


def _convert_params(
    values: Parameters, stage: registry.StageConfig, arguments: argparse.Namespace
) -> tuple[Parameters, registry.StageConfig]:
    if isinstance(config := stage.network, DiTConfig):
        if arguments.lora == 'merge':
            values, config = official_dit.merge_lora_parameters(values, config)
        # float16 is a storage format only; a network never computes in it.
        if arguments.dtype in ('float32', 'bfloat16'):
            config = dataclasses.replace(config, param_dtype=arguments.dtype)
        stage = dataclasses.replace(stage, network=config)
    return key_table.cast_parameters(values, arguments.dtype), stage


def _describe_params(config: dict[str, Any], params: str) -> str:
    decay = config.get('optim', {}).get('ema_decay', 0)
    return f'EMA (decay {decay})' if decay and params == 'ema' else 'of the last step'


def _write_file(path: StoragePath, exported: _Exported) -> None:
    stage = exported.stage
    if isinstance(stage.network, VAEConfig):
        single_file.write(path, exported.values, stage.network)
        return
    run = {'step': exported.step, 'config': exported.config, 'digests': exported.digests}
    single_file.write(path, exported.values, stage.network, {single_file.RUN: json.dumps(run)})


def _write_folder(folder: StoragePath, exported: _Exported, arguments: argparse.Namespace) -> None:
    network = ModelDef.from_stage(registry.build(exported.stage))
    groups = {'trainable': network.trainable, 'frozen': network.frozen}
    params = {name: key_table.to_nested(state, exported.values) for name, state in groups.items()}
    forwards = _forwards(exported, arguments) if arguments.export_functions else []
    streaming.save(folder, exported.step, params, exported.config, exported.digests)
    functions = (
        _write_forwards(folder / FORWARD, exported, forwards, arguments.export_functions.split(',')) if forwards else []
    )
    loader = exported_functions.LOADER if functions else ''
    card = model_card.render(folder.name, exported.config, exported.digests, exported.about, functions, loader)
    files.write_text(folder / model_card.NAME, card)


def _forwards(exported: _Exported, arguments: argparse.Namespace) -> list[ExportedFunction]:
    frames, height, width = (int(part) for part in re.fullmatch(_SIZE, arguments.size).groups())
    meta = {'config': exported.config, 'digests': exported.digests}
    latent_spec = trained_runs.latent_spec(trained_runs.read_stage_config(arguments.checkpoint, meta))
    stage = registry.build(exported.stage)
    return exported_functions.list_functions(stage, latent_spec, (frames, height, width), context=PORTABLE)


def _write_forwards(
    folder: StoragePath, exported: _Exported, forwards: Sequence[ExportedFunction], platforms: Sequence[str]
) -> list[str]:
    stage = registry.build(exported.stage)
    files.make_folder(folder)
    for forward in forwards:
        artefact = exported_functions.export_stablehlo(forward, stage, platforms)
        files.write_bytes(folder / f'{forward.name}{exported_functions.SUFFIX}', artefact)
    wanted = exported_functions.parameter_names(stage)
    arrays = ((name, exported.values[name].numpy().astype(dtype)) for name, dtype in wanted)
    with files.atomic_write(folder / exported_functions.PARAMETERS) as partial:
        exported_functions.write_parameters(partial, arrays)
    return [f'{forward}, for {", ".join(platforms)}' for forward in forwards]


if __name__ == '__main__':
    sys.exit(main())
