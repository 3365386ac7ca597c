"""The folder of an official release: both stages, the VAE and T5, checked before anything large is read."""

import dataclasses
from typing import Protocol

from fv_jax.core.checks import require
from fv_jax.core.paths import StoragePath
from fv_jax.models.dit import DiT, DiTConfig
from fv_jax.models.layers import DtypeName
from fv_jax.models.vae import VAEConfig
from fv_jax.parallel.rules import Partitioner
from fv_jax.stages import registry
from fv_jax.text.encoder import TextConfig
from fv_jax.weights import reader
from fv_jax.weights.layouts import key_table, official_dit, t5_folder
from fv_jax.weights.t5_text import SPIECE

T5_FOLDER = 't5-v1_1-xxl'
_OFFICIAL = [kind.stage for kind in registry.KINDS.values() if kind.stage.official is not None]
STAGES = [stage.official.file for stage in _OFFICIAL if stage.latents_of]
VAE_FILE = next(stage.official.file for stage in _OFFICIAL if not stage.latents_of)


class NetworkReader(Protocol):
    """Loads a network; `partitioner` as in `key_table.build_module`."""

    def __call__(self, partitioner: Partitioner | None = None) -> DiT: ...


@dataclasses.dataclass(frozen=True)
class OfficialRelease:
    """An official release, without parameters in memory.

    Attributes:
      configs: of the networks that `read` returns, by file; stage 1 with merged LoRA.
      read: loads the network of a file, placed by a partitioner (`key_table.build_module`).
      text: the T5 in the folder.
    """

    configs: dict[str, DiTConfig]
    read: dict[str, NetworkReader]
    vae: StoragePath
    vae_config: VAEConfig
    text: TextConfig


def open_release(folder: StoragePath, dtype: DtypeName, text: TextConfig | None) -> OfficialRelease:
    """Opens a release and checks that its files are complete and match each other.

    Args:
      folder: with stage1.pt, stage2.pt, 3d-vae.pt and t5-v1_1-xxl in it.
      dtype: of the DiTs' parameters and computation.
      text: an encoder to use instead of t5-v1_1-xxl, which may be absent then.

    Raises:
      FileNotFoundError: no such folder, or files are missing from it; the message names all of them.
      ValueError: a file is corrupted, is another one, or does not match the others.
    """
    wanted = [*STAGES, VAE_FILE]
    wanted += [] if text else [f'{T5_FOLDER}/{name}' for name in (t5_folder.CONFIG, SPIECE)]
    require(folder.is_dir(), f'{folder}: no such folder; it must contain {", ".join(wanted)}', FileNotFoundError)
    if missing := [name for name in wanted if not (folder / name).exists()]:
        raise FileNotFoundError(f'{folder}: has no {", ".join(missing)}')
    text = text or TextConfig(str(folder / T5_FOLDER), dtype=dtype)
    configs, read = {}, {}
    for name in STAGES:
        configs[name], read[name] = _open_network(folder / name, dtype)
    vae = reader.open_weights(folder / VAE_FILE).config
    if not isinstance(vae, VAEConfig):
        raise ValueError(f'{folder / VAE_FILE}: holds a DiT, not a VAE')
    for name, config in configs.items():
        if config.latent_channels != vae.latent_channels:
            raise ValueError(
                f'{folder / name}: takes latents of {config.latent_channels} channels, but those of {VAE_FILE} have '
                f'{vae.latent_channels}; use files of one release'
            )
    return OfficialRelease(configs, read, folder / VAE_FILE, vae, text)


def _open_network(path: StoragePath, dtype: DtypeName) -> tuple[DiTConfig, NetworkReader]:
    """Opens an official file: returns the config of its network with merged LoRA, and a function that loads it."""
    source = reader.open_weights(path, param_dtype=dtype)
    require(isinstance(source.config, DiTConfig), f'{path}: holds a VAE, not a DiT')
    files = [registry.KINDS[kind].stage.official.file for kind in registry.official_kinds(source.config)]
    require(path.name in files, f'{path}: contains the network of {" or ".join(files) or "no official stage"}')
    values, config = official_dit.merge_lora_parameters(
        source.parameters(), dataclasses.replace(source.config, dtype=dtype)
    )

    def read(partitioner: Partitioner | None = None) -> DiT:
        return key_table.build_module(reader.abstract_network(config), values, partitioner)

    return config, read
