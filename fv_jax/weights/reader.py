"""Opens files of weights: their configuration, and their parameters on demand.

An official file (.pt), the same tensors as safetensors, or a CogVideoX folder of diffusers. Opening reads and checks
all names and shapes, so that reading cannot fail later for lack of a tensor.
"""

import dataclasses
import fnmatch
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx

from fv_jax.core.abstract_module import abstract_module
from fv_jax.core.checks import require
from fv_jax.core.hub import weights_path
from fv_jax.core.paths import StoragePath
from fv_jax.models.dit import DiT, DiTConfig
from fv_jax.models.layers import DtypeName
from fv_jax.models.vae import VAE, VAEConfig
from fv_jax.weights.formats import safetensors_file, torch_zip
from fv_jax.weights.layouts import diffusers_folder, key_table, official_dit, official_vae
from fv_jax.weights.layouts.key_table import KeyTable, Parameters, Tensors

Network = DiT | VAE
OUTER = {'dit': 'module', 'vae': 'state_dict'}  # the one key of an official file that holds the tensors


@dataclasses.dataclass(frozen=True)
class WeightsFile:
    """An opened file or folder.

    Attributes:
      config: of its network.
      notes: notes for the user, a line each.
    """

    name: str
    config: DiTConfig | VAEConfig
    table: KeyTable
    tensors: Tensors
    new: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def parameters(self) -> Parameters:
        """Returns all parameters, each of which is read when it is used."""
        return self._parameters(abstract_network(self.config))

    def _parameters(self, network: Network) -> Parameters:
        leaves = key_table.named_parameters(nnx.state(network))
        found = key_table.from_official(self.tensors, self.table, {name: leaf for name, (_, leaf) in leaves.items()})
        return found | (official_dit.init_parameters(self.config, self.new) if self.new else {})

    def network(self) -> Network:
        """Loads the network with all its parameters."""
        network = abstract_network(self.config)
        return key_table.build_module(network, self._parameters(network))

    def unused(self) -> dict[str, np.ndarray]:
        """Reads the official tensors that no computation reads, for a conversion back that restores them."""
        found = {k: x for k, x in self.tensors.items() if fnmatch.fnmatchcase(k, key_table.POSITION_TABLE)}
        return {key: np.array(tensor.numpy()) for key, tensor in found.items()}


def abstract_network(config: DiTConfig | VAEConfig) -> Network:
    """Builds the network of this config with ShapeDtypeStructs as parameters."""
    return abstract_module(functools.partial(DiT if isinstance(config, DiTConfig) else VAE, config))


def open_weights(
    path: str | StoragePath, *, param_dtype: DtypeName | None = 'float32', like: Mapping[str, Any] | None = None
) -> WeightsFile:
    """Opens an official file, one of ours in the official layout, or a diffusers folder, and checks every key.

    Args:
      path: the file or folder.
      param_dtype: of a DiT's parameters (not of LoRA's, nor of a VAE's, which are float32); None: that of most tensors.
      like: fields of the network that a diffusers transformer becomes, such as `embed_num_frames`: embeddings that no
        CogVideoX has are initialized. They are off by default.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a complete file, one with other objects than tensors, one of an unknown kind, or one whose tensors
        do not match the network (the message lists every unknown, missing and mismatched key).
    """
    path = weights_path(path)
    if path.is_dir():
        folder = diffusers_folder.open_folder(path, like=like or {}, param_dtype=param_dtype or 'float32')
        if param_dtype is None and isinstance(folder.config, DiTConfig):
            config = dataclasses.replace(folder.config, param_dtype=stored_dtype(folder.tensors))
            folder = dataclasses.replace(folder, config=config)
        source = WeightsFile(str(path), folder.config, folder.table, folder.tensors, folder.new, folder.notes)
    else:
        source = _official(path, param_dtype)
    key_table.check_keys(source.name, source.tensors, source.table)
    return source


