"""The files of a set of shards: NAME-00000-of-00003.array_record, with NAME.json and NAME.parquet beside them.

NAME.json is what is known of the set as a whole: the networks that made its latents and embeddings, the configuration
of `prepare`. NAME.parquet is the manifest (`manifest.py`). Sets of earlier versions have none; their NAME.json lists
`shards` (file -> number of records) and `sizes` (runs of [frames, height, width, count]).
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader

from fv_jax.core.checks import error_context, require
from fv_jax.core.files import parse_json
from fv_jax.core.local_copies import local_copy
from fv_jax.core.paths import StoragePath, as_path, is_url
from fv_jax.data.shards.records import Record, decode_record, first_line

SUFFIX = '.array_record'
SHARD = re.compile(r'(?P<name>[^/]+)-(?P<index>\d{5,9})-of-(?P<count>\d{5,9})\.array_record')


def expanded_path(text: str | StoragePath) -> StoragePath:
    """Returns the path of a text in which `~` is expanded already."""
    return as_path(text) if is_url(str(text)) else Path(text)


class ShardError(ValueError):
    """Raised when a shard as a whole cannot be read; `shard` is its path."""

    def __init__(self, shard: str, reason: str):
        super().__init__(f'{shard}: {reason}')
        self.shard = shard


def shard_name(name: str, index: int, count: int) -> str:
    """Returns the file name of a shard."""
    return f'{name}-{index:05d}-of-{count:05d}{SUFFIX}'


def list_shards(folder: str | StoragePath, name: str | None = None) -> list[str]:
    """Lists the complete sets of shards in a folder, in order.

    Args:
      folder: where a `RecordWriter` wrote.
      name: of one set; None lists all sets.

    Raises:
      ValueError: the folder does not exist, has no such shards, or lacks a shard of a set.
    """
    path = expanded_path(folder)
    require(path.is_dir(), f'{folder}: no such folder')
    names = [file.name for file in path.iterdir()]
    return [f'{folder}/{file}' for file in select_shards(folder, names, name)]


def select_shards(folder: str | StoragePath, files: Iterable[str], name: str | None = None) -> list[str]:
    """Returns those names of a folder's files that are shards, as `list_shards`."""
    matches = [match for file in files if (match := SHARD.fullmatch(file)) and name in (None, match['name'])]
    matches = [match for match in matches if int(match['index']) < int(match['count'])]
    require(matches, f'{folder}: holds no {name + "-" if name else ""}*{SUFFIX} shards; `prepare` writes them')
    sets: dict[tuple[str, int], set[int]] = {}
    for match in matches:
        sets.setdefault((match['name'], int(match['count'])), set()).add(int(match['index']))
    for (set_name, count), present in sets.items():
        if len(present) < count:
            missing = next(index for index in itertools.count() if index not in present)
            raise ValueError(
                f'{folder}/{shard_name(set_name, missing, count)}: missing; {len(present)} of {count} shards of '
                f'{set_name!r} exist'
            )
    # As sorted by name, with numbers of one width.
    ordered = sorted(matches, key=lambda match: f'{match["name"]}-{match["index"]:0>9}-of-{match["count"]:0>9}')
    return [match.group() for match in ordered]


def read_index(path: StoragePath) -> dict[str, Any]:
    """Reads the NAME.json of a set; {} if it does not exist. Raises ValueError for an invalid one."""
    if not path.exists():
        return {}
    with error_context(f'{path}: cannot be read: '):
        found = parse_json(path.read_text(encoding='utf-8'))
    require(isinstance(found, dict), f'{path}: must be a map (got {type(found).__name__})')
    for key, fits in _INDEX.items():
        require(found.get(key) is None or fits(found[key]), f'{path}: invalid {key!r}; prepare the clips again')
    return found


def _counts(value: Any, length: int | None = None) -> bool:
    """Returns whether a value is a list of non-negative integers, of this length if one is given."""
    fits = isinstance(value, list) and length in (None, len(value))
    return fits and all(type(x) is int and x >= 0 for x in value)


# The fields of an index that readers use, and their checks.
_INDEX = {
    'shards': lambda value: isinstance(value, dict) and _counts(list(value.values())),
    'sizes': lambda value: isinstance(value, list) and all(_counts(run, 4) for run in value),
    'config': lambda value: isinstance(value, dict),
    'records': lambda value: _counts([value]),
    'latents': lambda value: isinstance(value, dict),
    'text': lambda value: (
        isinstance(value, dict)
        and isinstance(value.get('digest'), str)
        and _counts([value.get('length'), value.get('dim')])
    ),
}


def read_records(shards: Sequence[str | StoragePath]) -> Iterator[Record]:
    """Yields every record of `shards`, local or remote, in order. Raises ValueError, naming the shard and the index."""
    for shard in shards:
        reader = _open(shard, local_copy(expanded_path(shard)))
        try:
            for index in range(reader.num_records()):
                try:
                    yield decode_record(reader.read([index])[0])
                except (ValueError, RuntimeError, IndexError) as error:
                    raise ValueError(f'{shard}, record {index}: damaged: {first_line(error)}') from None
        finally:
            reader.close()


def count_records(shards: Sequence[str | Path]) -> int:
    """Counts the records of local `shards`. Raises ShardError for a shard that cannot be opened."""
    total = 0
    for shard in shards:
        reader = _open(shard, shard)
        total += reader.num_records()
        reader.close()
    return total


def open_reader(shard: str, local: str | Path, records: int | None) -> ArrayRecordReader:
    """Opens a shard for random access.

    Args:
      shard: its name, for messages.
      local: the path of its file.
      records: how many it must have; None for any number.

    Raises:
      ShardError: it cannot be opened, or has other records.
    """
    reader = _open(shard, local, options='readahead_buffer_size:0', file_reader_buffer_size=2**15)
    if records not in (None, reader.num_records()):
        raise ShardError(shard, f'has {reader.num_records()} records instead of {records}')
    return reader


def _open(shard: str | StoragePath, local: str | Path, **options: Any) -> ArrayRecordReader:
    if not Path(local).is_file():
        raise ShardError(str(shard), 'no such shard')
    try:
        reader = ArrayRecordReader(str(local), **options)
        if not reader.ok():
            reader.close()  # which raises what is wrong
        return reader
    except (RuntimeError, ValueError) as error:
        raise ShardError(str(shard), f'cut off or not an ArrayRecord file: {first_line(error)}') from None
