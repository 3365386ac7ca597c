"""`sample vbench`: videos of VBench's prompts, in the folder that its evaluation reads.

A subcommand and no mode of `preview`: that one writes folders of latents to choose from, this one mp4 files alone, of
both stages.
"""

import argparse
import logging

from fv_jax.core.checks import error_context
from fv_jax.core.command_line import Parser, UsageError, override_settings, path_flag
from fv_jax.core.output_paths import check_output_folder
from fv_jax.sample import pipeline
from fv_jax.sample.flags import ENHANCE, PREVIEW, Command, Overrides, add_batch_flags, add_pipeline_flags
from fv_jax.sampling import batch, vbench
from fv_jax.sampling.prompt_list import check_complete

log = logging.getLogger(__name__)


def _add_flags(parser: Parser) -> None:
    add = parser.add_argument
    add(
        '--prompts',
        type=path_flag,
        required=True,
        help='a text file with one prompt per line, or VBench_full_info.json',
    )
    add('--dimension', metavar='NAME', nargs='+', default=(), help='only prompts of these dimensions of the JSON file')
    add('--output', type=path_flag, required=True, help='the folder of the videos; one with videos is continued')
    help = 'videos of each prompt (default: %(default)s; VBench asks for 25 for temporal_flickering)'
    add('--num-samples', type=int, default=vbench.NUM_SAMPLES, help=help)
    add('--seed', type=int, default=0, help='another one gives every video another seed (default: %(default)s)')
    add('--previews-only', action='store_true', help='write the previews, without stage 2')
    add_batch_flags(parser)
    add_pipeline_flags(parser)


def _run(arguments: argparse.Namespace, overrides: Overrides) -> None:
    check_output_folder(arguments.output, overwrite=True)
    if arguments.previews_only and overrides[ENHANCE]:
        field = overrides[ENHANCE][0][0]
        raise UsageError(f'--{ENHANCE}.{field}: has no effect with --previews-only; remove one of them')
    with error_context('--prompts=', error=UsageError):
        texts = vbench.read_prompts(arguments.prompts, arguments.dimension)
    with error_context(f'--prompts={arguments.prompts}: ', error=UsageError):
        samples = vbench.list_samples(texts, arguments.output, arguments.num_samples, arguments.seed)
    fv = pipeline.open_pipeline(arguments)
    preview = override_settings(fv.preview_settings, PREVIEW, overrides[PREVIEW])
    enhance = None
    if not arguments.previews_only:
        enhance = override_settings(fv.enhance_settings, ENHANCE, overrides[ENHANCE])
    fv.check(preview, enhance)
    job = vbench.Job(preview, enhance, arguments.batch_size, batch.Mp4Options(arguments.fps, arguments.crf))
    found = vbench.find_existing(fv, samples, job, arguments.overwrite)
    missing = len(samples) - len(found)
    log.info(f'{len(texts)} prompt(s), {len(samples)} video(s): {len(found)} exist already, {missing} to generate')
    check_complete(vbench.generate(fv, samples, found, job))


COMMAND = Command(
    "Generates videos of VBench's prompts under the names that it expects.", _add_flags, _run, (PREVIEW, ENHANCE)
)
