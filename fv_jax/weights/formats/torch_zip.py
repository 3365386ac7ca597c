"""Reads and writes the zip files of torch.save, without torch and without executing what they contain.

Such a file is an uncompressed zip: `<name>/data.pkl` describes the objects, `<name>/data/<key>` has the raw bytes
of each storage. The pickle is read by an unpickler that accepts a handful of names and refuses all others, so
that a file cannot execute code; storages stay on disk behind a memory map, and a tensor is read on demand.

Writing does not need torch either. The format is small and fixed, and one tensor is in memory at a time, where
torch.save needs all of them.
"""

import collections
import dataclasses
import io
import math
import pickle
import struct
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from fv_jax.core.checks import require
from fv_jax.core.paths import StoragePath, as_path
from fv_jax.weights.formats.memory_map import MemoryMappedFile, Storage, StoredTensor

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
_STORAGES = {dtype: name for name, dtype in _DTYPES.items()}
_LOCAL_HEADER_BYTES = 30  # of a zip member, before its name and extra field
_LOCAL_HEADER_MAGIC = b'PK\x03\x04'
_EXTRA_HEADER_BYTES = 4  # of a field of a member's extra data: its name and its length
_PADDING_ID = b'FB'  # torch's name for the extra field that pads
_ZIP64_EXTRA_BYTES = 20
_ZIP64_FROM = 2**30  # bytes of a member; below it Python's zipfile never needs the long header
_ALIGNMENT = 64
MAX_REPEATS = 4096  # of a storage's values in one tensor


def read(path: str | StoragePath) -> Any:
    """Reads the object in a torch file, with a `StoredTensor` for every tensor.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a complete, uncompressed torch zip file, or its pickle has other objects than tensors and plain
        containers.
    """
    path = as_path(path)
    file = MemoryMappedFile(path)
    try:
        archive = zipfile.ZipFile(file.local)
    except (zipfile.BadZipFile, NotImplementedError):  # the latter for an unsupported zip version
        raise ValueError(
            f'{path}: not a torch zip file, or truncated ({len(file.bytes)} bytes); download it again, or re-save '
            'it with a torch of version 1.6 or newer'
        ) from None
    with archive:
        storages = _Storages(path, file, archive)
        return _Unpickler(path, storages).load()


class _Storages:
    """The raw arrays of one archive, by key."""

    def __init__(self, path: StoragePath, file: MemoryMappedFile, archive: zipfile.ZipFile):
        self.path, self.file = path, file
        self.members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in self.members if name.count('/') == 1 and name.endswith('/data.pkl')]
        if len(pickles) != 1:
            raise _RefusedError(f'{path}: a zip file, but not one that torch.save wrote (no data.pkl in it)')
        self.root = pickles[0].removesuffix('data.pkl')
        if f'{self.root}byteorder' in self.members and self.content(f'{self.root}byteorder') != b'little':
            raise _RefusedError(f'{path}: written on a big-endian machine; re-save it on a little-endian one')

    def content(self, name: str) -> bytes:
        """Reads the bytes of a small member."""
        start, size = self.member(name)
        return self.file.bytes[start : start + size].tobytes()

    def member(self, name: str) -> tuple[int, int]:
        """Returns (start, size) of the bytes of a member."""
        info = self.members.get(name)
        if info is None:
            raise _RefusedError(f'{self.path}: {name} is missing from the archive; download the file again')
        require(
            info.compress_type == zipfile.ZIP_STORED,
            f'{self.path}: {name} is compressed; re-save the file with torch.save, which does not compress',
            _RefusedError,
        )
        start = info.header_offset
        header = self.file.bytes[start : start + _LOCAL_HEADER_BYTES].tobytes()
        require(
            len(header) >= _LOCAL_HEADER_BYTES and header.startswith(_LOCAL_HEADER_MAGIC),
            f'{self.path}: no header for {name} at byte {start}; the file is corrupted, download it again',
            _RefusedError,
        )
        name_bytes, extra_bytes = struct.unpack_from('<HH', header, 26)
        start += _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
        require(
            start + info.file_size <= len(self.file.bytes),
            f'{self.path}: {name} ends at byte {start + info.file_size} of {len(self.file.bytes)}; the file is '
            'truncated, download it again',
            _RefusedError,
        )
        return start, info.file_size

    def storage(self, key: str, dtype: np.dtype, elements: int) -> Storage:
        """Returns storage `key` as `elements` values of `dtype`."""
        start, size = self.member(f'{self.root}data/{key}')
        require(
            size == elements * dtype.itemsize,
            f'{self.path}: storage {key} has {size} bytes where {elements} values of {dtype} need '
            f'{elements * dtype.itemsize}; the file is corrupted, download it again',
            _RefusedError,
        )
        return self.file.storage(start, dtype, elements)


