"""The data source of ArrayRecord shards."""

import collections
import itertools
import resource
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from fv_jax.core.checks import require
from fv_jax.data.record_sizes import RecordSizes
from fv_jax.data.shards.bad_records import BadRecordConfig, BadRecords
from fv_jax.data.shards.records import Record, decode_record, first_line, record_size
from fv_jax.data.shards.selection import Selected, Selection, select_records
from fv_jax.data.shards.shard_files import ShardError, open_reader
from fv_jax.data.shards.shard_set import LocalAccess, ShardAccess, open_sets
from fv_jax.data.video import decoding

_MAX_OPEN = 4096  # readers of 20 kB each; fewer where the system allows fewer open files


class Shards:
    """Records of local shards, by index.

    Attributes:
      sets: the shards, set by set.
    """

    def __init__(self, paths: Sequence[str | Path], bad: BadRecords | None = None):
        """Opens shards; with a manifest, no shard is read.

        Args:
          paths: of the shards.
          bad: counts the shards that cannot be used, which are skipped; None raises at the first.

        Raises:
          ValueError: no shard can be used, or a manifest does not fit its shards.
        """
        self._open([str(path) for path in paths], LocalAccess(), bad)
        self._readers = _Readers()

    def _open(self, paths: Sequence[str], access: ShardAccess, bad: BadRecords | None) -> None:
        bad = bad or BadRecords(BadRecordConfig())
        require(paths, 'no records in an empty list of shards')
        self.sets = open_sets(paths, access, bad)
        self.paths = [path for one in self.sets for path in one.paths]  # in the order of their records
        self._records = np.concatenate([one.records for one in self.sets])
        self._ends = np.cumsum(self._records)
        if not len(self):
            folder, last = paths[0].rpartition('/')[0], bad.found.get(paths[-1], 'they hold no records')
            raise ValueError(f'{folder}: none of its {len(paths)} shards can be opened; the last: {last}')

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Record:
        """Reads a record.

        Raises:
          ShardError: its shard cannot be opened.
          ValueError: it is damaged; the message names it.
        """
        shard, local = self._locate(index)
        try:
            return decode_record(self._reader(shard).read([local])[0])
        except ShardError:
            raise
        except (ValueError, RuntimeError, IndexError) as error:
            raise ValueError(f'{self.record_name(index)}: damaged: {first_line(error)}') from None

    def record_name(self, index: int) -> str:
        """Returns the shard of a record and the index in it, for messages."""
        shard, local = self._locate(index)
        return f'{self.paths[shard]}, record {local}'

    def sizes(self) -> RecordSizes:
        """Reads the sizes of all records; those of sets that do not state them are measured."""
        start, parts = 0, []
        for one in self.sets:
            end = start + int(one.records.sum())
            stated = one.sizes()
            parts.append(measure_records(map(self._record_or_empty, range(start, end))) if stated is None else stated)
            start = end
        return RecordSizes.concatenate(parts)

    def dropped(self, selection: Selection) -> np.ndarray:
        """Finds why each record is dropped, as `select_records`, which raises."""
        return self.select(selection).dropped

    def select(self, selection: Selection) -> Selected:
        """Finds what a selection keeps and drops, as `select_records`, which raises."""
        return select_records(self.sets, selection)

    def _locate(self, index: int) -> tuple[int, int]:
        """Returns the shard of a record, and the record's index in it."""
        shard = int(np.searchsorted(self._ends, index, side='right'))
        if index < 0 or shard == len(self._ends):
            raise IndexError(index)
        return shard, int(index) - int(self._ends[shard] - self._records[shard])

    def _reader(self, shard: int) -> ArrayRecordReader:
        return self._readers.open(self.paths[shard], int(self._records[shard]))

    def _record_or_empty(self, index: int) -> Record:
        try:
            return self[index]
        except ValueError:
            return {}


class _Readers:
    """Open readers of shards; of more than the system allows, the least recently used are closed. Thread-safe."""

    def __init__(self):
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._max = _MAX_OPEN if limit == resource.RLIM_INFINITY else min(max(limit // 4, 1), _MAX_OPEN)
        self._open: collections.OrderedDict[str, ArrayRecordReader] = collections.OrderedDict()
        self._lock = threading.Lock()

    def open(self, path: str, records: int) -> ArrayRecordReader:
        """Returns the reader of a shard that has so many records. Raises ShardError."""
        with self._lock:
            if path in self._open:
                self._open.move_to_end(path)
                return self._open[path]
        reader = open_reader(path, path, records)
        with self._lock:
            self._open[path] = reader
            if len(self._open) > self._max:
                self._open.popitem(last=False)  # closed when no thread reads from it any more
        return reader


def measure_records(records: Iterable[Record]) -> RecordSizes:
    """Reads the sizes that records state, or those of the headers of their videos; zeros where neither is available."""

    def chunks() -> Iterator[np.ndarray]:
        sizes = map(_measure, records)
        while some := list(itertools.islice(sizes, 1024)):
            yield np.array(some)

    return RecordSizes.collect(chunks())


def _measure(record: Record) -> tuple[int, int, int]:
    if (size := record_size(record)) is not None:
        return size
    try:
        info = decoding.probe(record['video'])
    except (KeyError, ValueError):
        return 0, 0, 0
    return info.frames, info.height, info.width
