"""`sample enhance`: high-resolution videos of stored previews."""

import argparse

from fv_jax.core.checks import error_context
from fv_jax.core.command_line import Parser, UsageError, path_flag
from fv_jax.core.output_paths import check_output_file
from fv_jax.sample import pipeline
from fv_jax.sample.flags import ENHANCE, SUFFIX, Command, Overrides, add_batch_flags, add_weights_flags
from fv_jax.sampling import batch, preview_store


def _add_flags(parser: Parser) -> None:
    add = parser.add_argument
    add('folders', metavar='FOLDER', type=path_flag, nargs='+', help='a stored preview, such as RUN/0')
    add('--output', type=path_flag, help='the mp4 to write, for one preview (default: FOLDER/video.mp4)')
    add('--seed', type=int, help="of the noise (default: the preview's)")
    add_batch_flags(parser)
    add_weights_flags(parser)


def _run(arguments: argparse.Namespace, overrides: Overrides) -> None:
    folders = arguments.folders
    if arguments.output is not None and len(folders) > 1:
        raise UsageError(f'--output={arguments.output}: {len(folders)} previews are enhanced; remove it')
    outputs = [arguments.output or folder / preview_store.VIDEO for folder in folders]
    with error_context('', error=UsageError):
        stored = [preview_store.load(folder) for folder in folders]
    for output in outputs:
        check_output_file(output, SUFFIX, arguments.overwrite, '--output=' if arguments.output else '')
    origins = {preview.metadata.origin for preview in stored}
    if len(origins) > 1 and not (arguments.official or arguments.checkpoint):
        raise UsageError(
            f'{folders[0]}, ...: the previews were made with different weights; pass --official or --checkpoint, or '
            'enhance them separately'
        )
    fv = pipeline.open_pipeline(arguments, stored[0].metadata.origin)
    settings = pipeline.override_settings(fv.enhance_settings, ENHANCE, overrides[ENHANCE])
    file = batch.Mp4Options(arguments.fps, arguments.crf)
    batch.enhance_previews(fv, stored, outputs, settings, arguments.seed, arguments.batch_size, file)
    pipeline.report_enhancing(fv, settings, stored)


COMMAND = Command('Enhances stored previews to high-resolution videos.', _add_flags, _run, (ENHANCE,))
