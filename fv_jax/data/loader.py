"""Batches from records, the same whatever the number of processes, from any step on.

With n records, B the global batch, and pi_e a permutation of the records drawn from (seed, e):

  row r holds record pi_{r div n}(r mod n)                       (1) the global order: every record once an epoch
  at step k, process p of P reads rows kB + p b ... kB + (p+1) b - 1,  b = B / P                   (2)
  the random numbers of row r come from (seed, r)                (3)

So the global batch k is rows kB ... (k+1)B - 1 for every P, an epoch may end inside a batch, and all that
has to be saved to go on is k. Grain does (1), (3) and the reading ahead in threads.

Of several streams, each with rows of its own and a batch size, `buckets.Schedule` says which one step k takes; k in (2)
is then the number of steps before that took the same one. A row of a stream of several weighted parts comes from the
part whose share is most behind, and (1) holds within each part.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import grain
import numpy as np

from fv_jax.core.checks import require
from fv_jax.core.config import check_range
from fv_jax.data.buckets import Schedule
from fv_jax.data.shards.bad_records import BadRecordConfig, BadRecordError, BadRecords
from fv_jax.data.shards.records import Record, count_records, decode_record
from fv_jax.data.transforms import Transform

Batch = dict[str, np.ndarray]

# More rows than any run draws, few enough for every index computed from it to fit 64 bits.
_ROWS = 2**56
_TRIES = 16  # bad records in a row, of a source whose records are then taken to be bad altogether


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """batch_size: the global one, over all processes, where the sizes of batches do not follow from a token budget.
    seed: of the order and of the transforms.
    num_threads: that decode and transform rows; 0 does it in the caller's.
    prefetch_batches: how many batches are read ahead, and so the memory that is used.
    """

    batch_size: int
    seed: int = 0
    num_threads: int = 8
    prefetch_batches: int = 2

    def __post_init__(self):
        check_range(self, 'batch_size', 'prefetch_batches', low=1)
        check_range(self, 'seed', 'num_threads', low=0)


class Source(Protocol):
    """Records by their index: `Shards`, or a plain list of records in memory."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


class Shards:
    """The records of ArrayRecord shards, by index. Raises ValueError naming the shard, and the record if it is one."""

    def __init__(self, paths: Sequence[str]):
        self._paths = [str(path) for path in paths]
        require(count_records(self._paths) != 0, f'no records in {", ".join(self._paths) or "an empty list of shards"}')
        self._source = grain.sources.ArrayRecordDataSource(self._paths)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        try:
            return decode_record(self._source[index])
        except (ValueError, RuntimeError, IndexError) as error:
            raise ValueError(f'{self.record_name(index)}: damaged: {str(error).partition(chr(10))[0]}') from None

    @property
    def paths(self) -> list[str]:
        """Of the shards, in the order of their records."""
        return list(self._paths)

    def record_name(self, index: int) -> str:
        """The shard of a record and its index there."""
        path, local = self._locate(index)
        return f'{path}, record {local}'

    def _locate(self, index: int) -> tuple[str, int]:
        for path in self._paths:
            count = count_records([path])
            if index < count:
                return path, index
            index -= count
        raise IndexError(index)


@dataclasses.dataclass(frozen=True)
class Part:
    """Some records of a source. name: of the source, for messages. indices: which records; None is all of them.
    weight: of the part's rows among those of a stream, relative to the other parts'.
    """

    name: str
    source: Source
    indices: np.ndarray | None = None
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.source) if self.indices is None else len(self.indices)

    def record(self, number: int) -> tuple[str, Callable[[], Record]]:
        """The name of record `number` of the part, and what reads it."""
        index = int(number if self.indices is None else self.indices[number])
        named = getattr(self.source, 'record_name', None)
        name = named(index) if named else f'{self.name}, record {index}'
        return name, lambda: self.source[index]


@dataclasses.dataclass(frozen=True)
class Stream:
    """Rows of one shape. batch_size: the global one. share: of all steps, relative to the other streams'."""

    parts: tuple[Part, ...]
    transform: Transform
    batch_size: int
    share: float = 1.0


