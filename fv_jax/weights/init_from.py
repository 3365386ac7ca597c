"""Loads weights to start training from, adapted to the network of a configuration."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.models.dit import DiT, DiTConfig
from fv_jax.models.lora import LoRAConfig, add_lora
from fv_jax.weights import reader, single_file
from fv_jax.weights.layouts import key_table, official_dit
from fv_jax.weights.layouts.key_table import Parameters

# Fields that a file does not determine.
_CHOICES = ('dtype', 'param_dtype', 'remat', 'lora', 'local_attention_init')


def init_dit_from_weights(path: str | Path, config: DiTConfig, key: jax.Array) -> DiT:
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
    _check_sizes(path, there, config)
    if config.lora is None:
        values, _ = official_dit.merge_lora_parameters(values, there)
    elif there.lora is not None:
        _check_lora(path, there.lora, config.lora)
        values = _rescale_lora(values, config.lora)
    fresh_lora = config.lora is not None and there.lora is None
    wanted = dataclasses.replace(config, lora=None) if fresh_lora else config
    network = key_table.build_module(reader.abstract_network(wanted), values)
    return add_lora(network, config.lora, key) if fresh_lora else network


def _read(path: str | Path, wanted: DiTConfig) -> tuple[DiTConfig, Parameters]:
    """Reads the configuration and the parameters of the network in a file."""
    if single_file.read_kind(path) is not None:
        there, values = single_file.read_config(path), lambda: single_file.read_parameters(path)
    else:
        like = dataclasses.asdict(wanted)
        source = reader.open_weights(path, param_dtype=wanted.param_dtype, like=like)
        there, values = source.config, source.parameters
    require(isinstance(there, DiTConfig), f'{path}: holds a VAE, not a DiT')
    return there, values()


def _check_sizes(path: str | Path, there: DiTConfig, wanted: DiTConfig) -> None:
    names = [field.name for field in dataclasses.fields(DiTConfig) if field.name not in _CHOICES]
    pairs = [(name, getattr(wanted, name), getattr(there, name)) for name in names]
    different = [f'{name}={ours} here and {theirs} there' for name, ours, theirs in pairs if ours != theirs]
    require(not different, f'{path}: architecture mismatch: {"; ".join(different)}', ConfigError)


def _check_lora(path: str | Path, there: LoRAConfig, wanted: LoRAConfig) -> None:
    require(
        there.rank == wanted.rank and set(there.targets) == set(wanted.targets),
        f'lora.rank={wanted.rank}, lora.targets={wanted.targets}: {path} has rank {there.rank} on '
        f'{", ".join(there.targets)}; use these, or a file in which LoRA is merged (fv_jax.convert --lora merge)',
        ConfigError,
    )


def _rescale_lora(values: Parameters, lora: LoRAConfig) -> Parameters:
    """Rescales LoRA from the scale of the file, 1 / rank, to ours, alpha / rank."""
    if lora.alpha == 1:
        return values

    def rescale(parameter: key_table.Parameter) -> key_table.Parameter:
        return dataclasses.replace(parameter, numpy=lambda: parameter.numpy() / np.float32(lora.alpha))

    return {name: rescale(x) if name.endswith('.lora.b') else x for name, x in values.items()}
