"""Networks of a few thousand random numbers, and a checkpoint of them, for the tests."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from fv_jax import weights
from fv_jax.checkpoints.manager import Checkpoints
from fv_jax.core import config as config_lib
from fv_jax.core.abstract_module import abstract_module
from fv_jax.models.dit import DiTConfig
from fv_jax.models.vae import VAE, VAEConfig
from fv_jax.stages import registry
from fv_jax.stages.low_res import LowResConfig
from fv_jax.stages.super_res import SuperRes, SuperResConfig
from fv_jax.text.encoder import TextConfig
from fv_jax.training import state
from fv_jax.weights import exported_network
from fv_jax.weights.layouts import key_table

FRAMES = 9
PREVIEW = (16, 32)  # height and width of what the first stage makes
VAE_CONFIG = VAEConfig(base_channels=8, multipliers=(1, 1, 1, 1), num_res_blocks=1, latent_channels=4, groups=4)
DIT = DiTConfig(latent_channels=4, embed_dim=32, num_layers=1, num_heads=1, mlp_dim=32, cond_dim=8, text_dim=8)
TEXT = TextConfig('hash', length=3, dim=DIT.text_dim)
FIRST_DIT = dataclasses.replace(DIT, embed_num_frames=False, embed_noise_augmentation_timestep=False)
LOWRES = LowResConfig(text_length=3, guidance_kind='constant', guidance_scale=2.0, num_steps=3, scale_factor=1.0)
SUPERRES = SuperResConfig(noise_augmentation_timestep=100, text_length=3, num_steps=2)


@contextlib.contextmanager
def fast_compiling() -> Iterator[None]:
    """As tests/conftest.py has it by default."""
    before = jax.config.values['jax_disable_most_optimizations']
    jax.config.update('jax_disable_most_optimizations', True)
    try:
        yield
    finally:
        jax.config.update('jax_disable_most_optimizations', before)


def random(shapes: Any, scale: float) -> Any:
    """Numbers for a tree of shapes. They need no compiling, and heads, which start as zeros, get some too."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, scale, x.shape), x.dtype), shapes)


def vae() -> VAE:
    graphdef, shapes = nnx.split(abstract_module(functools.partial(VAE, VAE_CONFIG)))
    return nnx.merge(graphdef, random(shapes, 0.1))


def save_vae(path: Path) -> None:
    exported_network.write(path, key_table.module_parameters(nnx.state(vae())), VAE_CONFIG)


def stage_config(vae_path: Path | str, dit: DiTConfig = DIT) -> registry.StageConfig:
    return registry.StageConfig(kind='superres', network=dit, options=SUPERRES, vae=str(vae_path))


def first_stage_config(
    vae_path: Path | str, text: TextConfig = TEXT, dit: DiTConfig = FIRST_DIT
) -> registry.StageConfig:
    return registry.StageConfig(kind='lowres', network=dit, options=LOWRES, vae=str(vae_path), text=text)


def save_pipeline_and_vae(folder: Path) -> None:
    """Both stages and the VAE of their latents in one folder."""
    save_vae(folder / 'vae.safetensors')
    save_pipeline(folder, folder / 'vae.safetensors')


def save_pipeline(folder: Path, vae_path: Path | str, text: TextConfig = TEXT) -> None:
    """Both stages in one folder."""
    save_run(folder / 'stage1', first_stage_config(vae_path, text), size=PREVIEW)
    save_run(folder / 'stage2', dataclasses.replace(stage_config(vae_path), text=text))


def train_state(stage: SuperRes) -> state.TrainState:
    network = state.ModelDef.from_stage(stage)
    trainable, frozen = (random(nnx.to_pure_dict(part), 0.2) for part in (network.trainable, network.frozen))
    return state.train_state_from_params(trainable, frozen, optax.identity(), ema=False)


def config(stage: registry.StageConfig, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """As much of a run's configuration as a checkpoint's reader looks at."""
    sides = dict(zip(('height', 'width'), size, strict=True)) if size else {}
    return {'stage': config_lib.to_dict(stage), 'data': {'frames': FRAMES, **sides}}


def save_run(
    folder: Path,
    stage: registry.StageConfig,
    *,
    saved: registry.StageConfig | None = None,
    size: tuple[int, int] | None = None,
    digests: dict[str, str] | None = None,
) -> None:
    """A run with one checkpoint, of step 7. saved: what its configuration says, if not the truth. size: of its clips.
    digests: of its VAE and text encoder; None for the VAE's own.
    """
    arrays = state.to_items(train_state(registry.build(stage)))
    vae = weights.encoder_fingerprint(stage.vae) if weights.vae_path(stage.vae).exists() else '0' * 16
    Checkpoints(folder).save(7, arrays, config(saved or stage, size), {'vae': vae} if digests is None else digests)


def wider(stage: registry.StageConfig) -> registry.StageConfig:
    return dataclasses.replace(stage, network=dataclasses.replace(stage.network, mlp_dim=64))
