"""Our small networks in one safetensors file: float16 tensors named by their paths, the configuration as metadata.

The metadata has one key for the network, 'vae' or 'dit', with its configuration as JSON, and others of the writer.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx
from safetensors.numpy import save

from fv_jax.core import config as config_lib
from fv_jax.core.checks import require
from fv_jax.core.files import parse_json
from fv_jax.core.paths import StoragePath, as_path
from fv_jax.models.dit import DiT, DiTConfig
from fv_jax.models.vae import VAE, VAEConfig
from fv_jax.parallel.rules import Partitioner
from fv_jax.weights import reader
from fv_jax.weights.formats import safetensors_file
from fv_jax.weights.layouts import key_table
from fv_jax.weights.layouts.key_table import Parameter, Parameters

RUN = 'run'  # of a stage's network: {'step', 'config', 'digests'} of the run, as JSON
_KINDS = {'vae': VAEConfig, 'dit': DiTConfig}


def write(
    path: str | StoragePath, values: Parameters, config: VAEConfig | DiTConfig, more: Mapping[str, str] | None = None
) -> None:
    """Writes a network's parameters, rounded to float16.

    Args:
      path: the file.
      values: the parameters.
      config: of the network.
      more: further metadata.

    Raises:
      ValueError: a value exceeds the range of float16.
    """
    (kind,) = [name for name, cls in _KINDS.items() if isinstance(config, cls)]
    tensors = {_key(name): value.numpy() for name, value in key_table.cast_parameters(values, np.float16).items()}
    as_path(path).write_bytes(save(tensors, {kind: json.dumps(config_lib.to_dict(config)), **(more or {})}))


def read_kind(path: str | StoragePath) -> str | None:
    """Returns 'vae' or 'dit' for such a file, None for any other.

    Raises FileNotFoundError, or ValueError for a corrupted one.
    """
    path = as_path(path)
    if path.suffix != '.safetensors':
        return None
    return next((kind for kind in _KINDS if kind in safetensors_file.read(path)[1]), None)


def read_metadata(path: str | StoragePath) -> dict[str, str]:
    """Reads the metadata that `write` stored. Raises FileNotFoundError, or ValueError for a corrupted file."""
    return safetensors_file.read(path)[1]


def read_tensors(path: str | StoragePath) -> Mapping[str, safetensors_file.StoredTensor]:
    """Opens the stored tensors by the parameters' paths with slashes; values are read when they are used.

    Raises FileNotFoundError, or ValueError for a corrupted file.
    """
    return safetensors_file.read(path)[0]


def read_config(path: str | StoragePath) -> VAEConfig | DiTConfig:
    """Reads the network's configuration. Raises FileNotFoundError, or ValueError for a file of another kind."""
    known = read_metadata(path)
    kind = next((kind for kind in _KINDS if kind in known), None)
    require(kind is not None, f'{path}: does not contain a network of this project')
    config: Any = config_lib.build(_KINDS[kind], parse_json(known[kind]), kind)
    return config


def read_parameters(path: str | StoragePath) -> Parameters:
    """Reads the parameters of a file lazily, in the dtypes of its configuration; a VAE's are float32.

    Raises:
      FileNotFoundError: no such file.
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
    """Loads the network of a file. Raises as `read_parameters` does, and as `key_table.build_module` for a mesh."""
    shapes = reader.abstract_network(read_config(path))
    return key_table.build_module(shapes, _parameters(path, shapes), partitioner)


def _key(name: str) -> str:
    return name.replace('.', '/')
