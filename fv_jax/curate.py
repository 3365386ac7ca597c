"""Shows what a filter keeps of prepared clips: `python -m fv_jax.curate --input CLIPS --output page.html`.

The page has counts by reason, histograms of the scores that `prepare` wrote, frames of the clips that each part of the
filter drops, near duplicates, and the clips with the lowest and the highest scores (`data/curation/report`). Nothing in
the data set is changed: a run with the same `--config.data.filter` trains on what is kept here.

Exit codes: 0 success; 2 wrong usage; 1 failure.
"""

import argparse
import sys
from collections.abc import Sequence

from fv_jax.core.checks import error_context
from fv_jax.core.command_line import Parser, UsageError, path_flag
from fv_jax.core.commands import run_command
from fv_jax.core.files import is_remote
from fv_jax.core.output_paths import check_output_file
from fv_jax.core.paths import StoragePath
from fv_jax.data.config import DataConfig
from fv_jax.data.curation.clip_table import ClipTable
from fv_jax.data.curation.filters import Filter
from fv_jax.data.curation.report import report_selection
from fv_jax.data.shards.remote import RemoteShards
from fv_jax.data.shards.selection import Selection
from fv_jax.data.shards.shard_cache import ShardCache
from fv_jax.data.shards.shard_files import list_shards
from fv_jax.data.shards.source import Shards


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments (without the program's name) and returns its exit code."""
    return run_command('curate', _curate, argv)


def _curate(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    with error_context('--filter: ', error=UsageError):
        selection = Selection(Filter.parse(arguments.filter), not arguments.keep_duplicates)
    with error_context('--input: ', error=UsageError):
        table = ClipTable(_open(arguments.input))
    report_selection(f'Clips of {arguments.input.name}', table, selection, arguments.output)
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser('python -m fv_jax.curate', 'Shows what a filter keeps of prepared clips.', '')
    parser.add_argument('--input', type=path_flag, required=True, help='a folder that `prepare` wrote')
    parser.add_argument('--output', type=path_flag, required=True, help='the page to write, *.html')
    parser.add_argument('--filter', default='', help='as config.data.filter: sharpness >= 30 and motion > 0.5')
    parser.add_argument('--keep-duplicates', action='store_true', help='as config.data.drop_duplicates=false')
    arguments = parser.parse_flags(argv)
    check_output_file(arguments.output, '.html', overwrite=True)
    return arguments


def _open(folder: StoragePath) -> Shards:
    if is_remote(folder):
        return RemoteShards(folder, ShardCache(DataConfig.cache_gb), window=1)
    return Shards(list_shards(folder))


if __name__ == '__main__':
    sys.exit(main())
