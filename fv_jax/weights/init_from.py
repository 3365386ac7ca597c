"""Weights to start training from, fitted to the network that a configuration asks for."""

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

# What a file does not decide.
_CHOICES = ('dtype', 'param_dtype', 'remat', 'lora', 'local_attention_init')


def init_dit_from_weights(path: str | Path, config: DiTConfig, key: jax.Array) -> DiT:
    """The network of `config` with the weights of an official file, of all else that `load_official` reads, or of our
    own small file.

    LoRA that the file has and the config has not is merged; LoRA that only the config has starts fresh. Where both have
    it, the file's goes on.

    Args:
      path: the file or folder.
      config: of the wanted network.
      key: for a fresh LoRA.

    Raises:
      ConfigError: the network in the file is of another size, or its LoRA of another rank or on other linears.
      FileNotFoundError, ValueError: as `load_official` does.
    """
    there, values = _read(path, config)
    _check_sizes(path, there, config)
    if config.lora is None:
        values, _ = official_dit.merge_lora_parameters(values, there)
    elif there.lora is not None:
        _check_lora(path, there.lora, config.lora)
        values = _rescaled(values, config.lora)
    fresh_lora = config.lora is not None and there.lora is None
    wanted = dataclasses.replace(config, lora=None) if fresh_lora else config
    network = key_table.build_module(reader.abstract_network(wanted), values)
    return add_lora(network, config.lora, key) if fresh_lora else network


def _read(path: str | Path, wanted: DiTConfig) -> tuple[DiTConfig, Parameters]:
    """The configuration and the parameters of the network there."""
    if single_file.kind_of(path) is not None:
        there, values = single_file.config_of(path), lambda: single_file.parameters(path)
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
    require(not different, f'{path}: holds another network: {"; ".join(different)}', ConfigError)


def _check_lora(path: str | Path, there: LoRAConfig, wanted: LoRAConfig) -> None:
    require(
        there.rank == wanted.rank and set(there.targets) == set(wanted.targets),
        f'lora.rank={wanted.rank}, lora.targets={wanted.targets}: {path} has rank {there.rank} on '
        f'{", ".join(there.targets)}; take these, or a file in which LoRA is merged (fv_jax.convert --lora merge)',
        ConfigError,
    )


def _rescaled(values: Parameters, lora: LoRAConfig) -> Parameters:
    """The file's scale is 1 / rank, ours alpha / rank."""
    if lora.alpha == 1:
        return values

    def scaled(parameter: key_table.Parameter) -> key_table.Parameter:
        return dataclasses.replace(parameter, numpy=lambda: parameter.numpy() / np.float32(lora.alpha))

    return {name: scaled(x) if name.endswith('.lora.b') else x for name, x in values.items()}
