"""Whatever holds a network's weights, opened: what it is, and its parameters when they are asked for.

An official file (.pt), the same tensors as safetensors, or a CogVideoX folder of diffusers. Opening reads names and
shapes; it checks them all, so that nothing can be missing later.
"""

import dataclasses
import fnmatch
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx

from fv_jax.core.abstract_module import abstract_module
from fv_jax.core.checks import require
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

    config: of the network in it. notes: what a user should know of it, a line each.
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
    path: str | Path, *, param_dtype: DtypeName | None = 'float32', like: Mapping[str, Any] | None = None
) -> WeightsFile:
    """Opens an official file, one of ours in the official layout, or a diffusers folder, and checks every key.

    Args:
      path: the file or folder.
      param_dtype: of a DiT's parameters (not of LoRA's, nor of a VAE's, which are float32); None: as most are stored.
      like: fields of the network that a diffusers transformer becomes, as `embed_num_frames`: embeddings that no
        CogVideoX has start as a new network's. They are off where it says nothing.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a whole file, one that holds more than tensors, one of no known kind, or one whose tensors
        do not make a whole network (the message lists every unknown, missing and mismatched key).
    """
    path = Path(path)
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


def _official(path: Path, param_dtype: DtypeName | None) -> WeightsFile:
    kind, tensors = _tensors(path)
    if kind == 'vae':
        config = official_vae.infer_config(tensors)
        return WeightsFile(str(path), config, KeyTable(official_vae.table(config)), tensors)
    return WeightsFile(
        str(path), *official_dit.infer_config_and_table(tensors, param_dtype or stored_dtype(tensors)), tensors
    )


def _tensors(path: Path) -> tuple[str, Tensors]:
    """Reads a file's tensors, and tells whether they are of a 'dit' or a 'vae'."""
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
    path: Path,
    values: Parameters,
    config: DiTConfig | VAEConfig,
    *,
    lora: Literal['keep', 'merge'] = 'keep',
    dtype: DtypeName | None = None,
    unused: Mapping[str, np.ndarray] | None = None,
) -> int:
    """Writes parameters in the official layout, as .pt or .safetensors by the path's suffix; returns how many tensors.

    Args:
      path: the file; see `files.atomic_write` for writing it whole or not at all.
      values: parameter by parameter, so that the network never is in memory.
      config: of the network.
      lora: kept apart, as the official stage1.pt has it, or part of the weights.
      dtype: of everything; None keeps what each parameter has.
      unused: `WeightsFile.unused` of the file that the network once came from; None writes zeros.

    Raises:
      ValueError: parameters that are not this network's, or another suffix.
    """
    if isinstance(config, VAEConfig):
        kind, table, unused = 'vae', KeyTable(official_vae.table(config)), {}
    else:
        if lora == 'merge':
            values, config = official_dit.merge_lora_parameters(values, config)
        values, kind = official_dit.official_scale(values, config), 'dit'
        table = official_dit.official_table(values, config)
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