class _Load:
    """(part, number of its record) -> arrays; a bad record is reported, and replaced by another of its part."""

    def __init__(self, stream: Stream, bad: BadRecords):
        self._parts, self._transform, self._bad = stream.parts, stream.transform, bad

    def __call__(self, element: tuple[int, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
        part, number = self._parts[element[0]], element[1]
        for _ in range(_TRIES):
            name, read = part.record(number)
            try:
                return self._transform(read(), rng)
            except ValueError as error:
                self._bad.report(name, error)
                last = f'{name}: {error}'
            number = int(rng.integers(len(part)))
        raise BadRecordError(f'{part.name}: {_TRIES} records in a row are bad, the last {last}')


def check_parts(streams: Sequence[Stream]) -> None:
    """Raises BadRecordError, naming the source, when none of a part's first records can be used at all."""
    for stream in streams:
        for part in stream.parts:
            for number in range(min(len(part), _TRIES)):
                name, read = part.record(number)
                try:
                    stream.transform(read(), np.random.default_rng(number))
                    break
                except ValueError as error:
                    last = f'{name}: {error}'
            else:
                raise BadRecordError(f'{part.name}: none of its first {number + 1} records can be used; {last}')


class _ProcessRows:
    """(2): this process's rows, one after the other."""

    def __init__(self, streams: Sequence[Stream], rows: Sequence[grain.MapDataset], schedule: Schedule, process):
        index, count = process
        self._rows, self._schedule = rows, schedule
        self._global = [stream.batch_size for stream in streams]
        self._local = [size // count for size in self._global]
        self._offset = [index * size for size in self._local]
        self._per_cycle = int(np.dot(schedule.steps, self._local))
        # Neighbouring rows are of one cycle, whose order takes a millisecond to draw.
        self._layout = functools.lru_cache(maxsize=4)(self._draw_layout)

    def __len__(self) -> int:
        return _ROWS

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        cycle, row = divmod(int(index), self._per_cycle)
        order, ends, earlier = self._layout(cycle)
        step = int(np.searchsorted(ends, row, side='right'))
        stream = order[step]
        batch = cycle * int(self._schedule.steps[stream]) + int(earlier[step])
        within = row - (int(ends[step]) - self._local[stream])
        return self._rows[stream][batch * self._global[stream] + self._offset[stream] + within]

    def first_row(self, step: int) -> int:
        """Where the rows of a step begin."""
        cycle, within = divmod(step, self._schedule.cycle)
        order, ends, _ = self._layout(cycle)
        return cycle * self._per_cycle + int(ends[within]) - self._local[order[within]]

    def count(self, step: int) -> int:
        """How many rows a step has."""
        cycle, within = divmod(step, self._schedule.cycle)
        return self._local[self._layout(cycle)[0][within]]

    def _draw_layout(self, cycle: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the cycle's steps: the stream, where its rows end, and how many steps before had the same stream."""
        order = self._schedule.order(cycle)
        earlier = np.empty(len(order), int)
        for stream in range(len(self._global)):
            here = order == stream
            earlier[here] = np.arange(here.sum())
        return order, np.cumsum(np.asarray(self._local)[order]), earlier


def batches(
    source: Source,
    transform: Transform,
    config: LoaderConfig,
    *,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """`mixed_batches` of one source, all records alike; a bad one stops it."""
    stream = Stream((Part('the source', source),), transform, config.batch_size)
    process = process_index, process_count
    return mixed_batches([stream], config, start_step=start_step, process=process)


def mixed_batches(
    streams: Sequence[Stream],
    config: LoaderConfig,
    *,
    start_step: int = 0,
    process: tuple[int, int] = (0, 1),
    bad: BadRecords | None = None,
) -> Iterator[Batch]:
    """Endless batches of this process, from `start_step` on, which costs nothing to go to.

    Args:
      streams: each with a transform to arrays of one shape and dtype from record to record (`transforms.chain`).
      config: seed, threads. The batch sizes are the streams'.
      start_step: number of batches that were drawn before.
      process: (index, count), which part of each global batch is wanted; parts are equal, in order.
      bad: where bad records are counted; None stops at the first.

    Returns:
      An iterator of dicts of arrays (b, ...). An element's name_FHWC is called name_BFHWC in a batch.

    Raises:
      ValueError: a batch size does not divide by the processes, or there are no records. Later, while iterating:
        a damaged record, or records that do not fit in one batch.
    """
    _check(streams, start_step, process)
    bad = bad or BadRecords(BadRecordConfig())
    schedule = Schedule(tuple(stream.share for stream in streams), seed=config.seed)
    rows = [_stream_rows(stream, config.seed, i, bad) for i, stream in enumerate(streams)]
    mine = _ProcessRows(streams, rows, schedule, process)
    largest = max(stream.batch_size // process[1] for stream in streams)
    read_options = grain.ReadOptions(
        num_threads=config.num_threads, prefetch_buffer_size=config.prefetch_batches * largest
    )
    dataset = grain.MapDataset.source(mine)[mine.first_row(start_step) :].to_iter_dataset(read_options)
    return _stacked(iter(dataset), mine, start_step)


def _stacked(rows: Iterator[dict[str, np.ndarray]], mine: _ProcessRows, step: int) -> Iterator[Batch]:
    while True:
        yield stack([next(rows) for _ in range(mine.count(step))])
        step += 1


def _stream_rows(stream: Stream, seed: int, number: int, bad: BadRecords) -> grain.MapDataset:
    """(1) and (3) of one stream, without end."""
    parts = []
    # Grain numbers epochs by adding to the seed: neighbouring seeds must not be the same order one epoch apart.
    order_seed, transform_seed, *others = _seeds(seed, number, len(stream.parts))
    for i, part in enumerate(stream.parts):
        order = grain.MapDataset.range(len(part)).shuffle(seed=[order_seed, *others][i]).repeat()
        parts.append(order.map(functools.partial(_tagged, i)))
    weights = [part.weight for part in stream.parts]
    rows = parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights)
    return rows.random_map(_Load(stream, bad), seed=transform_seed)


def _tagged(part: int, number: int) -> tuple[int, int]:
    return part, int(number)


def _seeds(seed: int, number: int, parts: int) -> list[int]:
    """Of a stream: of its first part's order, of its transforms, of its other parts' orders."""
    entropy = seed if number == 0 else [seed, number]
    return [int(s) for s in np.random.SeedSequence(entropy).generate_state(1 + parts)]


def _check(streams: Sequence[Stream], start_step: int, process: tuple[int, int]) -> None:
    index, count = process
    for batch_size in {stream.batch_size for stream in streams}:
        if batch_size % count:
            low = batch_size // count * count
            sizes = f'{low} or {low + count}' if low else f'{count}'
            raise ValueError(f'batch_size={batch_size}: does not divide over {count} processes; use {sizes}')
    require(0 <= index < count, f'process_index={index}: must be from 0 to {count - 1}')
    require(start_step >= 0, f'start_step={start_step}: must be at least 0')
    for stream in streams:
        for part in stream.parts:
            require(len(part) != 0, f'{part.name}: no records to draw batches from')


def stack(elements: Sequence[dict[str, np.ndarray]]) -> Batch:
    """Elements to one batch: name_FHWC (F, H, W, C) becomes name_BFHWC (B, F, H, W, C).

    Raises ValueError when they differ in keys, shapes or dtypes.
    """
    first = elements[0]
    for element in elements:
        if element.keys() != first.keys():
            odd = sorted(element.keys() ^ first.keys())
            raise ValueError(f'some records have {", ".join(odd)} and some have not: they do not fit in one batch')
    batch = {}
    for key in first:
        arrays = [np.asarray(element[key]) for element in elements]
        kinds = {f'{a.dtype.name}{list(a.shape)}' for a in arrays}
        if len(kinds) > 1:
            raise ValueError(
                f'{key} is {" in one record and ".join(sorted(kinds)[:2])} in another: crop or resize them'
            )
        batch[re.sub(r'_(?=[A-Z]+$)', '_B', key)] = np.stack(arrays) if len(arrays) > 1 else arrays[0][None]
    return batch