def _official(path: StoragePath, param_dtype: DtypeName | None) -> WeightsFile:
    kind, tensors = _tensors(path)
    if kind == 'vae':
        config = official_vae.infer_config(tensors)
        return WeightsFile(str(path), config, KeyTable(official_vae.table(config)), tensors)
    return WeightsFile(
        str(path), *official_dit.infer_config_and_table(tensors, param_dtype or stored_dtype(tensors)), tensors
    )


def _tensors(path: StoragePath) -> tuple[str, Tensors]:
    """Opens the tensors of a file; returns them and their kind, 'dit' or 'vae'."""
    kinds = (('dit', official_dit.is_dit), ('vae', official_vae.is_vae))
    if path.suffix == '.safetensors':
        contents, _ = safetensors_file.read(path)
        found = [(kind, contents) for kind, is_kind in kinds if is_kind(contents)]
    else:
        contents = torch_zip.read(path)
        require(isinstance(contents, dict), f'{path}: holds a {type(contents).__name__}, not an official checkpoint')
        inner = [(kind, contents.get(OUTER[kind]), is_kind) for kind, is_kind in kinds]
        found = [(kind, tensors) for kind, tensors, is_kind in inner if isinstance(tensors, dict) and is_kind(tensors)]
    if not found:
        raise ValueError(
            f"{path}: neither a DiT ('module' with keys {official_dit.PREFIX}*) nor a VAE ('state_dict' with keys "
            f'encoder.* and decoder.*); it has {", ".join(map(repr, list(contents)[:5])) or "nothing"}'
        )
    return found[0]


def stored_dtype(tensors: Tensors) -> DtypeName:
    """Chooses bfloat16 if most values of a file are stored in it, else float32, which represents every other dtype."""
    sizes = {True: 0, False: 0}
    for tensor in tensors.values():
        sizes[tensor.dtype == jnp.bfloat16] += int(np.prod(tensor.shape))
    return 'bfloat16' if sizes[True] > sizes[False] else 'float32'


def write(
    path: StoragePath,
    values: Parameters,
    config: DiTConfig | VAEConfig,
    *,
    lora: Literal['keep', 'merge'] = 'keep',
    dtype: DtypeName | None = None,
    unused: Mapping[str, np.ndarray] | None = None,
) -> int:
    """Writes parameters in the official layout, as .pt or .safetensors by the path's suffix.

    Args:
      path: the file; `files.atomic_write` makes it atomic.
      values: read one at a time, so that the network is never in memory.
      config: of the network.
      lora: 'keep' stores it separately, as the official stage1.pt does; 'merge' merges it into the weights.
      dtype: of every tensor; None keeps each parameter's own.
      unused: `WeightsFile.unused` of the original file; None writes zeros.

    Returns:
      The number of tensors.

    Raises:
      ValueError: the parameters are not those of the network, or another suffix.
    """
    if isinstance(config, VAEConfig):
        kind, table, unused = 'vae', KeyTable(official_vae.table(config)), {}
    else:
        if lora == 'merge':
            values, config = official_dit.merge_lora_parameters(values, config)
        values, kind = official_dit.scale_lora_to_official(values, config), 'dit'
        table = official_dit.make_official_table(values, config)
        unused = unused or official_dit.position_table(config, values['final_norm.scale'].dtype)
    specs, tensors = key_table.to_official(values, table, dtype and jnp.dtype(dtype))
    unused = {key: np.asarray(x, dtype and jnp.dtype(dtype)) for key, x in unused.items()}
    specs |= {key: torch_zip.TensorSpec(x.shape, x.dtype) for key, x in unused.items()}

    def everything():
        yield from tensors
        yield from unused.items()

    if path.suffix == '.pt':
        torch_zip.write(path, OUTER[kind], specs, everything())
    elif path.suffix == '.safetensors':
        safetensors_file.write(path, {'layout': 'official'}, specs, everything())
    else:
        raise ValueError(f'{path}: must end in .pt or .safetensors')
    return len(specs)
