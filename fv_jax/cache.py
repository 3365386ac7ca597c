"""Shows and trims the cache folder of this host: `python -m fv_jax.cache`.

The cache holds copies of remote files, each fetched once per host, and compiled programs. It is $FV_JAX_CACHE, or else
~/.cache/fv_jax. Its limit is $FV_JAX_CACHE_GB, or else 200 GB, but at most four fifths of what its disk has free or in
the cache. What was used least recently is removed when something new does not fit.

    --trim-gb N     remove what was used least recently until at most N GB remain; 0 empties the cache
    --kind KIND     show or trim this kind alone: files, shards or compiled

Running processes are not disturbed: copies that they use remain, and compiled programs are compiled again when needed.

Exit codes: 0 success; 2 wrong usage; 1 failure.
"""

import math
import shutil
import sys
import time
from collections.abc import Iterator, Sequence

from fv_jax.core.cache_folder import (
    GB,
    KINDS,
    LIMIT_VARIABLE,
    VARIABLE,
    Item,
    list_items,
    make_cache_folder,
    read_limit,
    total_size,
    trim,
)
from fv_jax.core.checks import require
from fv_jax.core.command_line import Parser, UsageError
from fv_jax.core.commands import run_command
from fv_jax.core.console import print_result
from fv_jax.core.files import format_bytes

SHOWN = 5  # items of each list


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments (without the program's name) and returns its exit code."""
    return run_command('cache', _cache, argv)


def _cache(argv: Sequence[str]) -> int:
    parser = Parser('python -m fv_jax.cache', 'Shows and trims the cache folder of this host.')
    parser.add_argument(
        '--trim-gb', type=float, metavar='N', help='remove what was used least recently until at most N GB remain'
    )
    parser.add_argument('--kind', choices=KINDS, help='show or trim this kind alone')
    arguments = parser.parse_flags(argv)
    kinds = [arguments.kind] if arguments.kind else KINDS
    if arguments.trim_gb is not None:
        most = arguments.trim_gb
        require(0 <= most < math.inf, f'--trim-gb={most}: must be a number of GB, at least 0', UsageError)
        removed, left = trim(most * GB, kinds)
        print_result(f'removed {len(removed)} entries, {format_bytes(total_size(removed))}')
        if total_size(left) > most * GB:
            print_result(f'{len(left)} entries, {format_bytes(total_size(left))}, are in use and remain')
    folder = make_cache_folder()
    items = list_items(folder)
    size, limit = total_size(items), read_limit(folder, total_size(items))
    print_result(
        f'{folder}: {format_bytes(size)}; at most {format_bytes(limit.bytes)} ({LIMIT_VARIABLE} sets it, {VARIABLE} '
        f'the folder); its disk has {format_bytes(shutil.disk_usage(folder).free)} free'
    )
    for line in _lines([item for item in items if item.kind in kinds], kinds):
        print_result(line)
    return 0


def _lines(items: Sequence[Item], kinds: Sequence[str]) -> Iterator[str]:
    """Yields a table of the kinds, the largest items, and the first of `items`, which would be removed next."""
    yield f'{"kind":<9} {"entries":>8} {"size":>9}  last use'
    for kind in kinds:
        some = [item for item in items if item.kind == kind]
        used = _format_time(max(item.used for item in some)) if some else '-'
        yield f'{kind:<9} {len(some):>8} {format_bytes(total_size(some)):>9}  {used}'
    for title, some in (('largest', sorted(items, key=lambda item: -item.size)), ('least recently used', items)):
        yield f'{title}:' if items else f'{title}: none'
        for item in some[:SHOWN]:
            note = ', incomplete' if item.is_partial else ''
            yield f'  {item.kind:<9} {format_bytes(item.size):>9}  {_format_time(item.used)}  {item.name}{note}'


def _format_time(seconds: float) -> str:
    return time.strftime('%Y-%m-%d %H:%M', time.localtime(seconds))


if __name__ == '__main__':
    sys.exit(main())
