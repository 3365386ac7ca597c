"""Our own small networks in one safetensors file: float16 tensors named by their paths, the configuration as metadata.

The metadata has one key for the network, 'vae' or 'dit', with its configuration as JSON, and whatever else the writer
wants known of it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from safetensors.numpy import save

from fv_jax.core import config as config_lib
from fv_jax.core.checks import require
from fv_jax.core.files import parse_json
from fv_jax.models.dit import DiT, DiTConfig
from fv_jax.models.vae import VAE, VAEConfig
from fv_jax.weights import reader
from fv_jax.weights.formats import safetensors_file
from fv_jax.weights.layouts import key_table
from fv_jax.weights.layouts.key_table import Parameter, Parameters

RUN = 'run'  # of a stage's network: {'step', 'config', 'digests'} of the run, as JSON
_KINDS = {'vae': VAEConfig, 'dit': DiTConfig}


def write(
    path: Path | str, values: Parameters, config: VAEConfig | DiTConfig, more: Mapping[str, str] | None = None
) -> None:
    """Writes a network's parameters, rounded to float16. more: further metadata.

    Raises ValueError for a number that float16 cannot hold.
    """
    (kind,) = [name for name, cls in _KINDS.items() if isinstance(config, cls)]
    tensors = {_key(name): value.numpy() for name, value in key_table.cast_parameters(values, np.float16).items()}
    Path(path).write_bytes(save(tensors, {kind: json.dumps(config_lib.to_dict(config)), **(more or {})}))


def kind_of(path: Path | str) -> str | None:
    """'vae' or 'dit' of such a file, None of any other. Raises FileNotFoundError, or ValueError for a damaged one."""
    path = Path(path)
    if path.suffix != '.safetensors':
        return None
    return next((kind for kind in _KINDS if kind in safetensors_file.read(path)[1]), None)


def metadata(path: Path | str) -> dict[str, str]:
    """Reads the metadata that `write` stored. Raises FileNotFoundError, or ValueError for a damaged file."""
    return safetensors_file.read(path)[1]


def tensors(path: Path | str) -> Mapping[str, safetensors_file.StoredTensor]:
    """Returns the stored tensors by the parameters' paths with slashes; values are read when they are used."""
    return safetensors_file.read(path)[0]


def config_of(path: Path | str) -> VAEConfig | DiTConfig:
    """Reads the network's configuration. Raises FileNotFoundError, or ValueError for a file of another kind."""
    known = metadata(path)
    kind = next((kind for kind in _KINDS if kind in known), None)
    require(kind is not None, f'{path}: holds no network of this project')
    config: Any = config_lib.build(_KINDS[kind], parse_json(known[kind]), kind)
    return config


def parameters(path: Path | str) -> Parameters:
    """Those of the network in such a file, in the types of its configuration; a VAE's are float32.

    Raises FileNotFoundError, or ValueError when the file is not one, or not whole.
    """
    return _parameters(path, reader.abstract_network(config_of(path)))


def _parameters(path: Path | str, shapes: VAE | DiT) -> Parameters:
    stored = tensors(path)
    leaves = key_table.named_parameters(nnx.state(shapes))
    wanted = {_key(name): leaf for name, (_, leaf) in leaves.items()}
    if unknown := sorted(stored.keys() - wanted.keys()):
        raise ValueError(f'{path}: {unknown[0]} ({len(unknown)} in all) is not a part of the network')
    for key, leaf in wanted.items():
        if key not in stored or stored[key].shape != leaf.shape:
            shape = stored[key].shape if key in stored else 'absent'
            raise ValueError(f'{path}: {key} is {shape} in the file, the network needs {leaf.shape}')

    def parameter(name: str, leaf: Any) -> Parameter:
        dtype = np.dtype(leaf.dtype)
        return Parameter(leaf.shape, dtype, lambda: np.asarray(stored[_key(name)].numpy(), dtype))

    return {name: parameter(name, leaf) for name, (_, leaf) in leaves.items()}


def load(path: Path | str) -> VAE | DiT:
    """The network in such a file. Raises as `parameters` does."""
    shapes = reader.abstract_network(config_of(path))
    return key_table.build_module(shapes, _parameters(path, shapes))


def _key(name: str) -> str:
    return name.replace('.', '/')
