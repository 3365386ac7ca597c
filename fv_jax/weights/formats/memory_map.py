"""Memory-mapped files: pages are read from disk when they are accessed, and can be dropped afterwards."""

import dataclasses
import mmap
from pathlib import Path

import numpy as np


class MemoryMappedFile:
    """A read-only memory map of a file's bytes."""

    def __init__(self, path: Path | str):
        with Path(path).open('rb') as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.bytes = np.frombuffer(self._map, np.uint8)

    def storage(self, start: int, dtype: np.dtype, elements: int) -> 'Storage':
        """`elements` values of `dtype` from byte `start` on."""
        return Storage(self.bytes[start : start + elements * dtype.itemsize].view(dtype), self, start)

    def drop_pages(self, start: int, length: int) -> None:
        """Drops the pages of these bytes from memory (madvise DONTNEED); a later access reads them from disk again."""
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (start + length) // mmap.PAGESIZE * mmap.PAGESIZE
        if hasattr(mmap, 'MADV_DONTNEED') and last > first:  # where it is missing, the system alone decides
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)


# Refuse __setstate__: the pickle opcode BUILD could otherwise change a tensor after its bounds were checked, so that it
# reads outside of the file.
_SETSTATE = 'a tensor in a file is not changed by a pickle'


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of equal values in a file. values: one-dimensional, memory-mapped."""

    values: np.ndarray = dataclasses.field(repr=False)
    file: MemoryMappedFile | None = None
    start: int = 0

    def __setstate__(self, state: object) -> None:
        raise TypeError(_SETSTATE)

    def drop_pages(self) -> None:
        """Drops the storage's pages from memory (`MemoryMappedFile.drop_pages`)."""
        if self.file is not None:
            self.file.drop_pages(self.start, self.values.nbytes)


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: `shape` and `dtype` are known, values are read by `numpy()`."""

    shape: tuple[int, ...]
    dtype: np.dtype
    storage: Storage
    offset: int
    strides: tuple[int, ...]  # in elements

    def __setstate__(self, state: object) -> None:
        raise TypeError(_SETSTATE)

    def numpy(self) -> np.ndarray:
        """The values, as a read-only view of the file; pages are read when they are touched."""
        return np.lib.stride_tricks.as_strided(
            self.storage.values[self.offset :],
            self.shape,
            tuple(stride * self.dtype.itemsize for stride in self.strides),
            writeable=False,
        )

    def drop_pages(self) -> None:
        """Drops the pages that reading the values loaded."""
        self.storage.drop_pages()


def contiguous(storage: Storage, shape: tuple[int, ...]) -> StoredTensor:
    """The whole of a storage as a tensor of `shape`."""
    strides = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
    return StoredTensor(shape, storage.values.dtype, storage, 0, tuple(strides))
