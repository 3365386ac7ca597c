"""Memory-mapped files: pages are read from disk when they are accessed, and can be dropped afterwards."""

import contextlib
import dataclasses
import mmap
import weakref

import numpy as np

from fv_jax.core.local_copies import open_copy
from fv_jax.core.paths import StoragePath


class MemoryMappedFile:
    """A read-only memory map of a file's bytes.

    Attributes:
      local: the file, or of a remote one a local copy, which is kept as long as this object.
      bytes: uint8.
    """

    def __init__(self, path: StoragePath):
        with contextlib.ExitStack() as stack:
            self.local = stack.enter_context(open_copy(path))
            with self.local.open('rb') as file:
                is_empty = not file.read(1)  # which cannot be mapped
                self._map = b'' if is_empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            weakref.finalize(self, stack.pop_all().close)
        self.bytes = np.frombuffer(self._map, np.uint8)

    def storage(self, start: int, dtype: np.dtype, elements: int) -> 'Storage':
        """Returns `elements` values of `dtype` from byte `start` on."""
        return Storage(self.bytes[start : start + elements * dtype.itemsize].view(dtype), self, start)

    def drop_pages(self, start: int, length: int) -> None:
        """Drops the pages of these bytes from memory (madvise DONTNEED); a later access reads them from disk again."""
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (start + length) // mmap.PAGESIZE * mmap.PAGESIZE
        if hasattr(mmap, 'MADV_DONTNEED') and last > first:  # not available on every system
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)


# __setstate__ is disabled: the pickle opcode BUILD could otherwise change a tensor after its bounds were checked, so
# that it reads outside of the file.
_SETSTATE = 'a tensor in a file is not changed by a pickle'


@dataclasses.dataclass(frozen=True)
class Storage:
    """One-dimensional, memory-mapped values of a file."""

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
    """A tensor in a file, with known `shape` and `dtype`; `numpy()` reads its values."""

    shape: tuple[int, ...]
    dtype: np.dtype
    storage: Storage
    offset: int
    strides: tuple[int, ...]  # in elements

    def __setstate__(self, state: object) -> None:
        raise TypeError(_SETSTATE)

    def numpy(self) -> np.ndarray:
        """Returns the values as a read-only view of the file; pages are read on access."""
        return np.lib.stride_tricks.as_strided(
            self.storage.values[self.offset :],
            self.shape,
            tuple(stride * self.dtype.itemsize for stride in self.strides),
            writeable=False,
        )

    def drop_pages(self) -> None:
        """Drops the pages that reading the values loaded."""
        self.storage.drop_pages()


def make_tensor(storage: Storage, shape: tuple[int, ...]) -> StoredTensor:
    """Makes a contiguous tensor of `shape` of a whole storage."""
    strides = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
    return StoredTensor(shape, storage.values.dtype, storage, 0, tuple(strides))
