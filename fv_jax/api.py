"""The Python front door: a trained run, ready to use."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax

from fv_jax import weights
from fv_jax.checkpoints.manager import Checkpoints
from fv_jax.core import config as config_lib
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


def open_run(folder: Path | str, step: int | None = None) -> Run:
    """The newest checkpoint of a work directory, or the one of `step`.

    Raises:
      CheckpointError: none there, or damaged.
      ConfigError, ValueError, FileNotFoundError: its configuration, or the VAE that it names, cannot be used.
    """
    checkpoints = Checkpoints(folder, read_only=True)
    meta = checkpoints.meta(step)
    stage_config = config_lib.build(registry.StageConfig, meta['config']['stage'], 'config.stage')
    vae = jit_vae(weights.load_vae(stage_config.vae)) if registry.needs_vae(stage_config) else None
    stage = registry.build(stage_config, encoder=vae.latents if vae else None)
    network = Network.of(stage)
    trainable, frozen = jax.eval_shape(functools.partial(network.init, stage), jax.random.key(0))
    abstract = {'params': {'trainable': trainable, 'frozen': frozen}}
    params = checkpoints.restore(abstract, meta['step'])['params']
    return Run(meta['config'], stage, network, params, vae, meta['step'])
