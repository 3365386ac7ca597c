"""The parameters that a run starts from (`config.init_from`): of another run, or of weights.

A run is a work directory or an exported folder; RUN/checkpoints/STEP is one of its steps. Its LoRA is merged where the
configuration has none; where only the configuration has LoRA, it is initialized.
"""

import dataclasses
from collections.abc import Callable

import jax
from flax import nnx

from fv_jax import weights
from fv_jax.checkpoints.errors import CheckpointError
from fv_jax.checkpoints.steps import FOLDER
from fv_jax.core import config as config_lib
from fv_jax.core.checks import error_context, require
from fv_jax.core.config import ConfigError
from fv_jax.core.hub import weights_path
from fv_jax.core.paths import StoragePath
from fv_jax.models.dit import DiTConfig
from fv_jax.parallel import arrays
from fv_jax.stages import registry
from fv_jax.training.run.setup import TrainConfig, TrainSetup
from fv_jax.training.state import ModelDef, Params, split_params
from fv_jax.weights import trained_runs
from fv_jax.weights.init_from import CHOICES, check_network, fit_network

ParamsPair = tuple[Params, Params]  # (trainable, frozen)


def load_init_params(setup: TrainSetup, name: str) -> ParamsPair:
    """Loads the parameters that `init_from` names; returns (trainable, frozen), sharded.

    Raises ConfigError where there are none, or they do not fit the network of the run.
    """
    errors = FileNotFoundError, ValueError, CheckpointError
    with error_context('config.init_from: ', errors, ConfigError):
        if not weights.is_weights(name):
            return _load_from_run(setup, name)
        with arrays.on_cpu_device():
            model = _load_network(setup.config, name)
            setup.stage.adapt_initial_params(model)
            params = split_params(setup.stage, model)
        return arrays.put_sharded(params, (setup.shardings.trainable, setup.shardings.frozen))


def _load_network(config: TrainConfig, name: str) -> nnx.Module:
    """Loads the network from the file or folder of weights that `init_from` names."""
    wanted = config.stage.network
    if isinstance(wanted, DiTConfig):
        path = trained_runs.embedded_stage([config.stage.kind]) if name == trained_runs.EMBEDDED else name
        return weights.init_dit_from_weights(path, wanted, jax.random.key(config.seed))
    network = weights.load_vae(name)
    check_network(name, network.config, wanted)
    return network


def _load_from_run(setup: TrainSetup, name: str) -> ParamsPair:
    """Loads parameters of another run, each device its own part of them."""
    folder, step = _split_step(weights_path(name))
    require(folder.exists(), f'{name}: does not exist; name a run, RUN/{FOLDER}/STEP, an exported folder or weights')
    meta, params_of = trained_runs.open_checkpoint(folder, step)
    stage_config = config_lib.build(registry.StageConfig, meta['config']['stage'], f'{name}: config.stage')
    wanted = setup.config.stage.network
    check_network(name, stage_config.network, wanted)
    choices = {name: getattr(wanted, name) for name in CHOICES if hasattr(wanted, name)}
    stage_config = dataclasses.replace(stage_config, network=dataclasses.replace(stage_config.network, **choices))
    stage = registry.build(stage_config)
    network = ModelDef.from_stage(stage)
    params = params_of(stage, network, setup.partitioner)
    fit = jax.jit(
        _fit_params(setup, network),
        donate_argnums=0,
        out_shardings=(setup.shardings.trainable, setup.shardings.frozen),
    )
    return fit(params, jax.random.key(setup.config.seed))


def _split_step(path: StoragePath) -> tuple[StoragePath, int | None]:
    """Splits RUN/checkpoints/STEP into (RUN, STEP); the step of a run alone is None, the newest."""
    if path.parent.name == FOLDER and path.name.isdigit():
        return path.parent.parent, int(path.name)
    return path, None


def _fit_params(setup: TrainSetup, network: ModelDef) -> Callable[[dict[str, Params], jax.Array], ParamsPair]:
    def fit(params: dict[str, Params], key: jax.Array) -> ParamsPair:
        model = network.model(**params)
        if isinstance(wanted := setup.config.stage.network, DiTConfig):
            model = fit_network(model, wanted, key)
        setup.stage.adapt_initial_params(model)
        return split_params(setup.stage, model)

    return fit
