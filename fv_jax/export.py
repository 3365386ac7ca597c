"""Exports the parameters of a run for sampling: `python -m fv_jax.export --checkpoint RUN --output OUT`.

OUT is a folder, which opens like that of a run: config.json, model.safetensors (or parts of it with an index) and
README.md, the model card. Or it is a file, *.safetensors: a small network in float16 with its config. A config takes
either of a VAE as `stage.vae`, and `fv_jax.open_run` opens either of a stage like a run. The weights in the package are
such files.

    --format diffusers                a folder that stock classes of diffusers (PyTorch) load
    --format peft                     the LoRA alone, as PEFT and diffusers name it
    --params last                     those of the last step, if the run keeps an EMA (default: the EMA)
    --lora merge                      merges LoRA into the weights; default: kept separate
    --add-lora FILE                   adds LoRA that was trained elsewhere, a safetensors file of PEFT or diffusers
    --dtype bfloat16                  parameter dtype in a folder; default: as stored
    --export-functions cpu,tpu,cuda   also the forward functions of a stage 2 or a VAE, as StableHLO that runs without
                                      fv_jax; the model card shows how to load them
    --push hf://USER/NAME             uploads the folder to the Hugging Face Hub; with --dry-run it is only checked
    --size 17x256x384                 frames, height and width of the video that the functions take, or that the folder
                                      for diffusers is made for (default: that of the run)

Exit codes: 0 success; 2 wrong usage; 1 failure, nothing was written.
"""

import argparse
import logging
import re
import sys
from collections.abc import Sequence

from fv_jax.checkpoints.errors import CheckpointError
from fv_jax.core import exit_codes, files
from fv_jax.core.checks import error_context, require
from fv_jax.core.command_line import Parser, UsageError, path_flag, weights_flag
from fv_jax.core.commands import run_command
from fv_jax.core.devices import check_devices
from fv_jax.core.files import is_remote
from fv_jax.core.output_paths import check_output
from fv_jax.core.paths import StoragePath, absolute
from fv_jax.weights import exported_functions, hub_push, model_card
from fv_jax.weights.exports import FORMATS, Choices, Export, open_export, write_file
from fv_jax.weights.hub_push import Push

log = logging.getLogger('fv_jax.export')

