"""The Python front door: a trained run, ready to use."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax

from fv_jax import weights
from fv_jax.checkpoints.manager import Checkpoints
from fv_jax.core import config as config_lib
from fv_jax.core.config import ConfigError
from fv_jax.inference.jitted import JittedVAE, jit_vae
from fv_jax.stages import registry
from fv_jax.stages.base import Stage
from fv_jax.training.state import Network, Params


@dataclasses.dataclass(frozen=True)
class Run:
    """A checkpoint's stage with its parameters for sampling.

    config: the whole configuration, as a nested dict. params: for `network.model(**params)`. vae: the frozen one that
    the stage's latents come from; None where the stage has none. step: of the checkpoint.
    """

    config: dict[str, Any]
    stage: Stage
    network: Network
    params: Params
    vae: JittedVAE | None
    step: int


def frozen_vae(config: registry.StageConfig) -> JittedVAE | None:
    """The VAE whose latents the stage works on; None where it needs none.

    Raises ConfigError when its latents do not fit the stage's network, and what `weights.load_vae` raises.
    """
    if not registry.needs_vae(config):
        return None
    vae = weights.load_vae(config.vae)
    there, wanted = vae.config.latent_channels, config.dit.latent_channels
    if there != wanted:
        raise ConfigError(
            f'config.stage.vae={config.vae}: its latents have {there} channels, and config.stage.dit.latent_channels='
            f'{wanted}; set that to {there} or name another VAE'
        )
    return jit_vae(vae)


def open_run(folder: Path | str, step: int | None = None) -> Run:
    """The newest checkpoint of a work directory, or the one of `step`.

    Raises:
      CheckpointError: none there, or damaged.
      ConfigError, ValueError, FileNotFoundError: its configuration, or the VAE that it names, cannot be used.
    """
    checkpoints = Checkpoints(folder, read_only=True)
    meta = checkpoints.meta(step)
    stage_config = config_lib.build(registry.StageConfig, meta['config']['stage'], 'config.stage')
    vae = frozen_vae(stage_config)
    stage = registry.build(stage_config, encoder=vae.latents if vae else None)
    network = Network.of(stage)
    trainable, frozen = jax.eval_shape(functools.partial(network.init, stage), jax.random.key(0))
    abstract = {'params': {'trainable': trainable, 'frozen': frozen}}
    params = checkpoints.restore(abstract, meta['step'])['params']
    return Run(meta['config'], stage, network, params, vae, meta['step'])
