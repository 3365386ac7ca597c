"""Converts weights: official files to checkpoints of this project, and back.

    python -m fv_jax.convert --input stage1.pt --output runs/stage1            # also stage2.pt, 3d-vae.pt
    python -m fv_jax.convert --input runs/stage1 --output stage1.pt            # or stage1.safetensors
    python -m fv_jax.convert --input t5-v1_1-xxl --output runs/t5              # and back: --output a folder

An input may also be the official tensors as .safetensors, or a `transformer` or `vae` folder of a diffusers CogVideoX
pipeline; tensors without a counterpart are reported. The output is a work directory with one checkpoint, of step 0,
which `sample` opens like that of a training run, and which can be another run's `init_from`.

Weights are streamed one parameter at a time: memory holds the largest one, not the network.

Exit codes: 0 success; 2 wrong usage; 1 failure, nothing was written.
"""

import argparse
import dataclasses
import functools
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx
from safetensors.numpy import load, save

from fv_jax import weights
from fv_jax.checkpoints import streaming
from fv_jax.checkpoints.errors import CheckpointError
from fv_jax.checkpoints.steps import FOLDER
from fv_jax.core import config as config_lib
from fv_jax.core import exit_codes, files
from fv_jax.core.abstract_module import abstract_module
from fv_jax.core.checks import require
from fv_jax.core.command_line import Parser, UsageError, path_flag, path_or_name_flag, weights_flag
from fv_jax.core.commands import run_command
from fv_jax.core.console import print_error
from fv_jax.core.devices import check_devices
from fv_jax.core.output_paths import check_checkpoint_folder, check_output
from fv_jax.core.paths import StoragePath, absolute
from fv_jax.models.dit import DiTConfig
from fv_jax.models.t5 import T5, T5Config
from fv_jax.models.vae import VAEConfig
from fv_jax.stages import registry
from fv_jax.stages.protocol import NetworkConfig
from fv_jax.text.encoder import TextConfig
from fv_jax.training.state import ModelDef
from fv_jax.weights import exported_network, official_release, reader, trained_runs
from fv_jax.weights.layouts import key_table, official_dit, t5_folder
from fv_jax.weights.layouts.key_table import KeyMismatchError, Parameters
from fv_jax.weights.text_encoders import is_available, text_fingerprint

log = logging.getLogger('fv_jax.convert')

