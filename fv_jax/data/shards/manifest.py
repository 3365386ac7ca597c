"""The manifest of a set of shards: NAME.parquet beside them, so that opening the set reads none of them.

It has one row a shard, in order: row i is about NAME-i-of-n.array_record.

  records                  int32, the number of its records
  bytes                    int64, the size of the file
  frames, height, width    list<int32>, of the clip of each record; zeros where they are unknown

The file's metadata holds, under FORMAT, the set's name, the number of its shards and records, and the keys that its
records have. Everything else about a set is in NAME.json. A set of clips of one size takes about 10 bytes a shard.
"""

import array
import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
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
_SIZE = ('frames', 'height', 'width')
_GROUP_RECORDS = 2**17  # of a row group, at least: what is written and read at once
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
        start = 0
        with _open(self.path) as file:
            for group in _row_groups(self.path, file, _SIZE):
                here = slice(start, start + len(group['frames']))
                start = here.stop
                lengths = {tuple(group[name].value_lengths().to_pylist()) for name in _SIZE}
                _require(
                    lengths == {tuple(self.records[here])}, self.path, 'lists other numbers of sizes and of records'
                )
                sizes = np.stack([group[name].flatten().to_numpy(zero_copy_only=False) for name in _SIZE], axis=-1)
                fits = sizes.dtype.kind == 'i' and sizes.min(initial=0) >= 0 and sizes.max(initial=0) < SIZE_LIMIT
                _require(fits, self.path, 'lists sizes that no clip has')
                yield sizes if wanted[here].all() else sizes[np.repeat(wanted[here], self.records[here])]


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
        _require(metadata['name'] == name, path, f'is the manifest of {metadata["name"]!r}')
        columns = {'records': [], 'bytes': []}
        for group in _row_groups(path, file, tuple(columns)):
            for key, parts in columns.items():
                parts.append(group[key].to_numpy(zero_copy_only=False).astype(np.int64))
    records, sizes = (np.concatenate([np.zeros(0, np.int64), *parts]) for parts in columns.values())
    _require(min(records.min(initial=0), sizes.min(initial=0)) >= 0, path, 'lists a negative number')
    stated, found = (metadata['shards'], metadata['records']), (len(records), int(records.sum()))
    _require(stated == found, path, f'lists {found} shards and records, and states that they are {stated}')
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
        return {key: kind(found[key]) for key, kind in _METADATA.items()}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f'{path}: its metadata cannot be read; {FIX}') from None


_METADATA = {'name': str, 'shards': int, 'records': int, 'keys': list}


class ManifestWriter:
    """Writes a manifest shard by shard. All methods raise OSError for a disk that is full."""

    def __init__(self, path: Path):
        import pyarrow
        import pyarrow.parquet

        many = pyarrow.list_(pyarrow.int32())
        self._schema = pyarrow.schema(
            [('records', pyarrow.int32()), ('bytes', pyarrow.int64()), *((name, many) for name in _SIZE)]
        )
        self._file = pyarrow.parquet.ParquetWriter(path, self._schema, compression='zstd')
        self._rows: list[tuple[int, np.ndarray]] = []
        self._shards = self._records = self._pending = 0
        self._keys: set[str] = set()

    def add(self, size: int, sizes: array.array, keys: Iterable[str]) -> None:
        """Adds a shard.

        Args:
          size: of the file, in bytes.
          sizes: frames, height and width of one record after another.
          keys: that its records have.
        """
        self._rows.append((size, np.array(sizes, np.int32).reshape(-1, 3)))
        self._keys.update(keys)
        self._pending += len(sizes) // 3
        if self._pending >= _GROUP_RECORDS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        counts = [len(sizes) for _, sizes in self._rows]
        ends = np.cumsum([0, *counts], dtype=np.int32)
        flat = np.concatenate([np.zeros((0, 3), np.int32), *(sizes for _, sizes in self._rows)])
        lists = [pyarrow.ListArray.from_arrays(ends, np.ascontiguousarray(flat[:, i])) for i in range(3)]
        columns = [pyarrow.array(counts, pyarrow.int32()), [size for size, _ in self._rows], *lists]
        self._file.write_table(pyarrow.table(columns, schema=self._schema))
        self._shards, self._records = self._shards + len(counts), self._records + sum(counts)
        self._pending = 0
        self._rows.clear()

    def close(self, name: str) -> None:
        """Completes the file; name: of the set."""
        self._flush()
        found = {'name': name, 'shards': self._shards, 'records': self._records, 'keys': sorted(self._keys)}
        self._file.add_key_value_metadata({FORMAT: json.dumps(found).encode()})
        self._file.close()
