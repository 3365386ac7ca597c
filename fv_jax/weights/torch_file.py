"""Reads the zip files that torch.save writes, without torch and without running what is inside.

Such a file is an uncompressed zip: `<name>/data.pkl` describes the objects, `<name>/data/<key>` holds the raw bytes
of each storage. The pickle is read by an unpickler that knows a handful of names and refuses every other, so
that a file cannot run code; storages stay on disk behind a memory map, and a tensor is read when it is asked for.
"""

import collections
import dataclasses
import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

_DTYPES = {
    'FloatStorage': np.dtype(np.float32),
    'DoubleStorage': np.dtype(np.float64),
    'HalfStorage': np.dtype(np.float16),
    'BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
    'LongStorage': np.dtype(np.int64),
    'IntStorage': np.dtype(np.int32),
    'ShortStorage': np.dtype(np.int16),
    'CharStorage': np.dtype(np.int8),
    'ByteStorage': np.dtype(np.uint8),
    'BoolStorage': np.dtype(np.bool_),
}
_LOCAL_HEADER_BYTES = 30  # of a zip member, before its name and extra field
_LOCAL_HEADER_MAGIC = b'PK\x03\x04'


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: `shape` and `dtype` are known, values are read by `numpy()`."""

    shape: tuple[int, ...]
    dtype: np.dtype
    storage: np.ndarray = dataclasses.field(repr=False)  # one-dimensional, memory-mapped
    offset: int
    strides: tuple[int, ...]  # in elements

    def numpy(self) -> np.ndarray:
        """The values, as a read-only view of the file; pages are read when they are touched."""
        return np.lib.stride_tricks.as_strided(
            self.storage[self.offset :],
            self.shape,
            tuple(stride * self.dtype.itemsize for stride in self.strides),
            writeable=False,
        )


def read(path: str | Path) -> Any:
    """The object in the torch file at `path`, with a `StoredTensor` for every tensor.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a whole, uncompressed torch zip file, or its pickle names more than tensors and plain containers.
    """
    path = Path(path)
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        raise ValueError(
            f'{path}: not a torch zip file, or cut short ({path.stat().st_size} bytes); download it again, or re-save '
            'it with a torch of version 1.6 or newer'
        ) from None
    with archive:
        storages = _Storages(path, archive)
        return _Unpickler(path, storages).load()


class _Storages:
    """The raw arrays of one archive, by key."""

    def __init__(self, path: Path, archive: zipfile.ZipFile):
        self.path = path
        self.members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in self.members if name.count('/') == 1 and name.endswith('/data.pkl')]
        if len(pickles) != 1:
            raise ValueError(f'{path}: a zip file, but not one that torch.save wrote (no data.pkl in it)')
        self.root = pickles[0].removesuffix('data.pkl')
        self.bytes = np.memmap(path, np.uint8, mode='r')
        if f'{self.root}byteorder' in self.members and self.member(f'{self.root}byteorder').tobytes() != b'little':
            raise ValueError(f'{path}: written on a big-endian machine; re-save it on a little-endian one')

    def member(self, name: str) -> np.ndarray:
        """A member's bytes, as a view of the memory map."""
        info = self.members.get(name)
        if info is None:
            raise ValueError(f'{self.path}: {name} is missing from the archive; download the file again')
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(
                f'{self.path}: {name} is compressed; re-save the file with torch.save, which does not compress'
            )
        start = info.header_offset
        header = self.bytes[start : start + _LOCAL_HEADER_BYTES].tobytes()
        if len(header) < _LOCAL_HEADER_BYTES or not header.startswith(_LOCAL_HEADER_MAGIC):
            raise ValueError(
                f'{self.path}: no header for {name} at byte {start}; the file is damaged, download it again'
            )
        name_bytes, extra_bytes = struct.unpack_from('<HH', header, 26)
        start += _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
        if start + info.file_size > len(self.bytes):
            raise ValueError(
                f'{self.path}: {name} ends at byte {start + info.file_size} of {len(self.bytes)}; the file is cut '
                'short, download it again'
            )
        return self.bytes[start : start + info.file_size]

    def storage(self, key: str, dtype: np.dtype, elements: int) -> np.ndarray:
        """Storage `key` as `elements` values of `dtype`."""
        raw = self.member(f'{self.root}data/{key}')
        if len(raw) != elements * dtype.itemsize:
            raise ValueError(
                f'{self.path}: storage {key} has {len(raw)} bytes where {elements} values of {dtype} need '
                f'{elements * dtype.itemsize}; the file is damaged, download it again'
            )
        return raw.view(dtype)


@dataclasses.dataclass(frozen=True)
class _StorageType:
    """Stands for a torch storage class in the pickle; it is only ever named, never called."""

    dtype: np.dtype


class _Unpickler(pickle.Unpickler):
    """Knows tensors, parameters and ordered dicts, and nothing else."""

    def __init__(self, path: Path, storages: _Storages):
        self.path = path
        self.storages = storages
        super().__init__(io.BytesIO(storages.member(f'{storages.root}data.pkl').tobytes()))

    def load(self) -> Any:
        try:
            return super().load()
        except (
            pickle.UnpicklingError,
            EOFError,
            IndexError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
        ) as error:
            raise ValueError(f'{self.path}: its pickle cannot be read ({error}); download the file again') from error

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ('collections', 'OrderedDict'):
            return collections.OrderedDict
        if (module, name) == ('torch._utils', '_rebuild_tensor_v2'):
            return self._tensor
        if (module, name) == ('torch._utils', '_rebuild_parameter'):
            return _parameter
        if (module, name) == ('torch', 'Size'):
            return tuple
        if module == 'torch' and name in _DTYPES:
            return _StorageType(_DTYPES[name])
        raise ValueError(
            f'{self.path}: refusing to load {module}.{name}: only tensors in plain containers are read, since a '
            'pickle can run any code. If the file is trusted, re-save the weights alone: '
            "torch.save({'module': state_dict}, path)"
        )

    def persistent_load(self, pid: Any) -> np.ndarray:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == 'storage' and isinstance(pid[1], _StorageType)):
            raise ValueError(f'{self.path}: an unknown kind of storage, {pid!r}; re-save the file with torch.save')
        _, kind, key, _, elements = pid
        return self.storages.storage(key, kind.dtype, elements)

    def _tensor(
        self,
        storage: np.ndarray,
        offset: int,
        shape: tuple,
        strides: tuple,
        requires_grad: bool,
        hooks: Any,
        metadata: Any = None,
    ) -> StoredTensor:
        del requires_grad, hooks, metadata
        shape, strides = tuple(shape), tuple(strides)
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        bad = offset < 0 or min((*shape, *strides), default=0) < 0
        if bad or (0 not in shape and last >= len(storage)):
            raise ValueError(
                f'{self.path}: a tensor of shape {shape}, strides {strides} and offset {offset} does not fit its '
                f'storage of {len(storage)} values; the file is damaged, download it again'
            )
        return StoredTensor(shape, storage.dtype, storage, offset, strides)


def _parameter(data: StoredTensor, requires_grad: bool, hooks: Any) -> StoredTensor:
    del requires_grad, hooks
    return data
