"""`sample enhance`: high-resolution videos of stored previews."""

import argparse
import functools
import logging
from collections.abc import Sequence

from fv_jax import api
from fv_jax.core.checks import error_context
from fv_jax.core.command_line import Parser, UsageError, override_settings, path_flag
from fv_jax.core.files import map_paths, remove_partial
from fv_jax.core.output_paths import check_output_file
from fv_jax.core.paths import StoragePath
from fv_jax.parallel import distributed
from fv_jax.sample import pipeline
from fv_jax.sample.flags import ENHANCE, SUFFIX, Command, Overrides, add_batch_flags, add_pipeline_flags
from fv_jax.sampling import batch, preview_store
from fv_jax.sampling.prompt_list import ListProgress, check_complete
from fv_jax.sampling.prompts import quote_prompt
from fv_jax.sampling.results import StoredPreview
from fv_jax.sampling.settings import EnhanceSettings

log = logging.getLogger(__name__)


def _add_flags(parser: Parser) -> None:
    add = parser.add_argument
    add('folders', metavar='FOLDER', type=path_flag, nargs='+', help='a stored preview, such as RUN/0')
    add('--output', type=path_flag, help='the mp4 to write, for one preview (default: FOLDER/video.mp4)')
    add('--seed', type=int, help="of the noise (default: the preview's)")
    add_batch_flags(parser)
    add_pipeline_flags(parser)


def _run(arguments: argparse.Namespace, overrides: Overrides) -> None:
    folders = list(dict.fromkeys(arguments.folders))
    if arguments.output is not None and len(folders) > 1:
        raise UsageError(f'--output={arguments.output}: {len(folders)} previews are enhanced; remove it')
    with error_context('', error=UsageError):
        outputs, stored = read_stored(folders)
    outputs = [arguments.output] if arguments.output else outputs
    flag = '--output=' if arguments.output else ''
    # One that exists is compared below.
    map_paths(functools.partial(check_output_file, suffix=SUFFIX, overwrite=True, flag=flag), outputs)
    origins = {preview.metadata.origin for preview in stored}
    if len(origins) > 1 and not (arguments.official or arguments.checkpoint):
        raise UsageError(
            f'{folders[0]}, ...: the previews were made with different weights; pass --official or --checkpoint, or '
            'enhance them separately'
        )
    fv = pipeline.open_pipeline(arguments, stored[0].metadata.origin)
    settings = override_settings(fv.enhance_settings, ENHANCE, overrides[ENHANCE])
    check_complete(enhance_stored(fv, stored, outputs, settings, arguments, arguments.seed))


def read_stored(folders: Sequence[StoragePath]) -> tuple[list[StoragePath], list[StoredPreview]]:
    """Returns the default output of each preview, and the stored previews."""
    return [folder / preview_store.VIDEO for folder in folders], map_paths(preview_store.load, folders)


def enhance_stored(
    fv: api.FlashVideo,
    stored: Sequence[StoredPreview],
    outputs: Sequence[StoragePath],
    settings: EnhanceSettings,
    arguments: argparse.Namespace,
    seed: int | None = None,
) -> ListProgress:
    """Enhances the previews whose videos do not exist; returns what was made and what failed."""
    file = batch.Mp4Options(arguments.fps, arguments.crf)
    found = batch.find_existing_videos(stored, outputs, settings, seed, file, arguments.overwrite)
    if found:
        found = batch.keep_videos_of_weights(found, outputs, fv.stage2.weight_digests, arguments.overwrite)
        log.info(f'{len(found)} of {len(outputs)} video(s) exist already')
    if distributed.is_first_process():
        remove_partial(outputs)
    labels = [f'{output}: {quote_prompt(preview.prompt)}' for output, preview in zip(outputs, stored, strict=True)]
    videos = ListProgress('video', labels, len(found))
    missing = {i: preview for i, preview in enumerate(stored) if i not in found}
    batch.enhance_previews(fv, missing, outputs, settings, seed, arguments.batch_size, file, videos)
    if videos.made:
        log.info(f'{len(videos.made)} video(s) in {videos.seconds():.1f} s')
        pipeline.report_enhancing(fv, settings, [stored[i] for i in videos.made])
    return videos


COMMAND = Command('Enhances stored previews to high-resolution videos.', _add_flags, _run, (ENHANCE,))