SUFFIX = '.safetensors'
_SIZE = r'(\d+)x(\d+)x(\d+)'


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments (without the program's name) and returns its exit code."""
    return run_command('export', _export, argv, errors={CheckpointError: exit_codes.FAILED})


def _export(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    push = _check(arguments)
    check_devices()
    exported = open_export(arguments.checkpoint, _choices(arguments))
    output = absolute(arguments.output)
    if output.suffix == SUFFIX:
        with files.atomic_write(output) as partial:
            write_file(partial, exported)
        size = files.info(output).size
    else:
        size = _write_folder(exported, arguments)
    log.info(f'{arguments.output}: step {exported.step}, {size:,} bytes')
    if push is not None:
        _push(output, push, exported, arguments.dry_run)
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        'python -m fv_jax.export', 'Exports the parameters of a run for sampling, to a folder or one small file.'
    )
    add = parser.add_argument
    add('--checkpoint', type=weights_flag, required=True, help='the work directory of a run, or an export')
    add('--output', type=path_flag, required=True, help='a folder, or a file *.safetensors (float16)')
    add('--format', choices=tuple(FORMATS), default='fv_jax', help='of a folder (default: %(default)s)')
    add('--step', type=int, help='the step of the checkpoint (default: the newest)')
    add('--params', choices=('ema', 'last'), default='ema', help='EMA parameters, or those of the last step')
    add('--lora', choices=('keep', 'merge'), default='keep', help='keep LoRA separate, or merge it into the weights')
    add('--add-lora', type=weights_flag, metavar='FILE', help='LoRA to add: a safetensors file of PEFT or diffusers')
    add('--dtype', choices=('float32', 'bfloat16', 'float16'), help='parameter dtype of a folder (default: as stored)')
    add('--export-functions', help='also export the forward functions for these platforms: cpu,tpu,cuda')
    add('--size', help='of the video: FRAMESxHEIGHTxWIDTH')
    add('--license', default='', help="of the weights, for the model card, an identifier of the Hub's list")
    add('--base-model', default='', metavar='NAME', help='USER/NAME that the weights were tuned from, for the card')
    add('--push', metavar='hf://USER/NAME', help='upload the folder to the Hugging Face Hub')
    add('--private', action='store_true', help='with --push: as a private model, if it is new')
    add('--dry-run', action='store_true', help='with --push: check the folder as the Hub would, upload nothing')
    add('--overwrite', action='store_true', help='replace an existing folder')
    return parser.parse_flags(argv)


def _check(arguments: argparse.Namespace) -> Push | None:
    """Checks what needs no checkpoint; returns where to push. Raises UsageError."""
    output = arguments.output
    require(output.suffix in ('', SUFFIX), f'--output={output}: must end in {SUFFIX}, or be a folder', UsageError)
    check_output(output, arguments.checkpoint, arguments.overwrite or not output.is_dir(), 'run')
    # Another run would be lost.
    if output.is_dir() and not (output / model_card.NAME).is_file():
        raise UsageError(f'--output={output}: is a folder that this command did not write; choose another')
    require(not output.is_file() or output.suffix == SUFFIX, f'--output={output}: is a file', UsageError)
    given = {
        f'--dtype={arguments.dtype}': arguments.dtype not in (None, 'float16'),
        '--export-functions': arguments.export_functions,
        f'--format={arguments.format}': arguments.format != 'fv_jax',
    }
    for flag, is_given in given.items():
        wrong = f'{flag}: a file {SUFFIX} holds parameters in float16 only; give a folder as --output'
        require(not (output.suffix and is_given), wrong, UsageError)
    _check_functions(arguments)
    return _check_push(arguments)


def _check_push(arguments: argparse.Namespace) -> Push | None:
    if arguments.push is None:
        flag = '--dry-run' if arguments.dry_run else '--private'
        wrong = f'{flag}: belongs to --push, which is missing'
        require(not (arguments.dry_run or arguments.private), wrong, UsageError)
        return None
    is_folder = arguments.output.suffix == '' and not is_remote(arguments.output)
    require(is_folder, f'--push: uploads a local folder; --output={arguments.output} is none', UsageError)
    with error_context('', error=UsageError):
        return Push.from_flag(arguments.push, arguments.private)


def _check_functions(arguments: argparse.Namespace) -> None:
    size, functions = arguments.size, arguments.export_functions
    if functions is not None:
        own = f'--export-functions: not part of --format={arguments.format}; remove one of them'
        require(arguments.format == 'fv_jax', own, UsageError)
        platforms = functions.split(',')
        if unknown := [name for name in platforms if name not in exported_functions.PLATFORMS]:
            known = ', '.join(exported_functions.PLATFORMS)
            raise UsageError(f'--export-functions={functions}: {unknown[0]!r} is not one of {known}')
    if arguments.format == 'fv_jax' and (functions is None) != (size is None):
        raise UsageError('--export-functions and --size: give both or neither')
    if size is not None and re.fullmatch(_SIZE, size) is None:
        raise UsageError(f'--size={size}: give FRAMESxHEIGHTxWIDTH, for example 17x256x384')


def _choices(arguments: argparse.Namespace) -> Choices:
    size = arguments.size and tuple(int(part) for part in re.fullmatch(_SIZE, arguments.size).groups())
    return Choices(
        step=arguments.step,
        last=arguments.params == 'last',
        merge_lora=arguments.lora == 'merge' or arguments.format == 'diffusers',
        add_lora=arguments.add_lora,
        dtype=arguments.dtype,
        size=size,
        platforms=tuple((arguments.export_functions or '').split(',')) if arguments.export_functions else (),
        license=arguments.license,
        base_model=arguments.base_model,
    )


def _write_folder(exported: Export, arguments: argparse.Namespace) -> int:
    """Writes the folder; returns its size in bytes."""
    output, export_format = absolute(arguments.output), FORMATS[arguments.format]
    export_format.check(exported)
    with files.write_folder(output, marker=model_card.NAME) as folder:
        notes = export_format.write(folder, exported)
    for note in notes:
        log.info(f'note: {note}')
    return sum(info.size for info in files.list_files(output).values())


def _push(folder: StoragePath, push: Push, exported: Export, dry_run: bool) -> None:
    names = hub_push.check_folder(folder, push)
    described = hub_push.describe(names, folder, push)
    if dry_run:
        log.info(f'would upload {described}; nothing was uploaded (--dry-run)')
        return
    log.info(f'uploading {described}')
    log.info(hub_push.upload(folder, push, f'Upload step {exported.step} of {exported.stage.kind}'))


if __name__ == '__main__':
    sys.exit(main())
