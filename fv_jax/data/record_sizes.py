"""The sizes of the clips of a data source, in one byte a record for up to 256 different sizes, else two or four."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from fv_jax.core.checks import require

_BITS = 21  # of a size's frames, height and width, which are packed into 63 bits
SIZE_LIMIT = 2**_BITS
_CHUNK = 2**20  # records that are handled at once, in arrays of eight bytes a record


@dataclasses.dataclass(frozen=True)
class RecordSizes:
    """Frames, height and width of every record of a source, zeros where they are unknown.

    Attributes:
      kinds: the different sizes, int64 (k, 3), in order.
      index: which of them each record has, unsigned (n,).
    """

    kinds: np.ndarray
    index: np.ndarray

    @classmethod
    def collect(cls, chunks: Iterable[np.ndarray]) -> 'RecordSizes':
        """Collects the sizes of all records.

        Args:
          chunks: sizes of consecutive records, integers (m, 3) from 0 to SIZE_LIMIT - 1.

        Raises:
          ValueError: a size beyond these.
        """
        numbers: dict[int, int] = {}  # packed size -> order of its first record
        parts = []
        for sizes in chunks:
            kinds, inverse = np.unique(_pack(sizes), return_inverse=True)
            known = np.array([numbers.setdefault(int(kind), len(numbers)) for kind in kinds], np.int64)
            parts.append(known.astype(_dtype(len(numbers)))[inverse.ravel()])
        packed = np.array(list(numbers), np.int64)
        return _sort(_unpack(packed), parts)

    @classmethod
    def from_array(cls, sizes: np.ndarray) -> 'RecordSizes':
        """Builds it from frames, height and width of every record, (n, 3)."""
        return cls.collect([np.asarray(sizes).reshape(-1, 3)])

    @classmethod
    def concatenate(cls, parts: Sequence['RecordSizes']) -> 'RecordSizes':
        """Concatenates the sizes of several sources."""
        starts = np.cumsum([0, *(len(part.kinds) for part in parts)])
        wide = _dtype(int(starts[-1]))
        numbers = [part.index.astype(wide) + wide.type(start) for part, start in zip(parts, starts, strict=False)]
        return _sort(np.concatenate([part.kinds for part in parts]), numbers)

    def __len__(self) -> int:
        return len(self.index)

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> 'RecordSizes':
        """Applies a function from sizes (k, 3) to sizes (k, 3)."""
        return _sort(function(self.kinds), [self.index])

    def count(self) -> np.ndarray:
        """Counts the records of each kind, int64 (k,)."""
        counts = np.zeros(len(self.kinds), np.int64)
        for _, chunk in self._chunks():
            counts += np.bincount(chunk, minlength=len(counts))
        return counts

    def select(self, chosen: np.ndarray) -> np.ndarray:
        """Returns the indices of the records of some kinds, in order, uint32 (m,); chosen: bool (k,)."""
        require(len(self) <= 2**32, f'a source of {len(self)} records: must have at most {2**32}')
        found = [(np.flatnonzero(chosen[chunk]) + start).astype(np.uint32) for start, chunk in self._chunks()]
        return np.concatenate([np.zeros(0, np.uint32), *found])

    def to_array(self) -> np.ndarray:
        """Returns the sizes as int64 (n, 3)."""
        return self.kinds[self.index]

    def _chunks(self) -> Iterator[tuple[int, np.ndarray]]:
        for start in range(0, len(self), _CHUNK):
            yield start, self.index[start : start + _CHUNK]


def _dtype(count: int) -> np.dtype:
    """Returns the narrowest unsigned type that numbers so many kinds."""
    return np.min_scalar_type(max(count - 1, 0))


def _pack(sizes: np.ndarray) -> np.ndarray:
    sizes = np.asarray(sizes)
    largest, least = sizes.max(initial=0), sizes.min(initial=0)
    require(
        least >= 0 and largest < SIZE_LIMIT, f'a size of {largest if least >= 0 else least} in a clip: not possible'
    )
    frames, height, width = sizes.astype(np.int64, copy=False).T
    return frames << 2 * _BITS | height << _BITS | width


def _unpack(packed: np.ndarray) -> np.ndarray:
    return np.stack([packed >> 2 * _BITS, packed >> _BITS & SIZE_LIMIT - 1, packed & SIZE_LIMIT - 1], axis=-1)


def _sort(kinds: np.ndarray, parts: Sequence[np.ndarray]) -> RecordSizes:
    """Sorts the kinds, unites equal ones and renumbers the records, part by part."""
    packed, numbers = np.unique(_pack(kinds), return_inverse=True)
    numbers = numbers.ravel().astype(_dtype(len(packed)))
    index = [np.zeros(0, numbers.dtype), *(numbers[part] for part in parts)]
    return RecordSizes(_unpack(packed), np.concatenate(index))
