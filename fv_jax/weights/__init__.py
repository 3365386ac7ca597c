"""Reads and writes weights: official files, diffusers folders and this package's own files, without torch."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from flax import nnx

from fv_jax.core import files
from fv_jax.core.checks import require
from fv_jax.models.dit import DiT
from fv_jax.models.layers import DtypeName
from fv_jax.models.vae import VAE, VAEConfig
from fv_jax.weights import embedded, reader, single_file
from fv_jax.weights.fingerprints import params_fingerprint
from fv_jax.weights.init_from import init_dit_from_weights
from fv_jax.weights.layouts import diffusers_folder, key_table
from fv_jax.weights.layouts.key_table import Parameters

__all__ = [
    'init_dit_from_weights',
    'is_weights',
    'load_official',
    'load_vae',
    'save_official',
    'vae_config',
    'vae_fingerprint',
    'vae_path',
]


def load_official(path: str | Path, param_dtype: DtypeName = 'float32') -> DiT | VAE:
    """Loads the network in an official file: a DiT from stage1.pt or stage2.pt, a VAE from 3d-vae.pt.

    What the file holds is told from its keys, every size from its tensors' shapes. Stage 1 comes with its LoRA in
    effect (`config.lora` is set; `models.lora.merge_lora` makes it part of the weights); a file in which it is merged,
    or merged in some linears, is as good. So are the same tensors in a .safetensors file, and a `transformer` or `vae`
    folder of a diffusers CogVideoX pipeline (`weights/layouts/diffusers_folder.py` says what of it has no counterpart).

    Args:
      path: the file or folder.
      param_dtype: of a DiT's parameters. LoRA's, and a VAE's, are float32.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a whole torch file, one that holds more than tensors, one of no known kind, or one whose tensors
        do not make a whole network (the message lists every unknown, missing and mismatched key).
    """
    return reader.open_weights(path, param_dtype=param_dtype).network()


def save_official(
    path: str | Path,
    network: DiT | VAE,
    *,
    lora: Literal['keep', 'merge'] = 'keep',
    dtype: DtypeName | None = None,
) -> None:
    """Saves a network in the official layout: .pt, which torch.load opens, or .safetensors, by the path's suffix.

    Args:
      path: the file; it appears when it is whole, and takes the place of one that is there.
      network: what `load_official` gives.
      lora: kept apart, as the official stage1.pt has it, or merged.
      dtype: of every tensor; None keeps what each parameter has.

    Raises ValueError for another suffix, OSError where it cannot be written.
    """
    with files.atomic_write(Path(path)) as partial:
        reader.write(partial, key_table.module_parameters(nnx.state(network)), network.config, lora=lora, dtype=dtype)


def is_weights(name: str | Path) -> bool:
    """Tells by its form whether a name is that of weights, not of a work directory: 'embedded', a .pt or .safetensors
    file, or a diffusers folder.
    """
    path = vae_path(str(name))
    if path.suffix in ('.pt', '.safetensors'):
        return True
    # A run's folder has a config.json too.
    return (path / diffusers_folder.CONFIG).is_file() and not (path / 'checkpoints').exists()


def vae_path(name: str) -> Path:
    """Returns the file of the VAE that a configuration names."""
    return embedded.VAE_TINY if name == 'embedded' else Path(name)


def load_vae(name: str) -> VAE:
    """The VAE that a configuration names: 'embedded', the small one in the package; a .safetensors of ours; or anything
    else that `load_official` reads a VAE from.

    Raises FileNotFoundError or ValueError as `load_official` does, and when the file holds something else.
    """
    path = _existing_vae(name)
    network = single_file.load(path) if single_file.kind_of(path) else load_official(path)
    require(isinstance(network, VAE), f'{name}: holds a {type(network).__name__}, not a VAE')
    return network


def vae_config(name: str) -> VAEConfig:
    """The sizes of the VAE that `load_vae` gives; its parameters are not read. Raises what `load_vae` does."""
    return _open_vae(name)[0]


def vae_fingerprint(name: str) -> str:
    """Computes the fingerprint of the VAE that `load_vae` loads, 16 hexadecimal digits, one parameter at a time.

    Raises what `load_vae` does.
    """
    _, read = _open_vae(name)
    return params_fingerprint(read())


def _existing_vae(name: str) -> Path:
    path = vae_path(name)
    hint = 'name another VAE in config.stage.vae (prepare: config.latents.vae), such as embedded, the small one'
    require(path.exists(), f'{name}: does not exist; {hint}', FileNotFoundError)
    return path


def _open_vae(name: str) -> tuple[VAEConfig, Callable[[], Parameters]]:
    path = _existing_vae(name)
    if single_file.kind_of(path):
        config, read = single_file.config_of(path), functools.partial(single_file.parameters, path)
    else:
        source = reader.open_weights(path)
        config, read = source.config, source.parameters
    require(isinstance(config, VAEConfig), f'{name}: holds a DiT, not a VAE')
    return config, read
