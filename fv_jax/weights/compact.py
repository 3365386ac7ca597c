"""Our own VAE weights in one safetensors file: float16 tensors named by their paths, the configuration as metadata."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fv_jax.core import config as config_lib
from fv_jax.models.vae import VAE, VAEConfig
from fv_jax.weights import safetensors_file


def save_vae(path: Path | str, params: dict[str, Any], config: VAEConfig) -> None:
    """Writes a VAE's parameters (nested dict of arrays), rounded to float16."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    tensors = {'/'.join(str(k.key) for k in keys): np.asarray(leaf, np.float16) for keys, leaf in leaves}
    Path(path).write_bytes(save(tensors, {'vae': json.dumps(config_lib.to_dict(config))}))


def is_compact(path: Path) -> bool:
    """Whether it is such a file. Raises FileNotFoundError, or ValueError for a damaged safetensors file."""
    return path.suffix == '.safetensors' and 'vae' in safetensors_file.read(path)[1]


def load_vae(path: Path | str) -> VAE:
    """The VAE in a file that `save_vae` wrote; float32. Raises ValueError when the file is not one."""
    try:
        with safe_open(str(path), framework='numpy') as file:
            values = json.loads((file.metadata() or {}).get('vae', 'null'))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise ValueError(f'{path}: not a safetensors file: {error}') from None
    if values is None:
        raise ValueError(f'{path}: holds no VAE of this project')
    config = config_lib.build(VAEConfig, values, 'vae')
    abstract = nnx.eval_shape(lambda: VAE(config, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(abstract)
    if unknown := sorted(tensors.keys() - {'/'.join(map(str, keys)) for keys, _ in nnx.to_flat_state(state)}):
        raise ValueError(f'{path}: {unknown[0]} ({len(unknown)} in all) is not a part of the network')

    def tensor(keys, leaf):
        name = '/'.join(str(k.key) for k in keys)
        if name not in tensors or tensors[name].shape != leaf.shape:
            there = tensors[name].shape if name in tensors else 'absent'
            raise ValueError(f'{path}: {name} is {there} in the file, the network needs {leaf.shape}')
        return np.asarray(tensors[name], np.float32)

    pure = jax.tree_util.tree_map_with_path(tensor, nnx.to_pure_dict(state))
    nnx.replace_by_pure_dict(state, jax.tree.map(jax.numpy.asarray, pure))
    return nnx.merge(graphdef, state)
