"""The manifest of a set of shards: NAME.parquet beside them, so that opening the set reads none of them.

It has one row a record, in the order of the shards NAME-i-of-n.array_record:

  shard                    int32, i
  frames, height, width    int32, of its clip; zeros where they are unknown

and, where `prepare` wrote the set,

  source                   string, the video
  first_seconds, last_seconds    float64, where in the video the clip begins and ends
  fps                      float64, frames per second
  bytes                    int64, the size of the record
  caption                  string, null for a clip without one
  fingerprint              string, of the record (`core/hashing`)

  its scores               `data/curation/scores.py`
  duplicate_of             int64, the number of the clip that it is a near duplicate of, among the clips of all sets of
                           the name in their order; null for others

with more columns, float64, bool or string, for what else was measured of a clip. The file's metadata holds, under
FORMAT, the set's name, the records and the bytes of each shard, and the keys that its records have. Everything else
about a set is in NAME.json. Without the columns of `prepare`, clips of one size take about 10 bytes a shard.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fv_jax.core.checks import require
from fv_jax.core.files import parse_json
from fv_jax.core.local_copies import local_copy
from fv_jax.core.paths import StoragePath
from fv_jax.data.record_sizes import SIZE_LIMIT, RecordSizes
from fv_jax.data.shards.records import first_line

SUFFIX = '.parquet'
FORMAT = b'fv_jax.shards'
SIZE = ('frames', 'height', 'width')
_GROUP_RECORDS = 2**17  # of a row group, at least: what is written and read at once
# The columns whose types do not follow from their values.
_TYPES = {'shard': 'int32', 'frames': 'int32', 'height': 'int32', 'width': 'int32', 'bytes': 'int64'}
_KINDS = {bool: 'bool', int: 'double', float: 'double', str: 'string'}
FIX = 'prepare the clips again, or remove this file: then the shards themselves are read when they are opened'


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The manifest of a set of shards; the sizes of the records are read when they are needed.

    Attributes:
      path: the Parquet file.
      name: of the set.
      keys: that the records have, at least some of them.
      records: number of records of each shard, int64 (shards,).
      bytes: size of each shard, int64 (shards,).
    """

    path: StoragePath
    name: str
    keys: frozenset[str]
    records: np.ndarray
    bytes: np.ndarray

    def sizes(self, shards: np.ndarray | None = None) -> RecordSizes:
        """Reads the sizes of the records of all shards, or of those with these numbers, in increasing order.

        Raises:
          ValueError: the file is damaged.
        """
        wanted = np.ones(len(self.records), bool)
        if shards is not None:
            wanted[:] = False
            wanted[shards] = True
        return RecordSizes.collect(self._read_sizes(wanted))

    def _read_sizes(self, wanted: np.ndarray) -> Iterator[np.ndarray]:
        ends = np.cumsum(self.records)
        start = 0
        with _open(self.path) as file:
            for group in _row_groups(self.path, file, SIZE):
                columns = [group[name] for name in SIZE]
                fits = all(str(column.type) == 'int32' and not column.null_count for column in columns)
                _require(fits, self.path, 'lists sizes that no clip has')
                sizes = np.stack([column.to_numpy() for column in columns], axis=-1)
                fits = sizes.min(initial=0) >= 0 and sizes.max(initial=0) < SIZE_LIMIT
                _require(fits, self.path, 'lists sizes that no clip has')
                shards = np.searchsorted(ends, np.arange(start, start + len(sizes)), side='right')
                start += len(sizes)
                yield sizes if wanted.all() else sizes[wanted[shards]]

    def columns(self) -> tuple[str, ...]:
        """Returns the names of the columns. Raises ValueError: the file is damaged."""
        with _open(self.path) as file:
            return tuple(file.schema_arrow.names)

    def read_columns(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yields Arrow arrays of some columns, a few hundred thousand records at a time.

        Raises:
          ValueError: the file is damaged, or has no such column.
        """
        with _open(self.path) as file:
            yield from _row_groups(self.path, file, names)


def read_manifest(path: StoragePath, name: str) -> Manifest:
    """Reads the manifest of a set of shards.

    Args:
      path: the Parquet file, which is copied to the cache folder if it is remote.
      name: of the set.

    Raises:
      ValueError: it cannot be read, is of another set, or contradicts itself.
      OSError: it cannot be fetched.
    """
    with _open(path) as file:
        metadata = _metadata(path, file)
        rows = file.metadata.num_rows
    _require(metadata['name'] == name, path, f'is the manifest of {metadata["name"]!r}')
    records, sizes = (np.array(metadata[key], np.int64) for key in ('records', 'bytes'))
    _require(min(records.min(initial=0), sizes.min(initial=0)) >= 0, path, 'states a negative number')
    _require(len(records) == len(sizes), path, f'states the records of {len(records)} shards and {len(sizes)} sizes')
    _require(records.sum() == rows, path, f'has {rows} rows, and states {records.sum()} records')
    return Manifest(path, name, frozenset(metadata['keys']), records, sizes)


def _require(condition: object, path: StoragePath, what: str) -> None:
    require(condition, f'{path}: {what}; {FIX}')


def _open(path: StoragePath) -> Any:
    """Opens a Parquet file. Raises ValueError for a file that is none, or is truncated."""
    import pyarrow.parquet  # a quarter of a second, which commands without data sets do not wait for

    local = local_copy(path)
    try:
        return pyarrow.parquet.ParquetFile(local)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f'{path}: truncated, or not a Parquet file: {first_line(error)}; {FIX}') from None


def _row_groups(path: StoragePath, file: Any, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yields Arrow arrays of some columns, one row group after another."""
    import pyarrow

    missing = sorted(set(columns) - set(file.schema_arrow.names))
    _require(not missing, path, f'has no column {", ".join(missing)}')
    try:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, list(columns), use_threads=False)
            yield {name: table[name].combine_chunks() for name in columns}
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f'{path}: damaged: {first_line(error)}; {FIX}') from None


