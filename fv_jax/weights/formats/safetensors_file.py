"""Reads and writes safetensors files tensor by tensor.

A file consists of eight bytes (the length of the header, little-endian), the header (JSON: for each tensor its dtype,
its shape and where its bytes are) and the bytes.

`safetensors.safe_open` and `save_file` are not used: they copy whole tensors, and write from memory. Here a tensor is
a view of the file, whose pages can be dropped, and is written as soon as it is computed. The fingerprint of a T5, which
samples every tensor, takes 2 ms per GB instead of 3 s.
"""

import itertools
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

import ml_dtypes
import numpy as np

from fv_jax.core import files
from fv_jax.core.checks import require
from fv_jax.core.files import parse_json
from fv_jax.core.paths import StoragePath, as_path
from fv_jax.weights.formats.memory_map import MemoryMappedFile, StoredTensor, make_tensor
from fv_jax.weights.formats.torch_zip import TensorSpec

SUFFIX = '.safetensors'
INDEX_SUFFIX = f'{SUFFIX}.index.json'  # of a model in several files
INDEX = f'*{INDEX_SUFFIX}'
MAX_SHARD_BYTES = 5 * 10**9  # the convention of the Hugging Face Hub

_DTYPES = {
    'F64': np.dtype(np.float64),
    'F32': np.dtype(np.float32),
    'F16': np.dtype(np.float16),
    'BF16': np.dtype(ml_dtypes.bfloat16),
    'I64': np.dtype(np.int64),
    'I32': np.dtype(np.int32),
    'I16': np.dtype(np.int16),
    'I8': np.dtype(np.int8),
    'U8': np.dtype(np.uint8),
    'BOOL': np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LENGTH_BYTES = 8
_METADATA = '__metadata__'
_ENTRY = ('dtype', 'shape', 'data_offsets')  # of a tensor in the header
_ALIGNMENT = 64


def read(path: str | StoragePath) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Opens the tensors and the metadata of a file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a complete safetensors file.
    """
    path = as_path(path)
    file = MemoryMappedFile(path)
    require(len(file.bytes) >= _LENGTH_BYTES, f'{path}: not a safetensors file ({len(file.bytes)} bytes)')
    start = _LENGTH_BYTES + int.from_bytes(file.bytes[:_LENGTH_BYTES].tobytes(), 'little')
    try:
        header = parse_json(file.bytes[_LENGTH_BYTES:start].tobytes()) if start <= len(file.bytes) else None
    except ValueError:
        header = None
    require(isinstance(header, dict), f'{path}: not a safetensors file, or truncated ({len(file.bytes)} bytes)')
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f'{path}: invalid metadata; the file is corrupted, download it again')
    return {key: _tensor(path, file, start, key, entry) for key, entry in header.items()}, metadata


def _tensor(path: StoragePath, file: MemoryMappedFile, start: int, key: str, entry: Any) -> StoredTensor:
    name, shape, offsets = (entry.get(k) for k in _ENTRY) if isinstance(entry, dict) else (None, None, None)
    if not isinstance(name, str) or not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise ValueError(f'{path}: {key} has no valid {", ".join(_ENTRY)}; download the file again')
    require(name in _DTYPES, f'{path}: {key} has dtype {name}; supported are {", ".join(_DTYPES)}')
    dtype, shape, (first, last) = _DTYPES[name], tuple(shape), offsets
    elements = math.prod(shape)
    require(
        last - first == elements * dtype.itemsize and start + last <= len(file.bytes),
        f'{path}: {key} of shape {shape} ends at byte {start + last} of {len(file.bytes)}; the file is corrupted or '
        'truncated, download it again',
    )
    return make_tensor(file.storage(start + first, dtype, elements), shape)


def _counts(value: Any) -> bool:
    """Returns whether a value is a list of non-negative integers."""
    return isinstance(value, list) and all(type(x) is int and x >= 0 for x in value)


def read_folder(folder: StoragePath) -> dict[str, StoredTensor]:
    """Opens the tensors of the *.safetensors files in a folder.

    The files are those of its index, or else the only one.

    Raises:
      FileNotFoundError: no such file, or one that the index names is missing.
      ValueError: a corrupted file, several files without an index, or an index that does not match its files.
    """
    indexes, found = sorted(folder.glob(INDEX)), sorted(folder.glob(f'*{SUFFIX}'))
    if len(indexes) == 1:
        return _read_indexed(indexes[0])
    require(found, f'{folder}: holds no .safetensors file', FileNotFoundError)
    if len(indexes) > 1 or len(found) > 1:
        names = ', '.join(path.name for path in indexes or found)
        raise ValueError(f'{folder}: has {names}; keep the files of one variant')
    return read(found[0])[0]


def _read_indexed(index: StoragePath) -> dict[str, StoredTensor]:
    """Opens the tensors of the files that an index names, and checks that they are those of the index."""
    try:
        weight_map = parse_json(index.read_text(encoding='utf-8'))['weight_map']
        named = {(name, key) for key, name in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f'{index}: not an index (JSON with a weight_map from tensors to files)') from None
    if strange := next(
        (name for name, _ in named if not isinstance(name, str) or PurePosixPath(name).name != name), None
    ):
        raise ValueError(f'{index}: names the file {strange!r}; files must be in the same folder')
    contents = {name: read(index.parent / name)[0] for name in sorted({name for name, _ in named})}
    there = {(name, key) for name, tensors in contents.items() for key in tensors}
    if different := sorted(named ^ there):
        name, key = different[0]
        what = 'is not in it' if (name, key) in named else 'is in it, and not by the index'
        raise ValueError(
            f'{index}: does not match {name}: {key} {what} ({len(different)} differences); download all files again'
        )
    return {key: tensor for tensors in contents.values() for key, tensor in tensors.items()}


def write(
    path: StoragePath,
    metadata: Mapping[str, str],
    specs: Mapping[str, TensorSpec],
    tensors: Iterable[tuple[str, np.ndarray]],
) -> None:
    """Writes a file.

    Args:
      path: the file.
      metadata: strings by name.
      specs: key -> shape and dtype.
      tensors: every key of `specs` once, in any order; consumed one at a time.
    """
    header, offset = {_METADATA: dict(metadata)}, 0
    for key, spec in specs.items():
        size = _nbytes(spec)
        header[key] = {
            'dtype': _NAMES[spec.dtype],
            'shape': list(spec.shape),
            'data_offsets': [offset, offset + size],
        }
        offset += size
    raw = json.dumps(header, separators=(',', ':')).encode()
    raw += b' ' * (-(_LENGTH_BYTES + len(raw)) % _ALIGNMENT)
    left = set(specs)
    with path.open('wb') as file:
        file.write(len(raw).to_bytes(_LENGTH_BYTES, 'little') + raw)
        for key, tensor in tensors:
            spec = specs[key]
            assert (tensor.shape, tensor.dtype) == (spec.shape, spec.dtype), (key, tensor.shape, tensor.dtype, spec)
            left.remove(key)
            file.seek(_LENGTH_BYTES + len(raw) + header[key]['data_offsets'][0])
            file.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8))
    assert not left, f'not written: {sorted(left)[:3]}'


def write_folder(
    folder: StoragePath,
    stem: str,
    metadata: Mapping[str, str],
    specs: Mapping[str, TensorSpec],
    tensors: Iterable[tuple[str, np.ndarray]],
    max_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes STEM.safetensors, or STEM-00001-of-0000N.safetensors, ... with STEM.safetensors.index.json.

    Args:
      folder: exists.
      stem: of the names.
      metadata: of every file.
      specs: key -> shape and dtype.
      tensors: every key of `specs`, in its order; consumed one at a time.
      max_bytes: of the tensors of a file; a larger tensor has a file of its own.
    """
    shards, total, remaining = _shards(specs, max_bytes), 0, iter(tensors)
    weight_map = {}
    for i, shard in enumerate(shards):
        name = f'{stem}{SUFFIX}' if len(shards) == 1 else f'{stem}-{i + 1:05d}-of-{len(shards):05d}{SUFFIX}'
        with files.atomic_write(folder / name) as partial:
            write(partial, metadata, shard, itertools.islice(remaining, len(shard)))
        weight_map |= dict.fromkeys(shard, name)
        total += sum(_nbytes(spec) for spec in shard.values())
    if len(shards) > 1:
        index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
        files.write_json(folder / f'{stem}{INDEX_SUFFIX}', index)


def _shards(specs: Mapping[str, TensorSpec], max_bytes: int) -> list[dict[str, TensorSpec]]:
    """Divides tensors, in order, into files."""
    shards, size = [{}], 0
    for key, spec in specs.items():
        if shards[-1] and size + _nbytes(spec) > max_bytes:
            shards.append({})
            size = 0
        shards[-1][key] = spec
        size += _nbytes(spec)
    return shards


def _nbytes(spec: TensorSpec) -> int:
    return spec.size * spec.dtype.itemsize
