"""Loads weights to start training from, adapted to the network of a configuration."""

import dataclasses

import jax
import numpy as np

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.core.paths import StoragePath
from fv_jax.models.dit import DiT, DiTConfig
from fv_jax.models.lora import LoRAConfig, Module, add_lora, merge_lora, rescale_lora
from fv_jax.stages.protocol import NetworkConfig
from fv_jax.weights import exported_network, reader
from fv_jax.weights.layouts import key_table, official_dit
from fv_jax.weights.layouts.key_table import Parameters
from fv_jax.weights.parameters import map_layers

# Fields of a network that do not decide whether parameters fit it.
CHOICES = ('dtype', 'param_dtype', 'remat', 'lora', 'local_attention_init')


def init_dit_from_weights(path: str | StoragePath, config: DiTConfig, key: jax.Array) -> DiT:
    """Makes the network of a configuration with the weights of a file.

    LoRA that only the file has is merged; LoRA that only the config has is initialized. If both have it, that of the
    file is continued.

    Args:
      path: an official file, anything else that `load_official` reads, or our own small file.
      config: of the network.
      key: for initializing LoRA.

    Raises:
      ConfigError: the network in the file has another size, or its LoRA another rank or other linears.
      FileNotFoundError, ValueError: as `load_official` does.
    """
    there, values = _read(path, config)
    check_network(path, there, config)
    if config.lora is None:
        values, _ = official_dit.merge_lora_parameters(values, there)
    elif there.lora is not None:
        values = _rescale_lora(values, config.lora.alpha / there.lora.alpha)
    fresh_lora = config.lora is not None and there.lora is None
    wanted = dataclasses.replace(config, lora=None) if fresh_lora else config
    network = key_table.build_module(reader.abstract_network(wanted), values)
    return add_lora(network, config.lora, key) if fresh_lora else network


def fit_lora(network: Module, config: LoRAConfig | None, key: jax.Array) -> Module:
    """Returns a network with the LoRA of `config`, as `init_dit_from_weights` does; it may be traced.

    Args:
      network: a DiT that `check_network` accepts.
      config: None for a network without LoRA.
      key: for a fresh LoRA.
    """
    if config is None:
        return merge_lora(network)
    return add_lora(network, config, key) if network.config.lora is None else rescale_lora(network, config.alpha)


def check_network(path: str | StoragePath, there: NetworkConfig, wanted: NetworkConfig) -> None:
    """Raises ConfigError unless the parameters of a network can be fitted to the one that is wanted.

    Args:
      path: where they are, for messages.
      there: the network that they are of.
      wanted: that of the run.
    """
    kinds = [type(config).__name__.removesuffix('Config') for config in (there, wanted)]
    require(kinds[0] == kinds[1], f'{path}: holds a {kinds[0]}, not a {kinds[1]}', ConfigError)
    names = [field.name for field in dataclasses.fields(wanted) if field.name not in CHOICES]
    pairs = [(name, getattr(wanted, name), getattr(there, name)) for name in names]
    different = [f'{name}={ours} here and {theirs} there' for name, ours, theirs in pairs if ours != theirs]
    require(not different, f'{path}: architecture mismatch: {"; ".join(different)}', ConfigError)
    if (lora := getattr(wanted, 'lora', None)) is not None and there.lora is not None:
        _check_lora(path, there.lora, lora)


def _read(path: str | StoragePath, wanted: DiTConfig) -> tuple[DiTConfig, Parameters]:
    """Reads the configuration and the parameters of the network in a file."""
    if exported_network.read_kind(path) is not None:
        there, values = exported_network.read_config(path), lambda: exported_network.read_parameters(path)
    else:
        like = dataclasses.asdict(wanted)
        source = reader.open_weights(path, param_dtype=wanted.param_dtype, like=like)
        there, values = source.config, source.parameters
    require(isinstance(there, DiTConfig), f'{path}: holds a VAE, not a DiT')
    return there, values()


def _check_lora(path: str | StoragePath, there: LoRAConfig, wanted: LoRAConfig) -> None:
    require(
        there.rank == wanted.rank and set(there.targets) == set(wanted.targets),
        f'lora.rank={wanted.rank}, lora.targets={wanted.targets}: {path} has rank {there.rank} on '
        f'{", ".join(there.targets)}; use these, or parameters in which LoRA is merged (--lora merge of `export` and '
        '`convert`)',
        ConfigError,
    )


def _rescale_lora(values: Parameters, ratio: float) -> Parameters:
    """Rescales LoRA for the alpha of the config. ratio: of that to the alpha of the file."""
    if ratio == 1:
        return values

    def rescale(b: np.ndarray) -> np.ndarray:
        return b / np.float32(ratio)

    return {name: map_layers(rescale, x) if name.endswith('.lora.b') else x for name, x in values.items()}
