"""`sample preview`: low-resolution previews of prompts, and on demand their enhancements."""

import argparse
import logging

from fv_jax.core.checks import error_context
from fv_jax.core.command_line import Parser, UsageError, path_flag
from fv_jax.core.output_paths import check_output_folder
from fv_jax.sample import pipeline
from fv_jax.sample.flags import ENHANCE, PREVIEW, PROG, Command, Overrides, add_batch_flags, add_weights_flags
from fv_jax.sampling import batch, preview_store, prompts

log = logging.getLogger(__name__)


def _add_flags(parser: Parser) -> None:
    texts = parser.add_mutually_exclusive_group(required=True)
    texts.add_argument('--prompt', help='the text prompt')
    texts.add_argument('--prompts', type=path_flag, help='a text file with one prompt per line')
    add = parser.add_argument
    add('--output', type=path_flag, required=True, help='the folder of the previews')
    add('--num-samples', type=int, default=1, help='previews of each prompt (default: %(default)s)')
    add('--seed', type=int, default=0, help='of the first preview (default: %(default)s)')
    add('--enhance-all', action='store_true', help='enhance every preview as well')
    add_batch_flags(parser)
    add_weights_flags(parser)


def _run(arguments: argparse.Namespace, overrides: Overrides) -> None:
    check_output_folder(arguments.output, arguments.overwrite)
    if arguments.prompts:
        with error_context('--prompts=', error=UsageError):
            texts = prompts.read_prompts(arguments.prompts)
    else:
        with error_context('--', error=UsageError):
            texts = [prompts.check_prompt(arguments.prompt)]
    with error_context('--prompts: ', error=UsageError):
        texts = prompts.check_prompts(texts)
    with error_context('--', error=UsageError):
        requests = batch.PromptBatch.create(texts, arguments.seed, arguments.num_samples)
    fv, file = pipeline.open_pipeline(arguments), batch.Mp4Options(arguments.fps, arguments.crf)
    preview = pipeline.override_settings(fv.preview_settings, PREVIEW, overrides[PREVIEW])
    final = pipeline.override_settings(fv.enhance_settings, ENHANCE, overrides[ENHANCE])
    fv.check(preview, final if arguments.enhance_all or overrides[ENHANCE] else None)
    folders = batch.generate_previews(fv, requests, arguments.output, preview, arguments.batch_size, file)
    pipeline.report_previewing(fv, preview, len(folders))
    if arguments.enhance_all:
        stored = [preview_store.load(folder) for folder in folders]
        outputs = [folder / preview_store.VIDEO for folder in folders]
        batch.enhance_previews(fv, stored, outputs, final, None, arguments.batch_size, file)
        pipeline.report_enhancing(fv, final, stored)
    else:
        log.info(f'to enhance the ones you like: {PROG} enhance {folders[0]} ...')


COMMAND = Command('Generates low-resolution previews of prompts.', _add_flags, _run, (PREVIEW, ENHANCE))
