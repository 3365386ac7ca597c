"""What the subcommands share: their declaration, and flags of files and weights."""

import argparse
from collections.abc import Callable, Mapping
from typing import NamedTuple

from fv_jax import api
from fv_jax.core.command_line import Override, Parser, add_process_flags
from fv_jax.data.video import encoding
from fv_jax.sampling import metadata
from fv_jax.sampling.weights_flags import add_weights_flags

PROG = 'python -m fv_jax.sample'
SUFFIX = '.mp4'
PREVIEW, ENHANCE = api.STAGES  # the groups of settings, --stage1.FIELD=VALUE and --stage2.FIELD=VALUE
Overrides = Mapping[str, list[Override]]  # of the settings, by stage


class Command(NamedTuple):
    """A subcommand. stages: those whose settings `--STAGE.FIELD=VALUE` may set."""

    description: str
    add_flags: Callable[[Parser], None]
    run: Callable[[argparse.Namespace, Overrides], None]
    stages: tuple[str, ...] = ()


def add_batch_flags(parser: Parser) -> None:
    parser.add_argument('--batch-size', type=int, help='default: as many videos as fit into 10,000 tokens')
    parser.add_argument('--fps', type=float, default=metadata.FPS, help='frames per second (default: %(default)g)')
    add_file_flags(parser)


def add_file_flags(parser: Parser) -> None:
    help = 'x264 rate factor, lower is better (default: %(default)s)'
    parser.add_argument('--crf', type=float, default=encoding.DEFAULT_CRF, help=help)
    add_overwrite_flag(parser)


def add_overwrite_flag(parser: Parser) -> None:
    parser.add_argument('--overwrite', action='store_true', help='replace the output if it exists')


def add_pipeline_flags(parser: Parser) -> None:
    add_weights_flags(parser)
    add_process_flags(parser)
