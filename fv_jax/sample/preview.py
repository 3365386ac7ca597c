"""`sample preview`: low-resolution previews of prompts, and on demand their enhancements."""

import argparse
import functools
import logging

from fv_jax.core.checks import error_context
from fv_jax.core.command_line import Parser, UsageError, override_settings, path_flag
from fv_jax.core.output_paths import check_output_folder
from fv_jax.sample import enhance, pipeline
from fv_jax.sample.flags import ENHANCE, PREVIEW, PROG, Command, Overrides, add_batch_flags, add_pipeline_flags
from fv_jax.sampling import batch, preview_store, prompts
from fv_jax.sampling.prompt_list import check_complete

log = logging.getLogger(__name__)


def _add_flags(parser: Parser) -> None:
    texts = parser.add_mutually_exclusive_group(required=True)
    texts.add_argument('--prompt', help='the text prompt')
    texts.add_argument('--prompts', type=path_flag, help='a text file with one prompt per line')
    add = parser.add_argument
    add('--output', type=path_flag, required=True, help='the folder of the previews; a list of it is continued')
    add('--num-samples', type=int, default=1, help='previews of each prompt (default: %(default)s)')
    add('--seed', type=int, default=0, help='of the first preview (default: %(default)s)')
    add('--enhance-all', action='store_true', help='enhance every preview as well')
    add_batch_flags(parser)
    add_pipeline_flags(parser)


def _run(arguments: argparse.Namespace, overrides: Overrides) -> None:
    requests = _read_requests(arguments)
    folder = arguments.output
    stored = preview_store.list_stored(folder)
    ours = functools.partial(preview_store.belongs_to, count=len(requests.prompts), stored=stored)
    check_output_folder(folder, arguments.overwrite, continues=ours)
    fv, file = pipeline.open_pipeline(arguments), batch.Mp4Options(arguments.fps, arguments.crf)
    settings = override_settings(fv.preview_settings, PREVIEW, overrides[PREVIEW])
    final = override_settings(fv.enhance_settings, ENHANCE, overrides[ENHANCE])
    fv.check(settings, final if arguments.enhance_all or overrides[ENHANCE] else None)
    found = batch.find_existing_previews(fv, requests, folder, settings, file, arguments.overwrite)
    folders = batch.preview_folders(folder, len(requests.prompts))
    if arguments.enhance_all:  # a video that differs is refused before a preview is sampled
        outputs, stored = enhance.read_stored([folders[i] for i in found])
        batch.find_existing_videos(stored, outputs, final, None, file, arguments.overwrite)
    previews = batch.generate_previews(fv, requests, found, folder, settings, arguments.batch_size, file)
    if previews.made:
        pipeline.report_previewing(fv, settings, len(previews.made))
    if not arguments.enhance_all:
        log.info(f'to enhance the ones you like: {PROG} enhance {folders[0]} ...')
        check_complete(previews)
        return
    outputs, stored = enhance.read_stored([path for i, path in enumerate(folders) if i not in previews.failed])
    check_complete(previews, enhance.enhance_stored(fv, stored, outputs, final, arguments))


def _read_requests(arguments: argparse.Namespace) -> batch.PromptBatch:
    """Returns the prompts and seeds that the flags name. Raises UsageError."""
    if arguments.prompts:
        with error_context('--prompts=', error=UsageError):
            texts = prompts.read_prompts(arguments.prompts)
    else:
        with error_context('--', error=UsageError):
            texts = [prompts.check_prompt(arguments.prompt)]
    with error_context('--prompts: ', error=UsageError):
        texts = prompts.check_prompts(texts)
    with error_context('--', error=UsageError):
        return batch.PromptBatch.create(texts, arguments.seed, arguments.num_samples)


COMMAND = Command('Generates low-resolution previews of prompts.', _add_flags, _run, (PREVIEW, ENHANCE))
