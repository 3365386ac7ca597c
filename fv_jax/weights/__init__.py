"""Reads and writes weights: official files, diffusers folders and this package's own files, without torch."""

import functools
from collections.abc import Callable
from typing import Literal

from flax import nnx

from fv_jax.core import files, hub
from fv_jax.core.checks import require
from fv_jax.core.paths import StoragePath, as_path
from fv_jax.models.dit import DiT
from fv_jax.models.layers import DtypeName
from fv_jax.models.vae import VAE, VAEConfig
from fv_jax.weights import embedded, exported_network, reader
from fv_jax.weights.fingerprints import params_fingerprint
from fv_jax.weights.init_from import init_dit_from_weights
from fv_jax.weights.layouts import diffusers_folder, key_table
from fv_jax.weights.layouts.key_table import Parameters

__all__ = [
    'encoder_fingerprint',
    'init_dit_from_weights',
    'is_weights',
    'load_official',
    'load_vae',
    'open_vae',
    'save_official',
    'vae_config',
    'vae_fingerprint',
    'vae_path',
]


def load_official(path: str | StoragePath, param_dtype: DtypeName = 'float32') -> DiT | VAE:
    """Loads the network in an official file: a DiT from stage1.pt or stage2.pt, a VAE from 3d-vae.pt.

    The kind of network follows from the keys, every size from the shapes of tensors. Stage 1 has LoRA
    (`config.lora`; `models.lora.merge_lora` merges it); files in which LoRA is merged, also in some linears only, are
    read too. So are the same tensors in a .safetensors file, and a `transformer` or `vae` folder of a diffusers
    CogVideoX pipeline (`weights/layouts/diffusers_folder.py` lists what of it has no counterpart).

    Args:
      path: the file or folder.
      param_dtype: of a DiT's parameters. LoRA's, and a VAE's, are float32.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a complete torch file, one with other objects than tensors, one of an unknown kind, or one whose
        tensors do not match the network (the message lists every unknown, missing and mismatched key).
    """
    return reader.open_weights(path, param_dtype=param_dtype).network()


def save_official(
    path: str | StoragePath,
    network: DiT | VAE,
    *,
    lora: Literal['keep', 'merge'] = 'keep',
    dtype: DtypeName | None = None,
) -> None:
    """Saves a network in the official layout: .pt, which torch.load opens, or .safetensors, by the path's suffix.

    Args:
      path: the file, which is replaced atomically.
      network: a DiT or a VAE.
      lora: 'keep' stores it separately, as the official stage1.pt does; 'merge' merges it into the weights.
      dtype: of every tensor; None keeps each parameter's own.

    Raises:
      ValueError: another suffix.
      OSError: the file cannot be written.
    """
    with files.atomic_write(as_path(path)) as partial:
        reader.write(partial, key_table.module_parameters(nnx.state(network)), network.config, lora=lora, dtype=dtype)


def is_weights(name: str | StoragePath) -> bool:
    """Returns whether a name is that of weights, as opposed to a work directory.

    Weights are 'embedded', a .pt or .safetensors file, or a diffusers folder.
    """
    path = vae_path(str(name))
    if path.suffix in ('.pt', '.safetensors'):
        return True
    # The folders of a run and of an export have a config.json too.
    is_other = exported_network.is_folder(path) or (path / 'checkpoints').exists()
    return (path / diffusers_folder.CONFIG).is_file() and not is_other


def vae_path(name: str) -> StoragePath:
    """Returns the file of the VAE that a configuration names."""
    return embedded.VAE_TINY if name == 'embedded' else hub.weights_path(name)


def load_vae(name: str) -> VAE:
    """Loads the VAE that a configuration names.

    Args:
      name: 'embedded', the small one in the package; a .safetensors of ours; or anything that `load_official` reads.

    Raises:
      FileNotFoundError, ValueError: as `load_official`, and for a file that is not a VAE.
    """
    path = _existing_vae(name)
    network = exported_network.load(path) if exported_network.read_kind(path) else load_official(path)
    require(isinstance(network, VAE), f'{name}: holds a {type(network).__name__}, not a VAE')
    return network


def vae_config(name: str) -> VAEConfig:
    """Reads the configuration of the VAE that `load_vae` loads, without its parameters. Raises what `load_vae` does."""
    return open_vae(name)[0]


def vae_fingerprint(name: str) -> str:
    """Computes the fingerprint of the VAE that `load_vae` loads, 16 hexadecimal digits, one parameter at a time.

    Raises what `load_vae` does.
    """
    _, read = open_vae(name)
    return params_fingerprint(read())


def encoder_fingerprint(name: str) -> str:
    """Computes the fingerprint of the encoder of the VAE that `load_vae` loads, as `vae_fingerprint`.

    Latents depend on it alone: stages and stored latents name it, so that the decoder may be trained further under
    them. Raises what `load_vae` does.
    """
    _, read = open_vae(name)
    return params_fingerprint({path: value for path, value in read().items() if path.startswith('encoder.')})


def _existing_vae(name: str) -> StoragePath:
    path = vae_path(name)
    hint = 'name another VAE in config.stage.vae (prepare: config.latents.vae), such as embedded, the small one'
    require(path.exists(), f'{name}: does not exist; {hint}', FileNotFoundError)
    return path


def open_vae(name: str) -> tuple[VAEConfig, Callable[[], Parameters]]:
    """Opens the VAE that `load_vae` loads: its configuration, and a function that returns its parameters, lazily.

    Raises what `load_vae` does.
    """
    path = _existing_vae(name)
    if exported_network.read_kind(path):
        config, read = exported_network.read_config(path), functools.partial(exported_network.read_parameters, path)
    else:
        source = reader.open_weights(path)
        config, read = source.config, source.parameters
    require(isinstance(config, VAEConfig), f'{name}: holds a DiT, not a VAE')
    return config, read