@dataclasses.dataclass(frozen=True)
class _StorageType:
    """Represents a torch storage class in the pickle, which names but never calls it."""

    dtype: np.dtype

    def __setstate__(self, state: object) -> None:
        raise TypeError('a pickle must not change a storage class')


class _RefusedError(ValueError):
    """Raised for a file that is refused; unlike the errors of the pickle module, its message is complete."""


class _Unpickler(pickle.Unpickler):
    """An unpickler of tensors, parameters and ordered dicts, and nothing else."""

    def __init__(self, path: StoragePath, storages: _Storages):
        self.path = path
        self.storages = storages
        super().__init__(io.BytesIO(storages.content(f'{storages.root}data.pkl')))

    def load(self) -> Any:
        try:
            return super().load()
        except _RefusedError:
            raise
        except (
            ValueError,
            pickle.UnpicklingError,
            EOFError,
            IndexError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
            MemoryError,
            RecursionError,
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
        raise _RefusedError(
            f'{self.path}: refusing to load {module}.{name}: only tensors in plain containers are read, since a '
            'pickle can run any code. If the file is trusted, re-save the weights alone: '
            "torch.save({'module': state_dict}, path)"
        )

    def persistent_load(self, pid: Any) -> Storage:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == 'storage' and isinstance(pid[1], _StorageType)):
            raise _RefusedError(f'{self.path}: unknown kind of storage {pid!r}; re-save the file with torch.save')
        _, kind, key, _, elements = pid
        return self.storages.storage(key, kind.dtype, elements)

    def _tensor(
        self,
        storage: Storage,
        offset: int,
        shape: tuple,
        strides: tuple,
        requires_grad: bool,
        hooks: Any,
        metadata: Any = None,
    ) -> StoredTensor:
        del requires_grad, hooks, metadata
        shape, strides = tuple(shape), tuple(strides)
        if not isinstance(storage, Storage) or not all(type(x) is int for x in (offset, *shape, *strides)):
            raise TypeError(f'not a tensor: {shape}, {strides}, {offset}')
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        bad = offset < 0 or min((*shape, *strides), default=0) < 0
        # A stride of 0 repeats values: a few bytes could claim to be a tensor that exceeds the memory.
        repeated = math.prod(shape) > MAX_REPEATS * max(len(storage.values), 1)
        require(
            not bad and not repeated and (0 in shape or last < len(storage.values)),
            f'{self.path}: a tensor of shape {shape}, strides {strides} and offset {offset} does not fit its '
            f'storage of {len(storage.values)} values; the file is corrupted, download it again',
            _RefusedError,
        )
        return StoredTensor(shape, storage.values.dtype, storage, offset, strides)


def _parameter(data: StoredTensor, requires_grad: bool, hooks: Any) -> StoredTensor:
    del requires_grad, hooks
    return data


