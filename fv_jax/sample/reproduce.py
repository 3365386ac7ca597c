"""`sample reproduce`: an mp4 again, from the metadata in it."""

import argparse
import logging

from fv_jax.core.checks import error_context, require
from fv_jax.core.command_line import Parser, UsageError, path_flag
from fv_jax.core.output_paths import check_output_file
from fv_jax.data.video import containers
from fv_jax.parallel import distributed
from fv_jax.sample import pipeline
from fv_jax.sample.flags import SUFFIX, Command, Overrides, add_overwrite_flag, add_pipeline_flags
from fv_jax.sampling import batch, metadata, prompts

log = logging.getLogger(__name__)


def _add_flags(parser: Parser) -> None:
    parser.add_argument('video', metavar='VIDEO', type=path_flag, help='an mp4 that `preview` or `enhance` wrote')
    parser.add_argument('--output', type=path_flag, required=True, help='the mp4 to write')
    add_overwrite_flag(parser)
    add_pipeline_flags(parser)


def _run(arguments: argparse.Namespace, overrides: Overrides) -> None:
    del overrides
    check_output_file(arguments.output, SUFFIX, arguments.overwrite)
    with error_context('', error=UsageError):
        text = containers.read_comment(arguments.video)
    with error_context(f'{arguments.video}: ', error=UsageError):
        recorded = metadata.from_json(text)
        made = 'was enhanced from a clip, which it does not contain; run `sample clip` again'
        require(recorded.preview is not None, made)
    result = batch.reproduce(pipeline.open_pipeline(arguments, recorded.origin), recorded)
    if distributed.is_first_process():
        result.save(arguments.output, fps=recorded.fps, crf=recorded.crf)
    log.info(f'{arguments.output}: {prompts.quote_prompt(recorded.preview.prompt)}, reproduced')


COMMAND = Command('Generates an mp4 again from the metadata in it.', _add_flags, _run)
