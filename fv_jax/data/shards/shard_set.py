"""Sets of shards as they are opened: how many records each shard has, and of which sizes.

The manifest states both. For a set without one, every shard is opened to count its records, and their sizes are those
of NAME.json, or unknown.
"""

import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from fv_jax.core.checks import require
from fv_jax.core.paths import StoragePath
from fv_jax.data.record_sizes import RecordSizes
from fv_jax.data.shards import manifest as manifest_lib
from fv_jax.data.shards.bad_records import BadRecords
from fv_jax.data.shards.manifest import Manifest
from fv_jax.data.shards.shard_files import SHARD, ShardError, count_records, expanded_path, read_index


@dataclasses.dataclass(frozen=True)
class ShardSet:
    """The shards of one set, or some of them.

    Attributes:
      paths: of the shards, in order.
      numbers: their numbers in the set, int64 (shards,); increasing.
      records: how many records each has, int64 (shards,).
      index_path: NAME.json beside them.
      index: its content; empty without it.
      manifest: None for a set without one.
    """

    paths: tuple[str, ...]
    numbers: np.ndarray
    records: np.ndarray
    index_path: StoragePath
    index: dict[str, Any]
    manifest: Manifest | None

    def sizes(self) -> RecordSizes | None:
        """Reads the sizes of the records; None if neither the manifest nor NAME.json states them."""
        if self.manifest is not None:
            return self.manifest.sizes(self.numbers)
        return _indexed_sizes(self)


class ShardAccess(Protocol):
    """How the shards of a set are asked for what their manifest does not state, or states as well."""

    def size(self, path: str) -> int:
        """Returns the size of a shard in bytes, without reading it. Raises ShardError."""

    def count_records(self, path: str, stated: int | None) -> int:
        """Counts the records of a shard that NAME.json may state. Raises ShardError."""


class LocalAccess:
    """Access to shards in local folders."""

    def size(self, path: str) -> int:
        try:
            return os.stat(path).st_size
        except FileNotFoundError:
            raise ShardError(path, 'no such shard') from None

    def count_records(self, path: str, stated: int | None) -> int:
        return count_records([path])


def open_sets(paths: Sequence[str], access: ShardAccess, bad: BadRecords) -> list[ShardSet]:
    """Opens shards, set by set; with a manifest, no shard is read.

    Args:
      paths: of shards.
      access: to them.
      bad: counts the shards that cannot be used, which are skipped.

    Raises:
      ValueError: a manifest or a NAME.json does not fit its shards.
    """
    return [_open_set(tuple(group), access, bad) for _, group in itertools.groupby(paths, key=_set_of)]


def _open_set(paths: Sequence[str], access: ShardAccess, bad: BadRecords) -> ShardSet:
    folder, name, count = _set_of(paths[0])
    index_path = expanded_path(folder) / f'{name}.json'
    index = read_index(index_path) if count else {}
    manifest = _open_manifest(index_path.with_name(name + manifest_lib.SUFFIX), name, count, index) if count else None
    good, numbers, records = [], [], []
    for path in paths:
        number = _number_of(path)
        try:
            if manifest is None:
                records.append(access.count_records(path, index.get('shards', {}).get(path.rpartition('/')[2])))
            else:
                records.append(_stated_records(manifest, path, number, access.size(path)))
        except ShardError as error:
            bad.report(path, error)
            continue
        good.append(path)
        numbers.append(number)
    return ShardSet(tuple(good), np.array(numbers, int), np.array(records, int), index_path, index, manifest)


def _open_manifest(path: StoragePath, name: str, count: int, index: dict[str, Any]) -> Manifest | None:
    """Reads the manifest of a set of so many shards, if there is one. Raises ValueError if it is not theirs."""
    if not path.exists():
        return None
    found = manifest_lib.read_manifest(path, name)
    require(
        len(found.records) == count and index.get('records') in (None, found.records.sum()),
        f'{path}: lists {len(found.records)} shards with {found.records.sum()} records, but {name} has {count} shards '
        f'and {name}.json states {index.get("records")} records; {manifest_lib.FIX}',
    )
    return found


def _stated_records(manifest: Manifest, path: str, number: int, size: int) -> int:
    """Returns how many records a shard has by its manifest. Raises ShardError if the file has not the stated size."""
    if size != manifest.bytes[number]:
        stated = f'{manifest.path.name} states {manifest.bytes[number]}'
        raise ShardError(path, f'cut off or replaced: it has {size} bytes and {stated}')
    return int(manifest.records[number])


def _number_of(path: str) -> int:
    match = SHARD.fullmatch(path.rpartition('/')[2])
    return int(match['index']) if match else 0


def _set_of(path: str) -> tuple[str, str, int]:
    """Returns the folder and name of the set of a shard, and the number of its shards, 0 for a file of another name."""
    folder, _, file = path.rpartition('/')
    match = SHARD.fullmatch(file)
    return (folder or '.', match['name'], int(match['count'])) if match else (folder or '.', file, 0)


def _indexed_sizes(shards: ShardSet) -> RecordSizes | None:
    """Reads the sizes from the NAME.json of an earlier version; None if it does not state all of them."""
    runs = _read_runs(shards.index)
    ends = np.cumsum(runs[:, 3])
    firsts = _first_records(shards.index)

    def chunks() -> Iterator[np.ndarray]:
        for path, count in zip(shards.paths, shards.records, strict=True):
            first = firsts[path.rpartition('/')[2]]
            yield runs[np.searchsorted(ends, np.arange(first, first + count), 'right'), :3]

    for path, count in zip(shards.paths, shards.records, strict=True):
        first = firsts.get(path.rpartition('/')[2])
        if first is None or not len(ends) or ends[-1] < first + count:
            return None
    return RecordSizes.collect(chunks())


def _read_runs(index: dict[str, Any]) -> np.ndarray:
    """Reads the sizes of all records of a set as runs of equal ones, int (n, 4); empty if NAME.json has none."""
    runs = index.get('sizes')
    if runs is None and isinstance(config := index.get('config'), dict):  # of sets written before sizes were stored
        sides = [config.get(key) for key in ('frames', 'height', 'width')]
        runs = [[*sides, index.get('records', 0)]] if all(isinstance(side, int) for side in sides) else None
    if not runs or any(run[0] == 0 or max(run) >= 2**40 for run in runs):
        return np.zeros((0, 4), int)
    return np.array(runs)


def _first_records(index: dict[str, Any]) -> dict[str, int]:
    """Returns the number in its set of the first record of each shard that NAME.json lists."""
    shards = index.get('shards', {})
    return dict(zip(shards, itertools.accumulate(shards.values(), initial=0), strict=False))
