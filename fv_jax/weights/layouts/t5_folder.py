"""Maps a Hugging Face T5 v1.1 folder to our T5, and back (model guide 6).

A folder has config.json and the tensors: model.safetensors, or several files and model.safetensors.index.json, which
lists the tensors of each. The embedding is shared.weight; encoder.embed_tokens.weight is the same tensor and may be
present too, or instead. A decoder and its head are ignored. Linears are (out, in).
"""

import dataclasses
import functools
import itertools
import json
import re
from typing import Any

import numpy as np
from flax import nnx

from fv_jax.core.abstract_module import abstract_module
from fv_jax.core.checks import error_context, require
from fv_jax.core.config import ConfigError
from fv_jax.core.files import atomic_write, parse_json
from fv_jax.core.paths import StoragePath, as_path
from fv_jax.models.layers import DtypeName
from fv_jax.models.t5 import T5, T5Config
from fv_jax.weights.formats import safetensors_file
from fv_jax.weights.formats.memory_map import StoredTensor
from fv_jax.weights.layouts import key_table
from fv_jax.weights.layouts.key_table import KeyTable, TensorMapping, TensorTransform, linear, vector

CONFIG = 'config.json'
SINGLE = 'model.safetensors'
INDEX = f'{SINGLE}.index.json'
SHARED, TIED = 'shared.weight', 'encoder.embed_tokens.weight'
UNUSED = ('decoder.', 'lm_head.')
SHARD_BYTES = 5 * 10**9

# Hugging Face's names of our sizes. Old files lack the last three, which are our defaults then.
_FIELDS = {
    'vocab_size': 'vocab_size',
    'd_model': 'embed_dim',
    'num_layers': 'num_layers',
    'num_heads': 'num_heads',
    'd_kv': 'head_dim',
    'd_ff': 'mlp_dim',
    'relative_attention_num_buckets': 'num_buckets',
    'relative_attention_max_distance': 'max_distance',
    'layer_norm_epsilon': 'norm_eps',
}
_OPTIONAL = ('num_buckets', 'max_distance', 'norm_eps')
_GATED_GELU = 'gated-gelu'  # of v1.1; T5 1.0 has ReLU
_FILE = re.compile(r'model(-\d{5}-of-\d{5})?\.safetensors')


def load(folder: str | StoragePath, *, dtype: DtypeName = 'float32', param_dtype: DtypeName = 'float32') -> T5:
    """Loads the encoder in a folder.

    The parameters are in memory once, the largest of them twice.

    Args:
      folder: of a T5 v1.1.
      dtype: of the computation.
      param_dtype: of the parameters.

    Raises:
      FileNotFoundError: no such folder, or a file of it is missing.
      ValueError: not a T5 v1.1, or its tensors do not match config.json; the message lists every unknown,
        missing and mismatched key.
    """
    folder = as_path(folder)
    config = dataclasses.replace(read_config(folder), dtype=dtype, param_dtype=param_dtype)
    tensors, rows = read_tensors(folder), table(config)
    key_table.check_keys(str(folder), tensors, rows)

    shapes = abstract_module(functools.partial(T5, config))
    specs = {name: leaf for name, (_, leaf) in key_table.named_parameters(nnx.state(shapes)).items()}
    return key_table.build_module(shapes, key_table.from_official(tensors, rows, specs))