def _metadata(path: StoragePath, file: Any) -> dict[str, Any]:
    text = (file.schema_arrow.metadata or {}).get(FORMAT) or (file.metadata.metadata or {}).get(FORMAT)
    _require(text is not None, path, 'is not the manifest of a set of shards')
    try:
        found = parse_json(text)
        metadata = {key: kind(found[key]) for key, kind in _METADATA.items()}
        if not all(type(count) is int for key in ('records', 'bytes') for count in metadata[key]):
            raise ValueError('not integers')
        return metadata
    except (ValueError, KeyError, TypeError):
        raise ValueError(f'{path}: its metadata cannot be read; {FIX}') from None


_METADATA = {'name': str, 'records': list, 'bytes': list, 'keys': list}
CLIP_COLUMNS = {
    **{'source': 'string', 'first_seconds': 'double', 'last_seconds': 'double', 'fps': 'double', 'bytes': 'int64'},
    **{'caption': 'string', 'fingerprint': 'string'},
}


def column_type(name: str, value: Any) -> str:
    """Returns the Arrow type of a column with such a value. Raises ValueError for a value that no column has."""
    known = _TYPES.get(name) or CLIP_COLUMNS.get(name) or _KINDS.get(type(value))
    if known is None:
        raise ValueError(f'{name}={value!r}: a manifest has numbers, booleans and strings')
    return known


class ManifestWriter:
    """Writes a manifest shard by shard. All methods raise OSError for a disk that is full."""

    def __init__(self, path: Path, columns: Mapping[str, str] | None = None):
        """Opens the file.

        Args:
          path: a local one.
          columns: name -> type (`column_type`) of the columns besides the shard and the sizes.
        """
        import pyarrow
        import pyarrow.parquet

        types = dict.fromkeys(('shard', *SIZE), 'int32') | dict(columns or {})
        self._schema = pyarrow.schema([(name, pyarrow.type_for_alias(kind)) for name, kind in types.items()])
        self._file = pyarrow.parquet.ParquetWriter(path, self._schema, compression='zstd')
        self._pending: list[dict[str, Any]] = []
        self._rows = 0  # of the pending shards
        self._records: list[int] = []
        self._bytes: list[int] = []
        self._keys: set[str] = set()

    def add(self, size: int, columns: Mapping[str, Sequence[Any] | np.ndarray], keys: Iterable[str]) -> None:
        """Adds a shard.

        Args:
          size: of the file, in bytes.
          columns: name -> the values of one record after another; frames, height and width are among them. Of other
            columns that are missing the values are null.
          keys: that its records have.
        """
        import pyarrow

        count = len(columns['frames'])
        given = {'shard': np.full(count, len(self._records), np.int32)} | dict(columns)
        arrays = {
            field.name: pyarrow.array(given[field.name], field.type)
            if field.name in given
            else pyarrow.nulls(count, field.type)
            for field in self._schema
        }
        self._pending.append(arrays)
        self._records.append(count)
        self._bytes.append(size)
        self._keys.update(keys)
        self._rows += count
        if self._rows >= _GROUP_RECORDS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        if not self._pending:
            return
        columns = [pyarrow.chunked_array([arrays[name] for arrays in self._pending]) for name in self._schema.names]
        self._file.write_table(pyarrow.table(columns, schema=self._schema))
        self._rows = 0
        self._pending.clear()

    def close(self, name: str) -> None:
        """Completes the file; name: of the set."""
        self._flush()
        found = {'name': name, 'records': self._records, 'bytes': self._bytes, 'keys': sorted(self._keys)}
        self._file.add_key_value_metadata({FORMAT: json.dumps(found).encode()})
        self._file.close()
