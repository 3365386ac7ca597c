"""Deterministic batches, independent of the number of processes and resumable at any step.

With n records, B the global batch size, and pi_e a permutation of the records drawn from (seed, e):

  example r is record pi_{r div n}(r mod n)                      (1) the global order: every record once an epoch
  at step k, process p of P reads examples kB + p b ... kB + (p+1) b - 1,  b = B / P               (2)
  the random numbers of example r come from (seed, r)            (3)

So the global batch k consists of examples kB ... (k+1)B - 1 for every P, an epoch may end inside a batch, and k is the
only state of the loader. Grain implements (1), (3) and the prefetching in threads.

With several streams, each with its own examples and batch size, `buckets.BucketSchedule` determines which stream step k
takes; k in (2) is then the number of earlier steps that took the same stream. An example of a stream of several
weighted sources comes from the source whose share is furthest behind, and (1) holds within each source.

For a source whose shards are fetched from object storage, `shard_order.py` replaces (1), and the shards of this
process's coming examples (2) are fetched ahead.
"""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import grain
import numpy as np

from fv_jax.core.checks import require
from fv_jax.core.config import check_range
from fv_jax.data.buckets import BucketSchedule
from fv_jax.data.shard_order import ShardLayout, ShardOrder
from fv_jax.data.shards.bad_records import BadRecordConfig, BadRecordError, BadRecords
from fv_jax.data.shards.fetch_ahead import FetchAhead
from fv_jax.data.shards.records import Record
from fv_jax.data.shards.shard_cache import RemoteShard
from fv_jax.data.streaming import fetch_ahead, find_layout, find_shard
from fv_jax.data.transforms import Transform

Batch = dict[str, np.ndarray]

# More examples than any run draws, few enough for every index computed from it to fit 64 bits.
_EXAMPLES = 2**56
_TRIES = 16  # consecutive bad records after which all records of a source are assumed to be bad


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """How batches are loaded.

    Attributes:
      batch_size: of the global batch, over all processes; ignored where a token budget sets the batch sizes.
      seed: of the order and of the transforms.
      num_threads: threads that decode and transform examples; 0 uses the caller's thread.
      prefetch_batches: how many batches are read ahead, which takes that much memory.
    """

    batch_size: int
    seed: int = 0
    num_threads: int = 8
    prefetch_batches: int = 2

    def __post_init__(self):
        check_range(self, 'batch_size', 'prefetch_batches', low=1)
        check_range(self, 'seed', 'num_threads', low=0)


class DataSource(Protocol):
    """A random-access data source: records by index, such as `shards.source.Shards` or a list of records in memory.

    A source may also have

      sizes() -> RecordSizes | None       of all records; without it, or None, they are of one given size
      dropped(selection) -> array | None  why records are not trained on (`sources.find_dropped`)
      record_name(index) -> str           for messages
      sources                             those that it is made of, whose provenance is its own
      layout(), remote_shard(index)       see `streaming.py`
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


@dataclasses.dataclass(frozen=True)
class WeightedSource:
    """Records of a source, with a weight among the sources of a stream.

    Attributes:
      name: of the source, for messages.
      source: the records.
      indices: which of the records; None is all of them.
      weight: share of the stream's examples, relative to the other sources' weights.
    """

    name: str
    source: DataSource
    indices: np.ndarray | None = None
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.source) if self.indices is None else len(self.indices)

    @property
    def sources(self) -> tuple[DataSource]:
        return (self.source,)

    def layout(self) -> ShardLayout | None:
        """Returns how the records are divided into shards that are fetched; None if none is."""
        layout = find_layout(self.source)
        return layout if layout is None or self.indices is None else layout.select(self.indices)

    def remote_shard(self, number: int) -> RemoteShard | None:
        """Returns the shard that must be fetched for record `number`, if any."""
        return find_shard(self.source, self._index(number))

    def _index(self, number: int) -> int:
        return int(number if self.indices is None else self.indices[number])

    def record(self, number: int) -> tuple[str, Callable[[], Record]]:
        """Returns the name of record `number` and a function that reads it."""
        index = self._index(number)
        named = getattr(self.source, 'record_name', None)
        name = named(index) if named else f'{self.name}, record {index}'
        return name, lambda: self.source[index]


@dataclasses.dataclass(frozen=True)
class BatchStream:
    """Examples of one shape.

    Attributes:
      parts: where the records come from.
      transform: from a record to arrays of one shape and dtype.
      batch_size: of the global batch.
      share: of all steps, relative to the other streams' shares.
    """

    parts: tuple[WeightedSource, ...]
    transform: Transform
    batch_size: int
    share: float = 1.0


class _LoadExample:
    """Loads (source, index in it) as arrays; reports a bad record and replaces it by another of its source."""

    def __init__(self, stream: BatchStream, bad: BadRecords):
        self._parts, self._transform, self._bad = stream.parts, stream.transform, bad

    def __call__(self, element: tuple[int, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Raises BadRecordError if all records seem to be bad, or by the policy."""
        part, number = self._parts[element[0]], element[1]
        for _ in range(_TRIES):
            name, read = part.record(number)
            try:
                return self._transform(read(), rng)
            except ValueError as error:
                self._bad.report(name, error)
                last = f'{name}: {error}'
            number = int(rng.integers(len(part)))
        raise BadRecordError(f'{part.name}: {_TRIES} consecutive records are bad, the last {last}')


