"""The folder of an official release: both stages, the VAE and T5, looked at before anything large is read."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from fv_jax.core.checks import require
from fv_jax.models.dit import DiT, DiTConfig
from fv_jax.models.layers import DtypeName
from fv_jax.models.vae import VAEConfig
from fv_jax.stages import registry
from fv_jax.text.encoder import TextConfig
from fv_jax.weights import reader
from fv_jax.weights.layouts import key_table, official_dit, t5_folder
from fv_jax.weights.t5_text import SPIECE

T5_FOLDER = 't5-v1_1-xxl'
_OFFICIAL = [kind.stage for kind in registry.KINDS.values() if kind.stage.official is not None]
STAGES = [stage.official.file for stage in _OFFICIAL if stage.latents_of]
VAE_FILE = next(stage.official.file for stage in _OFFICIAL if not stage.latents_of)


@dataclasses.dataclass(frozen=True)
class OfficialRelease:
    """configs: of the networks that `read` gives, by file; stage 1 with its LoRA merged. text: the T5 in the folder."""

    configs: dict[str, DiTConfig]
    read: dict[str, Callable[[], DiT]]
    vae: Path
    vae_config: VAEConfig
    text: TextConfig


def open_release(folder: Path, dtype: DtypeName, text: TextConfig | None) -> OfficialRelease:
    """Checks that all is there and fits together.

    Args:
      folder: with stage1.pt, stage2.pt, 3d-vae.pt and t5-v1_1-xxl in it.
      dtype: what the DiTs keep their weights in and compute in.
      text: an encoder in place of t5-v1_1-xxl, which need not be there then.

    Raises:
      FileNotFoundError: no such folder, or something is missing from it; all that is missing is named.
      ValueError: a file is damaged, is another one, or does not fit the others.
    """
    wanted = [*STAGES, VAE_FILE]
    wanted += [] if text else [f'{T5_FOLDER}/{name}' for name in (t5_folder.CONFIG, SPIECE)]
    require(folder.is_dir(), f'{folder}: no such folder; it should hold {", ".join(wanted)}', FileNotFoundError)
    if missing := [name for name in wanted if not (folder / name).exists()]:
        raise FileNotFoundError(f'{folder}: has no {", ".join(missing)}')
    text = text or TextConfig(str(folder / T5_FOLDER), dtype=dtype)
    configs, read = {}, {}
    for name in STAGES:
        configs[name], read[name] = _opened(folder / name, dtype)
    vae = reader.open_weights(folder / VAE_FILE).config
    if not isinstance(vae, VAEConfig):
        raise ValueError(f'{folder / VAE_FILE}: holds a DiT, not a VAE')
    for name, config in configs.items():
        if config.latent_channels != vae.latent_channels:
            raise ValueError(
                f'{folder / name}: takes latents of {config.latent_channels} channels, and those of {VAE_FILE} have '
                f'{vae.latent_channels}; they do not belong together'
            )
    return OfficialRelease(configs, read, folder / VAE_FILE, vae, text)


def _opened(path: Path, dtype: DtypeName) -> tuple[DiTConfig, Callable[[], DiT]]:
    """The network in an official file, with its LoRA merged: its config, and what reads it."""
    source = reader.open_weights(path, param_dtype=dtype)
    require(isinstance(source.config, DiTConfig), f'{path}: holds a VAE, not a DiT')
    files = [registry.KINDS[kind].stage.official.file for kind in registry.official_kinds(source.config)]
    require(path.name in files, f'{path}: holds the network of {" or ".join(files) or "no official stage"}')
    values, config = official_dit.merge_lora_parameters(
        source.parameters(), dataclasses.replace(source.config, dtype=dtype)
    )
    return config, lambda: key_table.build_module(reader.abstract_network(config), values)
