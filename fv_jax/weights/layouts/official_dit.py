"""Maps the official DiT checkpoints (stage1.pt, stage2.pt) to our DiT and infers its sizes (model guide 2, 3).

Official linears are (out, in); packed outputs (q | k | v, the twelve modulations, shift | scale) are concatenated
rows, which become the middle dimension of our kernels.

A linear X with LoRA is `X.original` with `X.matrix_A.j` and `X.matrix_B.j`, one pair for each of its parts j; one
without, also one with merged LoRA, is X itself. A file may mix them. A kind of linear that has LoRA in no
layer has none in our network either; one that has it in some layers has matrices of zeros in the others, which change
nothing (`models/lora.py`), and is written as a plain linear again. The official scale is 1 / rank: if ours is
alpha / rank, B is written multiplied by alpha.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np
from flax import nnx

from fv_jax.models.dit import STAGE2, DiT, DiTConfig
from fv_jax.models.lora import LoRAConfig, Target, merged_kernel
from fv_jax.weights.layouts import key_table
from fv_jax.weights.layouts.key_table import (
    KeyTable,
    Parameter,
    Parameters,
    Shape,
    TensorMapping,
    Tensors,
    affine,
    linear,
    norm,
)
from fv_jax.weights.parameters import map_layers

PREFIX = 'model.diffusion_model.'
MIXINS = f'{PREFIX}mixins.'
LAYER = f'{PREFIX}transformer.layers.{{i}}.'
MODULATIONS = f'{MIXINS}adaln_layer.adaLN_modulations.{{i}}.1'
Q_NORM = f'{MIXINS}adaln_layer.query_layernorm_list.{{i}}'
K_NORM = f'{MIXINS}adaln_layer.key_layernorm_list.{{i}}'
FRAMES_EMBED = f'{PREFIX}time_size_embedding'
SOURCE_EMBED = f'{PREFIX}ref_step_time_embedding'
POSITION_TABLE = f'{PREFIX}transformer.position_embeddings.weight'
POSITIONS = 64  # rows of the position table that every official file has and no computation reads


@dataclasses.dataclass(frozen=True)
class LoRATarget:
    """A linear of every block that may have LoRA.

    Attributes:
      parts: number of parts of its outputs, each with its own matrices.
    """

    target: Target
    official: str
    path: str
    parts: int = 1

    def matrices(self) -> list[str]:
        return [f'{self.official}.matrix_{side}.{j}' for side in 'AB' for j in range(self.parts)]


LINEARS = (
    LoRATarget('qkv', f'{LAYER}attention.query_key_value', 'blocks.attention.qkv', 3),
    LoRATarget('attention_out', f'{LAYER}attention.dense', 'blocks.attention.out'),
    LoRATarget('modulation', MODULATIONS, 'blocks.modulation'),
    LoRATarget('mlp', f'{LAYER}mlp.dense_h_to_4h', 'blocks.mlp.hidden'),
    LoRATarget('mlp', f'{LAYER}mlp.dense_4h_to_h', 'blocks.mlp.out'),
)


def is_dit(tensors: Iterable[str]) -> bool:
    """Returns whether these are the keys of a DiT."""
    return any(key.startswith(PREFIX) for key in tensors)


def infer_config(tensors: Tensors) -> DiTConfig:
    """Infers every size from the shapes of tensors, the extra embeddings and LoRA from their keys."""
    lora = _infer_lora(tensors)
    tensors = {key.replace('.original.', '.'): tensor for key, tensor in tensors.items()}

    def size(default: int, *candidates: tuple[str, int]) -> int:
        return key_table.common_size(tensors, [(key.replace('{i}', '*'), dim) for key, dim in candidates], default)

    proj = f'{MIXINS}patch_embed.proj.weight'
    embed_dim = size(
        STAGE2.embed_dim,
        (f'{MIXINS}patch_embed.proj.bias', 0),
        (f'{PREFIX}transformer.final_layernorm.weight', 0),
        (f'{LAYER}input_layernorm.weight', 0),
        (f'{LAYER}post_attention_layernorm.weight', 0),
        (f'{LAYER}mlp.dense_4h_to_h.bias', 0),
    )
    head_dim = size(STAGE2.head_dim, *((f'{x}.{y}', 0) for x in (Q_NORM, K_NORM) for y in ('weight', 'bias')))
    counted = (
        f'{MODULATIONS}.weight',
        f'{Q_NORM}.weight',
        f'{LAYER}input_layernorm.weight',
        f'{LAYER}mlp.dense_h_to_4h.bias',
    )
    mlp_sizes = (f'{LAYER}mlp.dense_h_to_4h.bias', 0), (f'{LAYER}mlp.dense_h_to_4h.weight', 0)
    cond_sizes = (f'{PREFIX}time_embed.0.bias', 0), (f'{PREFIX}time_embed.2.bias', 0)
    return DiTConfig(
        latent_channels=size(STAGE2.latent_channels, (proj, 1)),
        patch_size=size(STAGE2.patch_size, (proj, 2), (proj, 3)),
        embed_dim=embed_dim,
        num_layers=key_table.common_count(tensors, counted, STAGE2.num_layers),
        num_heads=max(embed_dim // head_dim, 1),
        mlp_dim=size(STAGE2.mlp_dim, *mlp_sizes, (f'{LAYER}mlp.dense_4h_to_h.weight', 1)),
        cond_dim=size(STAGE2.cond_dim, *cond_sizes, (f'{MODULATIONS}.weight', 1)),
        text_dim=size(STAGE2.text_dim, (f'{MIXINS}patch_embed.text_proj.weight', 1)),
        embed_num_frames=any(key.startswith(FRAMES_EMBED) for key in tensors),
        embed_noise_augmentation_timestep=any(key.startswith(SOURCE_EMBED) for key in tensors),
        lora=lora,
    )


def _infer_lora(tensors: Tensors) -> LoRAConfig | None:
    targets = tuple(dict.fromkeys(x.target for x in LINEARS if _layers_with_lora(tensors, x)))
    if not targets:
        return None
    patterns = [x.official.replace('{i}', '*') for x in LINEARS]
    sides = [(f'{x}.matrix_A.*', 0) for x in patterns] + [(f'{x}.matrix_B.*', 1) for x in patterns]
    rank = key_table.common_size(tensors, sides, LoRAConfig.rank)
    return LoRAConfig(rank=rank, targets=targets)


def _layers_with_lora(tensors: Iterable[str], target: LoRATarget) -> set[int]:
    regex = re.compile(re.escape(target.official).replace(r'\{i\}', r'(\d+)') + r'\.(original|matrix_[AB])\.')
    return {int(match[1]) for key in tensors if (match := regex.match(key))}


def file_names(tensors: Iterable[str], config: DiTConfig) -> dict[str, str | None]:
    """Returns `KeyTable.names` of a file with these keys.

    They mark linears without LoRA whose kind has LoRA in other layers.
    """
    keys = list(tensors)
    with_lora = {x.official: _layers_with_lora(keys, x) for x in LINEARS}
    return _plain_key_names(config, lambda target, layer: layer not in with_lora[target.official])


def _plain_key_names(config: DiTConfig, is_plain: Callable[[LoRATarget, int], bool]) -> dict[str, str | None]:
    """Returns `KeyTable.names` of a file in which these linears have no LoRA."""
    names: dict[str, str | None] = {}
    for target in LINEARS:
        for i in range(config.num_layers if config.lora_on(target.target) else 0):
            if is_plain(target, i):
                key = target.official.replace('{i}', str(i))
                names |= {f'{key}.original.{part}': f'{key}.{part}' for part in ('weight', 'bias')}
                names |= {matrix.replace('{i}', str(i)): None for matrix in target.matrices()}
    return names


def table(config: DiTConfig) -> list[TensorMapping]:
    """Maps every parameter of a DiT of this `config` to the official tensors it is made of."""
    dim, cond, inner, head = config.embed_dim, config.cond_dim, config.mlp_dim, config.head_dim
    patch = (config.latent_channels, config.patch_size, config.patch_size)
    in_blocks = {
        'blocks.attention.qkv': (3 * dim, dim),
        'blocks.attention.out': (dim, dim),
        'blocks.modulation': (12 * dim, cond),
        'blocks.mlp.hidden': (inner, dim),
        'blocks.mlp.out': (dim, inner),
    }

    def mlp(official: str, path: str) -> list[TensorMapping]:
        return affine(f'{official}.0', f'{path}.hidden', (cond, dim)) + affine(
            f'{official}.2', f'{path}.out', (cond, cond)
        )

    rows = [
        *affine(f'{MIXINS}patch_embed.proj', 'patch_embed', (dim, *patch)),
        *affine(f'{MIXINS}patch_embed.text_proj', 'text_embed', (dim, config.text_dim)),
        *mlp(f'{PREFIX}time_embed', 'time_embed'),
        *norm(f'{LAYER}input_layernorm', 'blocks.attention_norm', dim),
        *norm(Q_NORM, 'blocks.attention.q_norm', head),
        *norm(K_NORM, 'blocks.attention.k_norm', head),
        *norm(f'{LAYER}post_attention_layernorm', 'blocks.mlp_norm', dim),
        *norm(f'{PREFIX}transformer.final_layernorm', 'final_norm', dim),
        *norm(f'{MIXINS}final_layer.norm_final', 'output.norm', dim),
        *affine(f'{MIXINS}final_layer.adaLN_modulation.1', 'output.modulation', (2 * dim, cond)),
        *affine(f'{MIXINS}final_layer.linear', 'output.out', (config.patch_dim, dim)),
    ]
    for target in LINEARS:
        rows += _lora_rows(target, in_blocks[target.path], config.lora_on(target.target))
    if config.embed_num_frames:
        rows += mlp(FRAMES_EMBED, 'frames_embed')
    if config.embed_noise_augmentation_timestep:
        rows += mlp(SOURCE_EMBED, 'source_embed')
    return rows


def _lora_rows(target: LoRATarget, shape: Shape, lora: LoRAConfig | None) -> list[TensorMapping]:
    if lora is None:
        return affine(target.official, target.path, shape, linear)
    (out, into), keys, parts = shape, target.matrices(), target.parts
    a = tuple((key, (lora.rank, into)) for key in keys[:parts])
    b = tuple((key, (out // parts, lora.rank)) for key in keys[parts:])
    return [
        *affine(f'{target.official}.original', target.path, shape, linear),
        TensorMapping(f'{target.path}.lora.a', a, key_table.lora_a),
        TensorMapping(f'{target.path}.lora.b', b, key_table.lora_b),
    ]


# --- LoRA ---


def merge_lora_parameters(values: Parameters, config: DiTConfig) -> tuple[Parameters, DiTConfig]:
    """Merges LoRA into the kernels, each when it is read.

    Returns:
      (the parameters of the network without LoRA, its config).
    """
    if config.lora is None:
        return values, config
    scale = config.lora.scale

    def merge(name: str, parameter: Parameter) -> Parameter:
        linear_name, _, leaf = name.rpartition('.')
        matrices = [values.get(f'{linear_name}.lora.{side}') for side in 'ab']
        if leaf != 'kernel' or matrices[0] is None:
            return parameter
        return map_layers(functools.partial(_merge_kernel, scale=scale), parameter, *matrices)

    kept = {name: merge(name, parameter) for name, parameter in values.items() if '.lora.' not in name}
    return kept, dataclasses.replace(config, lora=None)


def _merge_kernel(kernel: np.ndarray, a_IPR: np.ndarray, b_PRO: np.ndarray, scale: float) -> np.ndarray:
    return np.asarray(merged_kernel(kernel, a_IPR, b_PRO, scale)) if np.any(b_PRO) else kernel


def scale_lora_to_official(values: Parameters, config: DiTConfig) -> Parameters:
    """Multiplies B by alpha, for files whose reader scales LoRA by 1 / rank."""
    if config.lora is None or config.lora.alpha == 1:
        return values
    alpha = config.lora.alpha

    def rescale(b: np.ndarray) -> np.ndarray:
        return b * np.asarray(alpha, b.dtype)

    return {name: map_layers(rescale, x) if name.endswith('.lora.b') else x for name, x in values.items()}


def make_official_table(values: Parameters, config: DiTConfig) -> KeyTable:
    """Makes the table for writing these parameters.

    A linear whose LoRA matrices are all zero is written without LoRA.
    """

    def empty(path: str) -> np.ndarray:
        matrices = (values[f'{path}.lora.{side}'].numpy() for side in 'ab')
        return np.all([~np.any(x, axis=tuple(range(1, x.ndim))) for x in matrices], axis=0)

    empties = {x.path: empty(x.path) for x in LINEARS if config.lora_on(x.target)}
    return KeyTable(table(config), config.num_layers, _plain_key_names(config, lambda x, i: bool(empties[x.path][i])))


def position_table(config: DiTConfig, dtype: np.dtype) -> dict[str, np.ndarray]:
    """Returns zeros for the position table, which no computation reads but strict readers of official files require."""
    return {POSITION_TABLE: np.zeros((POSITIONS, config.embed_dim), dtype)}


# --- the embedding of the number of frames ---


def frames_embedding_report(values: Mapping[str, Parameter]) -> str | None:
    """Reports whether the embedding of the number of latent frames can distinguish numbers; None without one.

    The official code initializes both of its linears with zeros, from which only the last bias can be trained.
    """
    if 'frames_embed.out.kernel' not in values:
        return None
    largest = [float(np.abs(values[f'frames_embed.{x}.kernel'].numpy()).max()) for x in ('hidden', 'out')]
    sizes = f'largest weights {largest[0]:.3g} and {largest[1]:.3g}'
    if all(largest):
        return f'frame-count embedding: its kernels are not zero ({sizes}): the network receives the length of a clip'
    which = 'both kernels are' if not any(largest) else f'the {"second" if largest[0] else "first"} kernel is'
    untrainable = ' no gradient reaches them either, so that training cannot change it;' if not any(largest) else ''
    return (
        f'frame-count embedding: {which} exactly zero ({sizes}): it is one constant for every number of frames;'
        f'{untrainable} the network does not receive the length of a clip'
    )


# --- loading ---


def infer_config_and_table(tensors: Tensors, param_dtype: str) -> tuple[DiTConfig, KeyTable]:
    """Infers the config and the table of an official checkpoint from its tensors."""
    config = dataclasses.replace(infer_config(tensors), param_dtype=param_dtype)
    return config, KeyTable(table(config), config.num_layers, file_names(tensors, config))


def init_parameters(config: DiTConfig, names: Iterable[str]) -> Parameters:
    """Initializes the parameters with these first names ('frames_embed'), and no others of the network."""
    names = tuple(names)
    one_layer = dataclasses.replace(config, num_layers=1)

    # Compiled, so that the other parameters are not computed.
    @jax.jit
    def make() -> nnx.State:
        state = nnx.state(DiT(one_layer, rngs=nnx.Rngs(0)))
        return nnx.from_flat_state([(path, leaf) for path, leaf in nnx.to_flat_state(state) if path[0] in names])

    return key_table.module_parameters(make()) if names else {}