def check_streams(streams: Sequence[BatchStream]) -> None:
    """Loads the first records of each source.

    Raises:
      BadRecordError: none of them can be used; the message names the source.
    """
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


class _ProcessExamples:
    """A data source of this process's examples (2), in order."""

    def __init__(
        self,
        streams: Sequence[BatchStream],
        plans: Sequence[grain.MapDataset],
        examples: Sequence[grain.MapDataset],
        schedule: BucketSchedule,
        process: tuple[int, int],
    ):
        index, count = process
        self._streams, self._plans, self._examples, self._schedule = streams, plans, examples, schedule
        self.ahead: FetchAhead | None = None
        self._global = [stream.batch_size for stream in streams]
        self._local = [size // count for size in self._global]
        self._offset = [index * size for size in self._local]
        self._per_cycle = int(np.dot(schedule.steps, self._local))
        # Cached, since drawing a cycle's order takes a millisecond and consecutive examples are of one cycle.
        self._layout = functools.lru_cache(maxsize=4)(self._draw_layout)

    def __len__(self) -> int:
        return _EXAMPLES

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if self.ahead is not None:
            self.ahead.reach(index)
        stream, example = self._locate(index)
        return self._examples[stream][example]

    def remote_shard(self, index: int) -> RemoteShard | None:
        """Returns the shard that must be fetched for an example, if any."""
        stream, example = self._locate(index)
        part, number = self._plans[stream][example]
        return self._streams[stream].parts[part].remote_shard(number)

    def _locate(self, index: int) -> tuple[int, int]:
        """Returns the stream of an example of this process, and which of the stream's examples it is."""
        cycle, example = divmod(int(index), self._per_cycle)
        order, ends, earlier = self._layout(cycle)
        step = int(np.searchsorted(ends, example, side='right'))
        stream = order[step]
        batch = cycle * int(self._schedule.steps[stream]) + int(earlier[step])
        within = example - (int(ends[step]) - self._local[stream])
        return stream, batch * self._global[stream] + self._offset[stream] + within

    def first_index(self, step: int) -> int:
        """Computes the index of a step's first example."""
        cycle, within = divmod(step, self._schedule.cycle)
        order, ends, _ = self._layout(cycle)
        return cycle * self._per_cycle + int(ends[within]) - self._local[order[within]]

    def count(self, step: int) -> int:
        """Counts this process's examples of a step."""
        cycle, within = divmod(step, self._schedule.cycle)
        return self._local[self._layout(cycle)[0][within]]

    def _draw_layout(self, cycle: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Computes for each step of a cycle: its stream, the end of its examples, and how many earlier steps had the
        same stream.
        """
        order = self._schedule.order(cycle)
        earlier = np.empty(len(order), int)
        for stream in range(len(self._global)):
            here = order == stream
            earlier[here] = np.arange(here.sum())
        return order, np.cumsum(np.asarray(self._local)[order]), earlier


def load_batches(
    source: DataSource,
    transform: Transform,
    config: LoaderConfig,
    *,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Yields the batches of one source, as `load_mixed_batches`; a bad record raises."""
    stream = BatchStream((WeightedSource('the source', source),), transform, config.batch_size)
    process = process_index, process_count
    return load_mixed_batches([stream], config, start_step=start_step, process=process)


def load_mixed_batches(
    streams: Sequence[BatchStream],
    config: LoaderConfig,
    *,
    start_step: int = 0,
    process: tuple[int, int] = (0, 1),
    bad: BadRecords | None = None,
) -> Iterator[Batch]:
    """Yields this process's batches without end, from `start_step` on; seeking there costs nothing.

    Args:
      streams: each with a transform to arrays of one shape and dtype from record to record (`transforms.compose`).
      config: seed and threads; the batch sizes are those of the streams.
      start_step: number of batches that were drawn before.
      process: (index, count) of the part of each global batch to load; parts are equal, in order.
      bad: where bad records are counted; None raises at the first.

    Yields:
      Dicts of arrays (b, ...). An element's name_FHWC is called name_BFHWC in a batch.

    Raises:
      ValueError: a batch size does not divide by the processes, or there are no records. Later, while iterating:
        a corrupted record, or records that cannot be stacked.
    """
    _check(streams, start_step, process)
    bad = bad or BadRecords(BadRecordConfig())
    schedule = BucketSchedule(tuple(stream.share for stream in streams), seed=config.seed)
    plans = [_plan_examples(stream, config.seed, i) for i, stream in enumerate(streams)]
    examples = [_load_examples(plans[i], stream, config.seed, i, bad) for i, stream in enumerate(streams)]
    mine = _ProcessExamples(streams, plans, examples, schedule, process)
    largest = max(stream.batch_size // process[1] for stream in streams)
    read_options = grain.ReadOptions(
        num_threads=config.num_threads, prefetch_buffer_size=config.prefetch_batches * largest
    )
    first = mine.first_index(start_step)
    parts = [part for stream in streams for part in stream.parts]
    mine.ahead = fetch_ahead(parts, mine.remote_shard, first, config.num_threads)
    dataset = grain.MapDataset.source(mine)[first:].to_iter_dataset(read_options)
    return _stack_batches(iter(dataset), mine, start_step)


def _stack_batches(examples: Iterator[dict[str, np.ndarray]], mine: _ProcessExamples, step: int) -> Iterator[Batch]:
    with mine.ahead or contextlib.nullcontext():
        while True:
            yield stack([next(examples) for _ in range(mine.count(step))])
            step += 1


def _plan_examples(stream: BatchStream, seed: int, number: int) -> grain.MapDataset:
    """Builds the endless examples of one stream by (1), as (source, index in it)."""
    parts = []
    # Grain adds the epoch to the seed: orders of adjacent seeds must not be the same, one epoch apart.
    order_seed, _, *others = _seeds(seed, number, len(stream.parts))
    for i, part in enumerate(stream.parts):
        if (layout := part.layout()) is None:
            order = grain.MapDataset.range(len(part)).shuffle(seed=[order_seed, *others][i]).repeat()
        else:
            order = grain.MapDataset.source(_EndlessOrder(ShardOrder(layout, seed)))
        parts.append(order.map(functools.partial(_tag_index, i)))
    weights = [part.weight for part in stream.parts]
    return parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights)


def _load_examples(
    plan: grain.MapDataset, stream: BatchStream, seed: int, number: int, bad: BadRecords
) -> grain.MapDataset:
    """Loads the examples of one stream, with the random numbers of (3)."""
    _, transform_seed, *_ = _seeds(seed, number, len(stream.parts))
    return plan.random_map(_LoadExample(stream, bad), seed=transform_seed)


@dataclasses.dataclass(frozen=True)
class _EndlessOrder:
    """A data source of the numbers of records in their order."""

    order: ShardOrder

    def __len__(self) -> int:
        return _EXAMPLES

    def __getitem__(self, example: int) -> int:
        return self.order[example]


def _tag_index(part: int, number: int) -> tuple[int, int]:
    return part, int(number)


def _seeds(seed: int, number: int, parts: int) -> list[int]:
    """Derives a stream's seeds: of its first source's order, its transforms, the orders of its other sources."""
    entropy = seed if number == 0 else [seed, number]
    return [int(s) for s in np.random.SeedSequence(entropy).generate_state(1 + parts)]


def _check(streams: Sequence[BatchStream], start_step: int, process: tuple[int, int]) -> None:
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
    """Stacks elements into one batch: name_FHWC (F, H, W, C) becomes name_BFHWC (B, F, H, W, C).

    Raises ValueError if they differ in keys, shapes or dtypes.
    """
    first = elements[0]
    for element in elements:
        if element.keys() != first.keys():
            odd = sorted(element.keys() ^ first.keys())
            raise ValueError(f'some records have {", ".join(odd)} and some do not: they cannot be stacked in one batch')
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
