"""Records, as they are stored in shards.

A record is a msgpack map. Numbers, strings, bytes, booleans and None are stored as they are; an array
is stored as a map of its dtype's name, its shape and its bytes (row-major, little-endian), bfloat16
included. A record of a clip has the keys

  video         mp4 bytes (H.264), or an array uint8 FHWC
  fps           float, frames per second
  frames, height, width      ints
  source        name of the video file
  start_frame   index of its first frame there, counted at `fps`
  caption       string, or absent

and a record of cached latents has `z_high` (FHWC) and `z_low` (KFHWC) instead of `video`.
"""

import contextlib
import sys
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import msgpack
import numpy as np

from fv_jax.core.checks import error_context, require
from fv_jax.data.record_sizes import SIZE_LIMIT

_ARRAY_KEYS = {'dtype', 'shape', 'data'}
_EXTRA_DTYPES = {'bfloat16': np.dtype(ml_dtypes.bfloat16)}

Record = dict[str, Any]


def encode_record(record: Mapping[str, Any]) -> bytes:
    """Encodes a record as msgpack bytes. Raises ValueError for a value that cannot be stored."""
    return msgpack.packb({key: _pack(key, value) for key, value in record.items()}, use_bin_type=True)


def decode_record(data: bytes) -> Record:
    """Inverts `encode_record`; arrays are writable. Raises ValueError if `data` is not a record."""
    with error_context('not a record: ', (ValueError, msgpack.UnpackException)):
        packed = msgpack.unpackb(data, raw=False)
    require(isinstance(packed, dict), f'not a record: expected a map, found {type(packed).__name__}')
    return {key: _unpack(key, value) for key, value in packed.items()}


_PLAIN = (bool, int, float, str, bytes)


def _pack(key: str, value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item() if value.dtype.kind in 'biuf' else np.asarray(value)
    if isinstance(value, np.ndarray):
        _dtype(key, value.dtype.name)
        if sys.byteorder == 'big' or value.dtype.byteorder == '>':
            value = value.astype(value.dtype.newbyteorder('<'))
        return {'dtype': value.dtype.name, 'shape': list(value.shape), 'data': value.tobytes()}
    if value is None or isinstance(value, _PLAIN):
        return value
    raise ValueError(f'record[{key!r}]: cannot store a {type(value).__name__}; use an array, number, string or bytes')


def _unpack(key: str, value: Any) -> Any:
    if value is None or isinstance(value, _PLAIN):
        return value
    if not (isinstance(value, dict) and set(value) == _ARRAY_KEYS):
        raise ValueError(f'record[{key!r}]: a {type(value).__name__}, which no record holds')
    name, shape, data = value['dtype'], value['shape'], value['data']
    if not (isinstance(name, str) and isinstance(data, bytes) and isinstance(shape, list)):
        raise ValueError(f'record[{key!r}]: not an array')
    require(all(isinstance(side, int) and side >= 0 for side in shape), f'record[{key!r}]: not an array')
    return np.frombuffer(bytearray(data), _dtype(key, name)).reshape(shape)


def _dtype(key: str, name: str) -> np.dtype:
    dtype = _EXTRA_DTYPES.get(name)
    if dtype is None:
        with contextlib.suppress(TypeError):
            dtype = np.dtype(name)
    require(
        dtype is not None and (dtype.kind in 'biuf' or name in _EXTRA_DTYPES),
        f'record[{key!r}]: arrays of dtype {name} are not supported; use bfloat16 or a numpy number type',
    )
    return dtype


def record_size(record: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """Returns (frames, height, width) in pixels of the clip of a record, latents or not; None if it is unknown."""
    video = record.get('video')
    if isinstance(video, np.ndarray) and video.ndim == 4:
        return video.shape[:3]
    size = tuple(record.get(key) for key in ('frames', 'height', 'width'))
    return size if all(isinstance(value, int) and 0 <= value < SIZE_LIMIT for value in size) else None


def first_line(error: Exception) -> str:
    """Returns the first line of an error's text."""
    return str(error).strip().partition('\n')[0]
