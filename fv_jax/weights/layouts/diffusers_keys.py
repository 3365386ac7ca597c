"""The names of diffusers' CogVideoX classes: which tensors of theirs make which of our parameters.

The tensors are the official ones under other names: the mappings of `official_dit` and `official_vae`, renamed. Two are
packed differently: q | k | v are three tensors, and the twelve modulations are two, of attention (norm1) and of the
MLP (norm2), each with the video's three before the text's.
"""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from fv_jax.models.dit import DiTConfig
from fv_jax.models.vae import VAEConfig
from fv_jax.weights.layouts import official_dit, official_vae
from fv_jax.weights.layouts.key_table import KeyTable, Shape, TensorMapping, TensorTransform

BLOCK = 'transformer_blocks.{i}.'
MODULATION_PIECES, MODULATION_ORDER = (2, 2), (0, 2, 1, 3)  # of norm1 and norm2: ours are video's two, then the text's

_DIT_NAMES = (
    (f'{official_dit.MIXINS}patch_embed.', 'patch_embed.'),
    (f'{official_dit.PREFIX}time_embed.0.', 'time_embedding.linear_1.'),
    (f'{official_dit.PREFIX}time_embed.2.', 'time_embedding.linear_2.'),
    (f'{official_dit.Q_NORM}.', f'{BLOCK}attn1.norm_q.'),
    (f'{official_dit.K_NORM}.', f'{BLOCK}attn1.norm_k.'),
    (f'{official_dit.LAYER}input_layernorm.', f'{BLOCK}norm1.norm.'),
    (f'{official_dit.LAYER}post_attention_layernorm.', f'{BLOCK}norm2.norm.'),
    (f'{official_dit.LAYER}attention.dense.', f'{BLOCK}attn1.to_out.0.'),
    (f'{official_dit.LAYER}mlp.dense_h_to_4h.', f'{BLOCK}ff.net.0.proj.'),
    (f'{official_dit.LAYER}mlp.dense_4h_to_h.', f'{BLOCK}ff.net.2.'),
    (f'{official_dit.PREFIX}transformer.final_layernorm.', 'norm_final.'),
    (f'{official_dit.MIXINS}final_layer.norm_final.', 'norm_out.norm.'),
    (f'{official_dit.MIXINS}final_layer.adaLN_modulation.1.', 'norm_out.linear.'),
    (f'{official_dit.MIXINS}final_layer.linear.', 'proj_out.'),
)
_QKV = f'{official_dit.LAYER}attention.query_key_value.'
_MODULATIONS = f'{official_dit.MODULATIONS}.'


def transformer_table(
    config: DiTConfig, without: tuple[str, ...] = (), factors: Mapping[str, float] | None = None
) -> KeyTable:
    """Maps the parameters of a DiT without LoRA to the tensors of a `CogVideoXTransformer3DModel`.

    Args:
      config: of the network.
      without: the first names of parameters that the class does not have.
      factors: module -> what its tensors are multiplied by in the folder; 'final_norm' is both of its tensors.
    """
    rows = [_rename(row) for row in official_dit.table(config) if row.path.split('.')[0] not in without]
    for module, factor in (factors or {}).items():
        rows = [_multiply(row, factor) if row.path.rpartition('.')[0] == module else row for row in rows]
    return KeyTable(rows, config.num_layers)


def _multiply(row: TensorMapping, factor: float) -> TensorMapping:
    before = row.transform

    def to_ours(*tensors: np.ndarray) -> np.ndarray:
        return before.to_ours(*(x / x.dtype.type(factor) for x in tensors))

    def to_official(parameter: np.ndarray, shapes: tuple[Shape, ...]) -> tuple[np.ndarray, ...]:
        return tuple(x * x.dtype.type(factor) for x in before.to_official(parameter, shapes))

    return dataclasses.replace(row, transform=TensorTransform(to_ours, to_official))


def vae_table(config: VAEConfig) -> KeyTable:
    """Maps the parameters of a VAE to the tensors of an `AutoencoderKLCogVideoX`."""
    levels = len(config.widths)
    return KeyTable([dataclasses.replace(row, official=_vae_names(row, levels)) for row in official_vae.table(config)])


def _rename(row: TensorMapping) -> TensorMapping:
    """Renames the official DiT tensors of a mapping to diffusers' names."""
    ((key, shape),) = row.official
    kind = key.rpartition('.')[2]
    if key.startswith(_QKV):
        part = (shape[0] // 3, *shape[1:])
        keys = [f'{BLOCK}attn1.to_{name}.{kind}' for name in 'qkv']
        return TensorMapping(
            row.path, tuple((key, part) for key in keys), _join_transform(row.transform, shape, (1, 1, 1), (0, 1, 2))
        )
    if key.startswith(_MODULATIONS):
        half = (shape[0] // 2, *shape[1:])
        keys = [f'{BLOCK}norm{i}.linear.{kind}' for i in (1, 2)]
        # Halves of each: video's three of attention, video's of the MLP, then the text's.
        return TensorMapping(
            row.path,
            tuple((key, half) for key in keys),
            _join_transform(row.transform, shape, MODULATION_PIECES, MODULATION_ORDER),
        )
    (renamed,) = [new + key.removeprefix(old) for old, new in _DIT_NAMES if key.startswith(old)]
    return dataclasses.replace(row, official=((renamed, shape),))


def _join_transform(
    transform: TensorTransform, shape: Shape, pieces: tuple[int, ...], order: tuple[int, ...]
) -> TensorTransform:
    """Extends the transform of a tensor of `shape` to the several tensors that diffusers stores in its place.

    Tensor j is split into pieces[j] equal pieces along its first dimension, and all pieces, numbered in sequence, are
    concatenated in `order`.
    """

    def to_ours(*tensors: np.ndarray) -> np.ndarray:
        cut = [piece for x, n in zip(tensors, pieces, strict=True) for piece in np.split(x, n)]
        return transform.to_ours(np.concatenate([cut[i] for i in order]))

    def to_official(parameter: np.ndarray, shapes: tuple[Shape, ...]) -> tuple[np.ndarray, ...]:
        (official,) = transform.to_official(parameter, (shape,))
        cut = np.split(official, len(order))
        counted = [cut[order.index(i)] for i in range(len(order))]
        starts = np.cumsum([0, *pieces])
        return tuple(np.concatenate(counted[starts[j] : starts[j + 1]]) for j in range(len(shapes)))

    return TensorTransform(to_ours, to_official)


def _vae_names(row: TensorMapping, levels: int) -> tuple[tuple[str, Shape], ...]:
    """Renames the official VAE tensors of a mapping; diffusers counts decoder levels from the coarsest, like we do."""

    def renamed(key: str) -> str:
        key = re.sub(r'^decoder\.up\.(\d+)', lambda m: f'decoder.up_blocks.{levels - 1 - int(m[1])}', key)
        key = re.sub(r'^encoder\.down\.', 'encoder.down_blocks.', key)
        key = re.sub(r'\.mid\.block_(\d+)\.', lambda m: f'.mid_block.resnets.{int(m[1]) - 1}.', key)
        for old, new in (('.block.', '.resnets.'), ('.nin_shortcut.', '.conv_shortcut.')):
            key = key.replace(old, new)
        return re.sub(r'\.(down|up)sample\.', r'.\1samplers.0.', key)

    return tuple((renamed(key), shape) for key, shape in row.official)
