"""Loads weights to start training from, adapted to the network of a configuration."""

import dataclasses

import jax
import numpy as np

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.core.paths import StoragePath
from fv_jax.models.dit import DiT, DiTConfig
from fv_jax.models.lora import LoRAConfig, Module, extend_network, merge_lora, rescale_lora
from fv_jax.stages.protocol import NetworkConfig
from fv_jax.weights import exported_network, reader
from fv_jax.weights.layouts import key_table, official_dit
from fv_jax.weights.layouts.key_table import Parameters
from fv_jax.weights.parameters import map_layers

# Fields of a network that do not decide whether parameters fit it, and those of parameters that can be added to it.
CHOICES = ('dtype', 'param_dtype', 'remat', 'local_attention_init')
ADDITIONS = ('lora', 'embed_interval')


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
    given = _given_part(there, config)
    if given.lora is None:
        values, _ = official_dit.merge_lora_parameters(values, there)
    else:
        values = _rescale_lora(values, config.lora.alpha / there.lora.alpha)
    network = key_table.build_module(reader.abstract_network(given), values)
    return network if given == config else extend_network(network, config, key)


def fit_network(network: Module, config: DiTConfig, key: jax.Array) -> Module:
    """Returns a network with the LoRA and the embeddings of `config`, as `init_dit_from_weights` does.

    It may be traced.

    Args:
      network: a DiT that `check_network` accepts, with the other fields of `config`.
      config: of the network that is wanted.
      key: for fresh parameters.
    """
    given = _given_part(network.config, config)
    network = merge_lora(network) if given.lora is None else rescale_lora(network, config.lora.alpha)
    return network if given == config else extend_network(network, config, key)


def _given_part(there: DiTConfig, config: DiTConfig) -> DiTConfig:
    """Returns the configuration of the part of a network whose parameters are there; the rest is initialized.

    LoRA of a network without the embedding of intervals is merged where this is added: it belongs to the teacher.
    """
    is_same = there.embed_interval == config.embed_interval
    lora = config.lora if there.lora is not None and is_same else None
    return dataclasses.replace(config, lora=lora, embed_interval=there.embed_interval)


def check_network(path: str | StoragePath, there: NetworkConfig, wanted: NetworkConfig) -> None:
    """Raises ConfigError unless the parameters of a network can be fitted to the one that is wanted.

    Args:
      path: where they are, for messages.
      there: the network that they are of.
      wanted: that of the run.
    """
    kinds = [type(config).__name__.removesuffix('Config') for config in (there, wanted)]
    require(kinds[0] == kinds[1], f'{path}: holds a {kinds[0]}, not a {kinds[1]}', ConfigError)
    names = [field.name for field in dataclasses.fields(wanted) if field.name not in (*CHOICES, *ADDITIONS)]
    pairs = [(name, getattr(wanted, name), getattr(there, name)) for name in names]
    different = [f'{name}={ours} here and {theirs} there' for name, ours, theirs in pairs if ours != theirs]
    require(not different, f'{path}: architecture mismatch: {"; ".join(different)}', ConfigError)
    if not isinstance(wanted, DiTConfig):
        return
    both = there.lora is not None and wanted.lora is not None
    require(
        not there.embed_interval or (wanted.embed_interval and both),
        f'{path}: holds a flow map, which can be continued only as one, with its LoRA: otherwise its teacher is lost; '
        'name what it was distilled from',
        ConfigError,
    )
    if both and there.embed_interval == wanted.embed_interval:
        _check_lora(path, there.lora, wanted.lora)


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