# --- writing ---


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """The shape and dtype of a tensor to write."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def write(
    path: StoragePath, outer: str, specs: Mapping[str, TensorSpec], tensors: Iterable[tuple[str, np.ndarray]]
) -> None:
    """Writes {outer: {key: tensor}} as torch.save would; torch.load opens it, also with weights_only=True.

    Args:
      path: the file.
      outer: the one key of the outer dict.
      specs: key -> shape and dtype, in the order of the inner dict.
      tensors: every key of `specs` once, in any order, with its contiguous values; consumed one at a time.
    """
    numbers = {key: i for i, key in enumerate(specs)}
    name = path.name.split('.')[0] or 'archive'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED, allowZip64=True) as archive:
        for member, content in (
            ('data.pkl', _pickle_specs(outer, specs)),
            ('byteorder', b'little'),
            ('version', b'3\n'),
        ):
            _add(archive, f'{name}/{member}', content)
        for key, tensor in tensors:
            spec = specs[key]
            assert (tensor.shape, tensor.dtype) == (spec.shape, spec.dtype), (key, tensor.shape, tensor.dtype, spec)
            _add(archive, f'{name}/data/{numbers.pop(key)}', np.ascontiguousarray(tensor).reshape(-1).view(np.uint8))
    assert not numbers, f'not written: {list(numbers)[:3]}'


def _add(archive: zipfile.ZipFile, name: str, content: bytes | np.ndarray) -> None:
    """Adds a member whose bytes start at a multiple of 64, as torch aligns them, so that they can be memory-mapped."""
    info = zipfile.ZipInfo(name)  # dated 1980: equal tensors give equal files
    size = memoryview(content).nbytes
    zip64 = size > _ZIP64_FROM
    before = archive.fp.tell() + _LOCAL_HEADER_BYTES + len(name) + _EXTRA_HEADER_BYTES
    before += _ZIP64_EXTRA_BYTES if zip64 else 0
    padding = -before % _ALIGNMENT
    info.extra = _PADDING_ID + struct.pack('<H', padding) + b'Z' * padding
    info.file_size = size
    with archive.open(info, 'w', force_zip64=zip64) as member:
        member.write(content)


def _pickle_specs(outer: str, specs: Mapping[str, TensorSpec]) -> bytes:
    """Pickles the description of the tensors, opcode by opcode, as pickling torch's classes would need torch."""
    out = [pickle.PROTO + b'\x02', pickle.EMPTY_DICT, _text(outer), pickle.EMPTY_DICT, pickle.MARK]
    for number, (key, spec) in enumerate(specs.items()):
        strides = [math.prod(spec.shape[i + 1 :]) for i in range(len(spec.shape))]
        storage = [_text('storage'), _name('torch', _STORAGES[spec.dtype]), _text(str(number)), _text('cpu')]
        out += [_text(key), _name('torch._utils', '_rebuild_tensor_v2'), pickle.MARK]
        out += [pickle.MARK, *storage, _number(spec.size), pickle.TUPLE, pickle.BINPERSID]
        out += [_number(0), _numbers(spec.shape), _numbers(strides), pickle.NEWFALSE]
        out += [_name('collections', 'OrderedDict'), pickle.EMPTY_TUPLE, pickle.REDUCE, pickle.TUPLE, pickle.REDUCE]
    return b''.join([*out, pickle.SETITEMS, pickle.SETITEM, pickle.STOP])


def _text(text: str) -> bytes:
    raw = text.encode()
    return pickle.BINUNICODE + struct.pack('<I', len(raw)) + raw


def _name(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f'{module}\n{name}\n'.encode()


def _number(number: int) -> bytes:
    if number < 2**31:
        return pickle.BININT + struct.pack('<i', number)
    raw = number.to_bytes(number.bit_length() // 8 + 1, 'little', signed=True)
    return pickle.LONG1 + bytes([len(raw)]) + raw


def _numbers(numbers: Iterable[int]) -> bytes:
    return b''.join([pickle.MARK, *map(_number, numbers), pickle.TUPLE])
