"""Batches from records, the same whatever the number of processes, from any step on.

With n records, B the global batch, and pi_e a permutation of the records drawn from (seed, e):

  row r holds record pi_{r div n}(r mod n)                       (1) the global order: every record once an epoch
  at step k, process p of P reads rows kB + p b ... kB + (p+1) b - 1,  b = B / P                   (2)
  the random numbers of row r come from (seed, r)                (3)

So the global batch k is rows kB ... (k+1)B - 1 for every P, an epoch may end inside a batch, and all that
has to be saved to go on is k. Grain does (1), (3) and the reading ahead in threads.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Protocol

import grain
import numpy as np

from fv_jax.core.config import ConfigError
from fv_jax.data.records import Record, count_records, decode_record
from fv_jax.data.transforms import Transform

Batch = dict[str, np.ndarray]

# More rows than any run draws, few enough for every index computed from it to fit 64 bits.
_ROWS = 2**56


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """batch_size: the global one, over all processes.
    seed: of the order and of the transforms.
    num_threads: that decode and transform rows; 0 does it in the caller's.
    prefetch_batches: how many batches are read ahead, and so the memory that is used.
    """

    batch_size: int
    seed: int = 0
    num_threads: int = 8
    prefetch_batches: int = 2

    def __post_init__(self):
        for name, least in (('batch_size', 1), ('seed', 0), ('num_threads', 0), ('prefetch_batches', 1)):
            if getattr(self, name) < least:
                raise ConfigError(f'{name}={getattr(self, name)}: must be at least {least}')


class Source(Protocol):
    """Records by their index: `Shards`, or a plain list of records in memory."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


class Shards:
    """The records of ArrayRecord shards, by index. Raises ValueError naming the shard, and the record if it is one."""

    def __init__(self, paths: Sequence[str]):
        self._paths = [str(path) for path in paths]
        if count_records(self._paths) == 0:
            raise ValueError(f'no records in {", ".join(self._paths) or "an empty list of shards"}')
        self._source = grain.sources.ArrayRecordDataSource(self._paths)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        try:
            return decode_record(self._source[index])
        except (ValueError, RuntimeError, IndexError) as error:
            path, local = self._locate(index)
            raise ValueError(f'{path}, record {local}: damaged: {str(error).partition(chr(10))[0]}') from None

    def _locate(self, index: int) -> tuple[str, int]:
        for path in self._paths:
            count = count_records([path])
            if index < count:
                return path, index
            index -= count
        raise IndexError(index)


class _ProcessRows:
    """(2): this process's rows, one after the other."""

    def __init__(self, rows: grain.MapDataset, batch_size: int, process_index: int, process_count: int):
        self._rows = rows
        self._global = batch_size
        self._local = batch_size // process_count
        self._offset = process_index * self._local

    def __len__(self) -> int:
        return _ROWS // self._global * self._local

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        step, row = divmod(int(index), self._local)
        return self._rows[step * self._global + self._offset + row]


def batches(
    source: Source,
    transform: Transform,
    config: LoaderConfig,
    *,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Endless batches of this process, from `start_step` on, which costs nothing to go to.

    Args:
      source: the records.
      transform: (record, rng) -> arrays, all of one shape and dtype from record to record (`transforms.chain`).
      config: batch size, seed, threads.
      start_step: number of batches that were drawn before.
      process_index, process_count: which part of each global batch is wanted; parts are equal, in order.

    Returns:
      An iterator of dicts of arrays (b, ...). An element's name_FHWC is called name_BFHWC in a batch.

    Raises:
      ValueError: the batch size does not divide by the processes, or there are no records. Later, while iterating:
        a damaged record, or records that do not fit in one batch.
    """
    if config.batch_size % process_count:
        low = config.batch_size // process_count * process_count
        sizes = f'{low} or {low + process_count}' if low else f'{process_count}'
        raise ValueError(f'batch_size={config.batch_size}: does not divide over {process_count} processes; use {sizes}')
    if not 0 <= process_index < process_count:
        raise ValueError(f'process_index={process_index}: must be from 0 to {process_count - 1}')
    if start_step < 0:
        raise ValueError(f'start_step={start_step}: must be at least 0')
    if len(source) == 0:
        raise ValueError('no records to draw batches from')
    # Grain numbers epochs by adding to the seed: neighbouring seeds must not be the same order one epoch apart.
    order_seed, transform_seed = (int(s) for s in np.random.SeedSequence(config.seed).generate_state(2))
    rows = grain.MapDataset.source(source).shuffle(seed=order_seed).repeat()
    rows = rows.random_map(transform, seed=transform_seed)
    mine = _ProcessRows(rows, config.batch_size, process_index, process_count)
    local_batch = config.batch_size // process_count
    read_options = grain.ReadOptions(
        num_threads=config.num_threads, prefetch_buffer_size=config.prefetch_batches * local_batch
    )
    dataset = grain.MapDataset.source(mine)[start_step * local_batch :].to_iter_dataset(read_options)
    return iter(dataset.batch(local_batch, batch_fn=stack))


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
        batch[re.sub(r'_(?=[A-Z]+$)', '_B', key)] = np.stack(arrays)
    return batch