SUFFIXES = ('.pt', '.safetensors')
UNUSED = 'unused.safetensors'  # in a work directory: tensors of the official file that no network reads
TOKENIZER = ('spiece.model', 'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json')
T5_FILES = (t5_folder.CONFIG, *TOKENIZER)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments (without the program's name) and returns its exit code."""
    return run_command('convert', _convert, argv, errors={CheckpointError: exit_codes.FAILED})


def _convert(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    _check(arguments)
    check_devices()
    kind = _kind(arguments.input)
    try:
        _CONVERSIONS[kind](arguments)
    except KeyMismatchError as error:
        print_error('convert', str(error))  # a line for each key
        return exit_codes.FAILED
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser('python -m fv_jax.convert', 'Converts official weights to a checkpoint, or a checkpoint to them.')
    add = parser.add_argument
    add('--input', type=weights_flag, required=True, help='an official file or folder, or the work directory of a run')
    add('--output', type=path_flag, required=True, help='a work directory, or a file: *.pt or *.safetensors')
    add(
        '--lora',
        choices=('keep', 'merge'),
        default='keep',
        help='keep the LoRA of stage 1 separate, or merge it into the weights',
    )
    add(
        '--dtype',
        choices=('float32', 'bfloat16'),
        help='parameter dtype (default: as stored). A checkpoint keeps LoRA and the VAE in float32',
    )
    add('--step', type=int, help='the step of the checkpoint (default: the newest)')
    add(
        '--vae',
        type=path_or_name_flag,
        help='the VAE that the checkpoint names (default: 3d-vae.pt, or folder vae, beside the input)',
    )
    add(
        '--text',
        type=path_or_name_flag,
        help='the T5 folder that the checkpoint names (default: t5-v1_1-xxl, or folder text_encoder, beside the input)',
    )
    add(
        '--target-stage',
        choices=tuple(registry.KINDS),
        help='the kind of stage of the checkpoint (default: the first one that the network fits)',
    )
    add('--overwrite', action='store_true', help='replace the output if it exists')
    return parser.parse_flags(argv)


def _check(arguments: argparse.Namespace) -> None:
    """Checks what needs no file to be read. Raises UsageError."""
    given, output = arguments.input, arguments.output
    require(given.exists(), f'--input={given}: does not exist', UsageError)
    check_output(output, given, arguments.overwrite, 'input')
    if output.suffix not in SUFFIXES:
        check_checkpoint_folder(output)
    require(not output.is_dir() or output.suffix not in SUFFIXES, f'--output={output}: is a folder', UsageError)
    if others := sorted({path.name for path in files.list_folder(output)} - _OURS):
        raise UsageError(
            f'--output={output}: holds {others[0]}, which this command did not write; choose another folder'
        )


_OURS = {FOLDER, UNUSED, *T5_FILES}


def _kind(path: StoragePath) -> str:
    """Returns the kind of the input: 'weights' (official or diffusers), 't5' or 'run'."""
    if (path.is_dir() and (path / FOLDER).is_dir()) or exported_network.is_folder(path):
        return 'run'
    if path.is_dir() and not (path / t5_folder.CONFIG).is_file():
        raise UsageError(f"--input={path}: holds neither {FOLDER}, as a run does, nor a model's {t5_folder.CONFIG}")
    if path.is_dir():
        config = files.parse_json((path / t5_folder.CONFIG).read_text())
        if not isinstance(config, dict):
            raise ValueError(f'{path / t5_folder.CONFIG}: is not a model config')
        if config.get('model_type') == 't5':
            return 't5'
    return 'weights'


# --- to a checkpoint ---


def _to_run(arguments: argparse.Namespace) -> None:
    _require_folder_output(arguments)
    source = reader.open_weights(arguments.input, param_dtype=arguments.dtype, like=_official_network(arguments))
    values, config = source.parameters(), source.config
    if isinstance(config, VAEConfig) and arguments.dtype == 'bfloat16':
        raise UsageError('--dtype=bfloat16: a VAE is kept in float32')
    if isinstance(config, DiTConfig):
        config = dataclasses.replace(config, dtype=config.param_dtype)
        if arguments.lora == 'merge':
            values, config = official_dit.merge_lora_parameters(values, config)
    stage = _stage(config, arguments)
    digests = _digests(stage)
    network = ModelDef.from_stage(registry.build(stage))
    groups = {'trainable': network.trainable, 'frozen': network.frozen}
    params = {name: key_table.to_nested(state, values) for name, state in groups.items()}
    meta = {'stage': config_lib.to_dict(stage), 'data': _clip(stage.kind), 'converted_from': str(arguments.input)}
    unused = source.unused()
    with files.write_folder(absolute(arguments.output), marker='') as folder:
        if unused:
            files.write_bytes(folder / UNUSED, save(unused))
        streaming.save(folder, 0, params, meta, digests)
    for note in source.notes:
        log.info(f'note: {note}')
    if report := official_dit.frames_embedding_report(values):
        log.info(report)
    log.info(f'{arguments.output}: {_describe(stage.kind, config, values)}')


def _require_folder_output(arguments: argparse.Namespace) -> None:
    if arguments.output.suffix in SUFFIXES:
        raise UsageError(f'--output={arguments.output}: official weights become a work directory, not a file')
    require(arguments.step is None, f'--step={arguments.step}: only a run has steps', UsageError)


def _stage(network: NetworkConfig, arguments: argparse.Namespace) -> registry.StageConfig:
    """Returns the config of the stage that the network belongs to, with official settings."""
    kinds, kind = registry.official_kinds(network), arguments.target_stage
    fits = f'--target-stage={kind}: {arguments.input} has a network of {" or ".join(kinds)}'
    require(kind is None or kind in kinds, fits, UsageError)
    kind = kind or kinds[0]
    stage = registry.KINDS[kind].stage
    if not stage.latents_of:
        return registry.StageConfig(kind, network, stage.official.options)
    vae = arguments.vae or _beside(arguments.input, official_release.VAE_FILE, 'vae')
    text = TextConfig(arguments.text or _beside(arguments.input, official_release.T5_FOLDER, 'text_encoder'))
    return registry.StageConfig(kind, network, stage.official.options, vae=vae, text=text)


def _official_network(arguments: argparse.Namespace) -> Mapping[str, Any]:
    """Returns the fields of the official config that distinguish the network of the target stage."""
    kind = registry.KINDS.get(arguments.target_stage)
    return {} if kind is None else kind.stage.official.network


def _clip(kind: str) -> dict[str, int]:
    """Returns frames, height and width of the clips that the official network of this kind was trained on."""
    return dict(registry.KINDS[kind].stage.official.clip)


def _beside(path: StoragePath, official: str, diffusers: str) -> str:
    return str(absolute(path).parent / (diffusers if path.is_dir() else official))


def _digests(stage: registry.StageConfig) -> dict[str, str]:
    """Returns the fingerprints of the encoders of videos and text that exist. Missing ones are reported."""
    if not registry.needs_vae(stage):
        return {}
    digests = {}
    if weights.vae_path(stage.vae).exists():
        digests['vae'] = weights.encoder_fingerprint(stage.vae)
    else:
        log.info(
            f'note: the checkpoint names {stage.vae} as its VAE, which does not exist; its hash is omitted (--vae)'
        )
    name = stage.text.encoder
    if is_available(stage.text):
        text = text_fingerprint(stage.text)
        _, width = registry.build(stage).text_shape
        require(
            text.dim == width,
            f'--text={name}: has embeddings of width {text.dim}, the network takes {width}',
            UsageError,
        )
        digests['text'] = text.digest
    else:
        log.info(
            f'note: the checkpoint names {name} as its text encoder, which does not exist; its hash is omitted (--text)'
        )
    return digests


def _describe(kind: str, config: Any, values: Parameters) -> str:
    counts: dict[str, int] = {}
    for name, value in values.items():
        group = 'of LoRA' if '.lora.' in name else f'in {value.dtype}'
        counts[group] = counts.get(group, 0) + int(np.prod(value.shape))
    lora = getattr(config, 'lora', None)
    ending = f'; LoRA of rank {lora.rank} on {", ".join(lora.targets)}' if lora else ''
    return f'{kind}, parameters: {", ".join(f"{n:,} {group}" for group, n in counts.items())}{ending}'


# --- T5 ---


def _t5_to_run(arguments: argparse.Namespace) -> None:
    _require_folder_output(arguments)
    config = t5_folder.read_config(arguments.input)
    tensors, table = t5_folder.read_tensors(arguments.input), t5_folder.table(config)
    key_table.check_keys(str(arguments.input), tensors, table)
    config = dataclasses.replace(config, param_dtype=arguments.dtype or reader.stored_dtype(tensors))
    state = nnx.state(abstract_module(functools.partial(T5, config)))
    values = key_table.from_official(
        tensors, table, {name: leaf for name, (_, leaf) in key_table.named_parameters(state).items()}
    )
    meta = {'t5': config_lib.to_dict(config), 'converted_from': str(arguments.input)}
    with files.write_folder(absolute(arguments.output), marker='') as folder:
        _copy_tokenizer(arguments.input, folder)
        streaming.save(folder, 0, {'frozen': key_table.to_nested(state, values)}, meta)
    log.info(f'{arguments.output}: {_describe("t5", config, values)}')


def _run_to_t5(arguments: argparse.Namespace, meta: Mapping[str, Any], values: Parameters) -> None:
    require(arguments.output.suffix not in SUFFIXES, f'--output={arguments.output}: a T5 becomes a folder', UsageError)
    config = config_lib.build(T5Config, meta['config']['t5'], 'config.t5')
    config = dataclasses.replace(config, param_dtype=arguments.dtype or config.param_dtype)
    values = key_table.cast_parameters(values, config.param_dtype)
    network = key_table.build_module(abstract_module(functools.partial(T5, config)), values)
    with files.atomic_write(absolute(arguments.output), marker=t5_folder.CONFIG) as partial:
        t5_folder.save(partial, network)
        _copy_tokenizer(arguments.input, partial)
    log.info(f'{arguments.output}: a T5 folder')


def _copy_tokenizer(source: StoragePath, target: StoragePath) -> None:
    for name in TOKENIZER:
        if (source / name).is_file():
            files.write_bytes(target / name, (source / name).read_bytes())


# --- from a checkpoint ---


def _from_run(arguments: argparse.Namespace) -> None:
    meta, values = trained_runs.open_stored(arguments.input, arguments.step)
    if 't5' in meta['config']:
        return _run_to_t5(arguments, meta, values)
    if arguments.output.suffix not in SUFFIXES:
        raise UsageError(f'--output={arguments.output}: a run becomes a file; it must end in {" or ".join(SUFFIXES)}')
    stage = config_lib.build(registry.StageConfig, meta['config']['stage'], 'config.stage')
    if registry.is_distilled(stage):
        raise UsageError(
            f'--input={arguments.input}: official files have no place for the knots of a {stage.kind}, nor for its '
            'embedding of intervals; use fv_jax.export'
        )
    config = stage.network
    _check_architecture(arguments.input, values, config)
    stored_unused = arguments.input / UNUSED
    unused = load(stored_unused.read_bytes()) if stored_unused.is_file() else None
    output = absolute(arguments.output)
    with files.atomic_write(output) as partial:
        count = reader.write(partial, values, config, lora=arguments.lora, dtype=arguments.dtype, unused=unused)
    size = files.info(output).size
    log.info(f'{arguments.output}: {stage.kind} of step {meta["step"]}, {count:,} tensors, {size:,} bytes')
    return None


def _check_architecture(run: StoragePath, values: Parameters, config: NetworkConfig) -> None:
    leaves = key_table.named_parameters(nnx.state(reader.abstract_network(config)))
    wanted = {name: leaf.shape for name, (_, leaf) in leaves.items()}
    there = {name: value.shape for name, value in values.items()}
    different = sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
    if different:
        name = different[0]
        raise ValueError(
            f'{run}: its parameters are not those of its configuration: {name} is {there.get(name, "absent")} there '
            f'and {wanted.get(name, "absent")} in it ({len(different)} differences)'
        )


_CONVERSIONS = {'weights': _to_run, 't5': _t5_to_run, 'run': _from_run}

if __name__ == '__main__':
    sys.exit(main())
