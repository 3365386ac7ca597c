"""Networks of a few thousand random numbers, and a checkpoint of them, for the tests."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from fv_jax.checkpoints.manager import Checkpoints
from fv_jax.core import config as config_lib
from fv_jax.models.dit import DiTConfig
from fv_jax.models.vae import VAE, VAEConfig
from fv_jax.stages import registry
from fv_jax.stages.superres import SuperRes, SuperResConfig
from fv_jax.training import state
from fv_jax.weights import compact

FRAMES = 9
VAE_CONFIG = VAEConfig(base_channels=8, multipliers=(1, 1, 1, 1), num_res_blocks=1, latent_channels=4, groups=4)
DIT = DiTConfig(latent_channels=4, embed_dim=32, num_layers=1, num_heads=1, mlp_dim=32, cond_dim=8, text_dim=8)
SUPERRES = SuperResConfig(source_timestep=100, text_length=3, num_steps=2)


@contextlib.contextmanager
def fast_compiling() -> Iterator[None]:
    """Half the compile time; what runs slower is too small to show it."""
    jax.config.update('jax_disable_most_optimizations', True)
    try:
        yield
    finally:
        jax.config.update('jax_disable_most_optimizations', False)


def random(shapes: Any, scale: float) -> Any:
    """Numbers for a tree of shapes. They need no compiling, and heads, which start as zeros, get some too."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, scale, x.shape), x.dtype), shapes)


def vae() -> VAE:
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: VAE(VAE_CONFIG, rngs=nnx.Rngs(0))))
    return nnx.merge(graphdef, random(shapes, 0.1))


def save_vae(path: Path) -> None:
    compact.save_vae(path, nnx.to_pure_dict(nnx.split(vae())[1]), VAE_CONFIG)


def stage_config(vae_path: Path | str, dit: DiTConfig = DIT) -> registry.StageConfig:
    return registry.StageConfig(kind='superres', dit=dit, superres=SUPERRES, vae=str(vae_path))


def train_state(stage: SuperRes) -> state.TrainState:
    network = state.Network.of(stage)
    trainable, frozen = (random(nnx.to_pure_dict(part), 0.2) for part in (network.trainable, network.frozen))
    return state.state_of(trainable, frozen, optax.identity(), ema=False)


def config(stage: registry.StageConfig) -> dict[str, Any]:
    """As much of a run's configuration as a checkpoint's reader looks at."""
    return {'stage': config_lib.to_dict(stage), 'data': {'frames': FRAMES}}


def save_run(folder: Path, stage: registry.StageConfig, *, saved: registry.StageConfig | None = None) -> None:
    """A run with one checkpoint, of step 7. saved: what its configuration says, if not the truth."""
    arrays = state.to_items(train_state(registry.build(stage)))
    Checkpoints(folder).save(7, arrays, config(saved or stage))


def wider(stage: registry.StageConfig) -> registry.StageConfig:
    return dataclasses.replace(stage, dit=dataclasses.replace(stage.dit, mlp_dim=64))
