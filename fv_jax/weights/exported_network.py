"""Networks as `export` writes them, in one file or in a folder; both open without the run that they are from.

A file     *.safetensors, of a small network: float16 tensors; the configuration is in its metadata.
A folder   config.json and model.safetensors, or parts of it with an index, in the dtypes of the parameters, as models
           are on the Hugging Face Hub.

Tensors are named by their paths. The description has one key for the network, 'vae' or 'dit', with its configuration,
and 'run' for the network of a stage: {'step', 'config', 'digests'} of the run.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx
from safetensors.numpy import save

from fv_jax.core import config as config_lib
from fv_jax.core import files
from fv_jax.core.checks import require
from fv_jax.core.files import parse_json
from fv_jax.core.hub import weights_path
from fv_jax.core.paths import StoragePath, as_path
from fv_jax.models.dit import DiT, DiTConfig
from fv_jax.models.vae import VAE, VAEConfig
from fv_jax.parallel.rules import Partitioner
from fv_jax.weights import reader
from fv_jax.weights.formats import safetensors_file
from fv_jax.weights.formats.torch_zip import TensorSpec
from fv_jax.weights.layouts import key_table
from fv_jax.weights.layouts.key_table import Parameter, Parameters

RUN = 'run'
CONFIG, STEM = 'config.json', 'model'  # of a folder
LIBRARY = 'fv_jax'  # `library_name` in the description of a folder, by which it is recognized
_KINDS = {'vae': VAEConfig, 'dit': DiTConfig}
_LIBRARY_KEY = 'library_name'


def write(
    path: str | StoragePath, values: Parameters, config: VAEConfig | DiTConfig, run: Mapping[str, Any] | None = None
) -> None:
    """Writes a file with a network's parameters, rounded to float16.

    Args:
      path: the file.
      values: the parameters.
      config: of the network.
      run: 'step', 'config' and 'digests' of the run of a stage; None for none.

    Raises:
      ValueError: a value exceeds the range of float16.
    """
    tensors = {_key(name): value.numpy() for name, value in key_table.cast_parameters(values, np.float16).items()}
    metadata = {key: json.dumps(value) for key, value in _describe(config, run).items()}
    as_path(path).write_bytes(save(tensors, metadata))


def write_folder(
    folder: StoragePath, values: Parameters, config: VAEConfig | DiTConfig, run: Mapping[str, Any] | None = None
) -> None:
    """Writes a folder, one parameter in memory at a time.

    Args:
      folder: exists.
      values: the parameters; every tensor has the dtype of its own.
      config: of the network.
      run: as for `write`.

    Raises:
      ValueError: a value exceeds the range of its dtype.
    """
    specs = {_key(name): TensorSpec(value.shape, value.dtype) for name, value in values.items()}
    tensors = ((_key(name), value.numpy()) for name, value in values.items())
    # Some readers take only files that name a framework; the names of tensors are those of no PyTorch module.
    safetensors_file.write_folder(folder, STEM, {'format': 'np'}, specs, tensors)
    files.write_json(folder / CONFIG, {_LIBRARY_KEY: LIBRARY} | _describe(config, run))


def _describe(config: VAEConfig | DiTConfig, run: Mapping[str, Any] | None) -> dict[str, Any]:
    (kind,) = [name for name, cls in _KINDS.items() if isinstance(config, cls)]
    return {kind: config_lib.to_dict(config)} | ({} if run is None else {RUN: dict(run)})


def is_folder(path: StoragePath) -> bool:
    """Returns whether a path is a folder that `write_folder` wrote."""
    return path.is_dir() and _folder_description(path) is not None


def _folder_description(folder: StoragePath) -> dict[str, Any] | None:
    config = folder / CONFIG
    try:
        found = parse_json(config.read_text()) if config.is_file() else None
    except ValueError:
        return None
    return found if isinstance(found, dict) and found.get(_LIBRARY_KEY) == LIBRARY else None


def _read_description(path: StoragePath) -> dict[str, Any]:
    """Reads what `_describe` described; {} for what is neither such a file nor such a folder."""
    if path.is_dir():
        return _folder_description(path) or {}
    if path.suffix != safetensors_file.SUFFIX:
        return {}
    _, metadata = safetensors_file.read(path)
    return {key: parse_json(metadata[key]) for key in (*_KINDS, RUN) if key in metadata}


def read_kind(path: str | StoragePath) -> str | None:
    """Returns 'vae' or 'dit' for such a file or folder, None for any other.

    Raises FileNotFoundError, or ValueError for a corrupted file.
    """
    path = weights_path(path)
    if path.is_dir():
        described = _folder_description(path) or {}
    else:
        described = safetensors_file.read(path)[1] if path.suffix == safetensors_file.SUFFIX else {}
    return next((kind for kind in _KINDS if kind in described), None)


def read_run(path: str | StoragePath) -> Any:
    """Reads what `write` stored of the run, which is not checked; None for none.

    Raises FileNotFoundError, or ValueError for a corrupted file.
    """
    return _read_description(weights_path(path)).get(RUN)


def read_tensors(path: str | StoragePath) -> Mapping[str, safetensors_file.StoredTensor]:
    """Opens the stored tensors by the parameters' paths with slashes; values are read when they are used.

    Raises FileNotFoundError, or ValueError for a corrupted file.
    """
    path = weights_path(path)
    return safetensors_file.read_folder(path) if path.is_dir() else safetensors_file.read(path)[0]


def read_config(path: str | StoragePath) -> VAEConfig | DiTConfig:
    """Reads the network's configuration. Raises FileNotFoundError, or ValueError for a file of another kind."""
    described = _read_description(weights_path(path))
    kind = next((kind for kind in _KINDS if kind in described), None)
    require(kind is not None, f'{path}: does not contain a network of this project')
    config: Any = config_lib.build(_KINDS[kind], described[kind], kind)
    return config


def read_parameters(path: str | StoragePath) -> Parameters:
    """Reads the parameters lazily, in the dtypes of the configuration; a VAE's are float32.

    Raises:
      FileNotFoundError: no such file or folder.
      ValueError: another kind of file, or an incomplete one.
    """
    return _parameters(path, reader.abstract_network(read_config(path)))


def _parameters(path: str | StoragePath, shapes: VAE | DiT) -> Parameters:
    stored = read_tensors(path)
    leaves = key_table.named_parameters(nnx.state(shapes))
    wanted = {_key(name): leaf for name, (_, leaf) in leaves.items()}
    if unknown := sorted(stored.keys() - wanted.keys()):
        raise ValueError(f'{path}: {unknown[0]} ({len(unknown)} in total) is not a parameter of the network')
    for key, leaf in wanted.items():
        if key not in stored:
            raise ValueError(f'{path}: {key} is missing; the file is incomplete')
        if stored[key].shape != leaf.shape:
            raise ValueError(f'{path}: {key} has shape {stored[key].shape}, must be {leaf.shape}')

    def parameter(name: str, leaf: Any) -> Parameter:
        dtype = np.dtype(leaf.dtype)
        return Parameter(leaf.shape, dtype, lambda: np.asarray(stored[_key(name)].numpy(), dtype))

    return {name: parameter(name, leaf) for name, (_, leaf) in leaves.items()}


def load(path: str | StoragePath, partitioner: Partitioner | None = None) -> VAE | DiT:
    """Loads the network. Raises as `read_parameters` does, and as `key_table.build_module` for a mesh."""
    shapes = reader.abstract_network(read_config(path))
    return key_table.build_module(shapes, _parameters(path, shapes), partitioner)


def _key(name: str) -> str:
    return name.replace('.', '/')