def save(folder: str | StoragePath, model: T5, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes config.json and the tensors, in the dtype of the parameters, as `load` and Hugging Face read them.

    Args:
      folder: created if it does not exist; an encoder in it is replaced. The tokenizer is not written.
      model: the encoder.
      shard_bytes: tensors of more bytes in total are split into several files of at most so many bytes.

    Raises:
      OSError: the files cannot be written.
    """
    folder = as_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    specs, tensors = key_table.to_official(key_table.module_parameters(nnx.state(model)), table(model.config))
    sizes = {key: spec.size * spec.dtype.itemsize for key, spec in specs.items()}
    shards = _shards(sizes, shard_bytes)
    names = [f'model-{i + 1:05d}-of-{len(shards):05d}.safetensors' for i in range(len(shards))]
    names = names if len(shards) > 1 else [SINGLE]
    for name, keys in zip(names, shards, strict=True):
        part = {key: specs[key] for key in keys}
        with atomic_write(folder / name) as partial:
            # Hugging Face's loaders require 'pt'. The tensors are in the order of `specs`.
            safetensors_file.write(partial, {'format': 'pt'}, part, itertools.islice(tensors, len(keys)))
    for path in folder.iterdir():
        if _FILE.fullmatch(path.name) and path.name not in names:
            path.unlink()
    (folder / INDEX).unlink(missing_ok=True)
    if len(shards) > 1:
        weight_map = {key: name for name, keys in zip(names, shards, strict=True) for key in keys}
        index = {'metadata': {'total_size': sum(sizes.values())}, 'weight_map': weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + '\n')
    (folder / CONFIG).write_text(json.dumps(_hf_config(model.config), indent=2) + '\n')


def read_config(folder: str | StoragePath) -> T5Config:
    """Reads the sizes in a folder's config.json. Raises FileNotFoundError, or ValueError for another network."""
    path = as_path(folder) / CONFIG
    values = _read_json(path)
    activation = values.get('feed_forward_proj')
    require(
        values.get('model_type') == 't5' and activation == _GATED_GELU,
        f'{path}: not a T5 v1.1: model_type is {values.get("model_type")!r} and feed_forward_proj {activation!r}, '
        f"must be 't5' and {_GATED_GELU!r}",
    )
    missing = [key for key, ours in _FIELDS.items() if key not in values and ours not in _OPTIONAL]
    require(not missing, f'{path}: has no {", ".join(missing)}')
    with error_context(f'{path}: ', (ConfigError, TypeError)):
        return T5Config(**{ours: values[key] for key, ours in _FIELDS.items() if key in values})


def read_tensors(folder: str | StoragePath) -> dict[str, StoredTensor]:
    """Opens the encoder's tensors in a folder, of one or several files.

    Returns:
      Tensors by key; the embedding is always `shared.weight`.

    Raises:
      FileNotFoundError, ValueError: as `safetensors_file.read_folder`; or the tied embeddings differ.
    """
    tensors = safetensors_file.read_folder(as_path(folder))
    tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(UNUSED)}
    if TIED not in tensors:
        return tensors
    tied = tensors.pop(TIED)
    if SHARED in tensors and not np.array_equal(tied.numpy(), tensors[SHARED].numpy()):
        raise ValueError(f'{folder}: {TIED} and {SHARED} must be equal, as they are one tensor of a T5')
    return {SHARED: tied} | tensors


def table(config: T5Config) -> KeyTable:
    """Maps every parameter of a T5 of this `config` to the tensor it is made of."""
    dim, inner, heads = config.embed_dim, config.mlp_dim, config.num_heads * config.head_dim
    layer = 'encoder.block.{i}.layer.'
    attention, mlp = f'{layer}0.SelfAttention', f'{layer}1.DenseReluDense'

    def row(path: str, key: str, *shape: int, transform: TensorTransform = linear) -> TensorMapping:
        return TensorMapping(path, ((f'{key}.weight', shape),), transform)

    rows = [
        row('embedding', 'shared', config.vocab_size, dim, transform=vector),
        row(
            'relative_bias',
            'encoder.block.0.layer.0.SelfAttention.relative_attention_bias',
            *(config.num_buckets, config.num_heads),
            transform=vector,
        ),
        row('blocks.attention_norm.scale', f'{layer}0.layer_norm', dim, transform=vector),
        *(row(f'blocks.{name}.kernel', f'{attention}.{name}', heads, dim) for name in 'qkv'),
        row('blocks.attention_out.kernel', f'{attention}.o', dim, heads),
        row('blocks.mlp_norm.scale', f'{layer}1.layer_norm', dim, transform=vector),
        row('blocks.gate.kernel', f'{mlp}.wi_0', inner, dim),
        row('blocks.hidden.kernel', f'{mlp}.wi_1', inner, dim),
        row('blocks.mlp_out.kernel', f'{mlp}.wo', dim, inner),
        row('final_norm.scale', 'encoder.final_layer_norm', dim, transform=vector),
    ]
    return KeyTable(rows, config.num_layers)


def _read_json(path: StoragePath) -> dict[str, Any]:
    with error_context(f'{path}: not JSON: '):
        values = parse_json(path.read_text(encoding='utf-8'))
    require(isinstance(values, dict), f'{path}: expected a map, got {type(values).__name__}')
    return values


def _hf_config(config: T5Config) -> dict[str, Any]:
    fixed = {
        'architectures': ['T5EncoderModel'],
        'model_type': 't5',
        'feed_forward_proj': _GATED_GELU,
        'dtype': config.param_dtype,
        'pad_token_id': 0,
        'eos_token_id': 1,
    }
    return fixed | {key: getattr(config, ours) for key, ours in _FIELDS.items()}


def _shards(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Groups keys in order, in as few groups of at most `limit` bytes as possible.

    A larger tensor has its own group.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for key, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(key)
        filled += size
    return shards
