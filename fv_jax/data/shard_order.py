"""The order of examples of shards that are fetched one by one: shuffled shards, shuffled records in a window of them.

With S shards, n_s > 0 records in shard s, n in all, a window of W shards (at most S), e = r div n and j = r mod n:

  sigma_e, a permutation of the shards, is drawn from (seed, e)                                              (1)
  pi_es, a permutation of the records of shard s, is drawn from (seed, e, s); part k of shard s in epoch e is its
    elements floor(k n_s / W) ... floor((k+1) n_s / W) - 1, for k = 0 ... W-1                                (2)
  slot t of epoch e, for t = 0 ... S-1, has part k of shard sigma_e((t - k) mod S), for k = 0 ... W-1: all of these
    records, permuted by a permutation that is drawn from (seed, e, t)                                       (3)
  example r is element j of slots 0, 1, ... S-1 of epoch e, one after another                                (4)

Every shard is in W consecutive slots, once with each of its parts, so every record is used once an epoch. A slot has
as many records as a shard on average and needs W shards, of which all but one are those of the slot before it. Example
r is a function of (seed, r) and the numbers n_s: it depends neither on processes nor on where a run was resumed. With
W = S, every slot has as many records of each shard.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

_SHARDS, _RECORDS, _SLOT = range(3)  # what is drawn


@dataclasses.dataclass(frozen=True)
class ShardLayout:
    """How the records of a source are divided into shards.

    Attributes:
      counts: number of records of each shard, int64 (shards,).
      bytes: of each shard, int64 (shards,); 0 where nothing need be fetched.
      window: W.
    """

    counts: np.ndarray
    bytes: np.ndarray
    window: int

    @classmethod
    def concatenate(cls, parts: Sequence['ShardLayout']) -> 'ShardLayout':
        """Returns the layout of several sources, one after another."""
        counts, sizes = (np.concatenate([getattr(part, name) for part in parts]) for name in ('counts', 'bytes'))
        return cls(counts, sizes, max(part.window for part in parts))

    @classmethod
    def local(cls, num_records: int, shard_records: int) -> 'ShardLayout':
        """Returns the layout of records that need not be fetched, in shards of so many."""
        starts = np.arange(0, num_records, shard_records)
        return cls(np.minimum(num_records - starts, shard_records), np.zeros_like(starts), 1)

    def select(self, indices: np.ndarray) -> 'ShardLayout':
        """Returns the layout of some of the records; indices: in order, (m,)."""
        ends = np.searchsorted(indices, np.cumsum(self.counts).astype(indices.dtype))
        return dataclasses.replace(self, counts=np.diff(ends, prepend=0))

    def needed_bytes(self) -> int:
        """Computes what must be on the disk at a time: a window, the next shard, and one more.

        Of two processes of a host one may be ahead of the other.
        """
        return int(np.sort(self.bytes[self.counts > 0])[-self.window - 2 :].sum())


@dataclasses.dataclass(frozen=True)
class _Epoch:
    """The slots of an epoch.

    Attributes:
      shards: sigma_e, int (S,).
      ends: the number of examples up to the end of each slot, int (S,).
    """

    shards: np.ndarray
    ends: np.ndarray


class ShardOrder:
    """The order of the examples (4), without end."""

    def __init__(self, layout: ShardLayout, seed: int):
        """Args:
        layout: of the records; shards without any are not in the order.
        seed: of all permutations.
        """
        self._counts, self._seed = layout.counts, seed
        self._firsts = np.cumsum(self._counts) - self._counts
        self._window = min(layout.window, int(np.count_nonzero(self._counts)))
        self._num_records = int(self._counts.sum())
        # Consecutive examples are of one epoch and, some hundred of them, of one slot.
        self._epoch = functools.lru_cache(maxsize=4)(self._draw_epoch)
        self._slot = functools.lru_cache(maxsize=16)(self._draw_slot)

    def __getitem__(self, example: int) -> int:
        """Returns the number of the record that is this example."""
        epoch, slot, within = self._locate(example)
        return int(self._slot(epoch, slot)[within])

    def shard(self, record: int) -> int:
        """Returns which shard a record is in."""
        return int(np.searchsorted(self._firsts, record, side='right')) - 1

    def window(self, example: int) -> np.ndarray:
        """Returns the shards that the slot of an example needs, that which is new in it first."""
        epoch, slot, _ = self._locate(example)
        return self._shards_of(epoch, slot)

    def _locate(self, example: int) -> tuple[int, int, int]:
        """Returns the epoch of an example, its slot, and its place in it."""
        epoch, within = divmod(int(example), self._num_records)
        ends = self._epoch(epoch).ends
        slot = int(np.searchsorted(ends, within, side='right'))
        return epoch, slot, within - (int(ends[slot - 1]) if slot else 0)

    def _draw_epoch(self, epoch: int) -> _Epoch:
        # All shards are permuted, so that the same data set has the same order of shards in every bucket.
        shards = self._rng(epoch, _SHARDS).permutation(len(self._counts))
        shards = shards[self._counts[shards] > 0]
        counts, window = self._counts[shards], self._window
        lengths = np.zeros(len(shards), np.int64)
        for part in range(window):
            lengths += np.roll((part + 1) * counts // window - part * counts // window, part)
        return _Epoch(shards, np.cumsum(lengths))

    def _draw_slot(self, epoch: int, slot: int) -> np.ndarray:
        parts = [self._part(epoch, int(shard), k) for k, shard in enumerate(self._shards_of(epoch, slot))]
        return self._rng(epoch, _SLOT, slot).permutation(np.concatenate(parts))

    def _shards_of(self, epoch: int, slot: int) -> np.ndarray:
        shards = self._epoch(epoch).shards
        return shards[(slot - np.arange(self._window)) % len(shards)]

    def _part(self, epoch: int, shard: int, part: int) -> np.ndarray:
        count, window = int(self._counts[shard]), self._window
        records = self._rng(epoch, _RECORDS, shard).permutation(count) + self._firsts[shard]
        return records[part * count // window : (part + 1) * count // window]

    def _rng(self, epoch: int, kind: int, number: int = 0) -> np.random.Generator:
        return np.random.default_rng([self._seed, epoch, kind, number])
