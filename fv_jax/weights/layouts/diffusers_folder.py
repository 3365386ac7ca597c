"""CogVideoX in the layout of Hugging Face diffusers as initial weights: a folder with config.json and safetensors.

`diffusers_keys` has the names; `diffusers_export` writes such folders.

What has no counterpart is reported (`Folder.notes`):
  * the position table of a network without rotary positions (the 2B model adds it to its tokens; ours rotates);
  * the last norm's eps (1e-5 there, 1e-6 here);
  * the two extra embeddings of an enhancement stage, which no CogVideoX has: they are initialized.
Networks of another structure are refused: version 1.5 (patches in time), image to video (32 input channels). So is the
network of an enhancement stage that was exported for diffusers, where its extra embeddings are constants of a bias.

Names, packing and defaults are those of diffusers' modules and of its conversion script for CogVideoX
(arXiv:2408.06072) as published; whether a released folder has other tensors could not be checked.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from fv_jax.core.checks import require
from fv_jax.core.files import parse_json
from fv_jax.core.paths import StoragePath
from fv_jax.models.dit import HEAD_NORM_EPS, DiTConfig
from fv_jax.models.vae import VAEConfig
from fv_jax.weights.formats import safetensors_file
from fv_jax.weights.layouts import diffusers_keys
from fv_jax.weights.layouts.key_table import KeyTable, Tensors

CONFIG = 'config.json'
# What `diffusers_export` notes in config.json; diffusers ignores names that start with an underscore.
EXPORTED, FACTORS, CONSTANTS = '_fv_jax', 'factors', 'constants'
POSITION_TABLE = 'patch_embed.pos_embedding'

# diffusers does not write values that are defaults of the class.
_TRANSFORMER = {
    'num_attention_heads': 30,
    'attention_head_dim': 64,
    'in_channels': 16,
    'out_channels': 16,
    'time_embed_dim': 512,
    'text_embed_dim': 4096,
    'num_layers': 30,
    'patch_size': 2,
    'norm_eps': 1e-5,
    'use_rotary_positional_embeddings': False,
}
_VAE = {
    'block_out_channels': [128, 256, 256, 512],
    'latent_channels': 16,
    'layers_per_block': 3,
    'norm_num_groups': 32,
    'temporal_compression_ratio': 4,
}
# Fixed properties of our networks: other values mean another network.
_TRANSFORMER_MUST = {
    'patch_size_t': None,
    'ofs_embed_dim': None,
    'flip_sin_to_cos': True,
    'freq_shift': 0,
    'activation_fn': 'gelu-approximate',
    'timestep_activation_fn': 'silu',
    'attention_bias': True,
    'patch_bias': True,
    'norm_elementwise_affine': True,
}
_VAE_MUST = {
    'in_channels': 3,
    'out_channels': 3,
    'act_fn': 'silu',
    'norm_eps': 1e-6,
    'use_quant_conv': False,
    'use_post_quant_conv': False,
}

# Embeddings that no CogVideoX has: fields of `DiTConfig`, and the first names of their parameters.
NEW = {'embed_num_frames': 'frames_embed', 'embed_noise_augmentation_timestep': 'source_embed'}


@dataclasses.dataclass(frozen=True)
class Folder:
    """An opened folder.

    Attributes:
      config: of the network.
      new: the first names of our parameters that the folder does not have.
      notes: what has no counterpart, a line each.
    """

    config: DiTConfig | VAEConfig
    table: KeyTable
    tensors: Tensors
    new: tuple[str, ...]
    notes: tuple[str, ...]


def open_folder(folder: StoragePath, *, like: Mapping[str, Any], param_dtype: str) -> Folder:
    """Opens a folder, `transformer` or `vae` of a CogVideoX pipeline, and checks names and shapes.

    Args:
      folder: with config.json and the safetensors.
      like: fields of the network that a transformer becomes. `embed_num_frames` and `embed_noise_augmentation_timestep`
        are new embeddings, by default off.
      param_dtype: of a transformer's parameters.

    Raises:
      FileNotFoundError: no config.json, or no safetensors.
      ValueError: another kind of model, or a CogVideoX with other features than our networks; lists all differences.
    """
    values = parse_json((folder / CONFIG).read_text())
    name = values.get('_class_name') if isinstance(values, dict) else None
    if name == 'CogVideoXTransformer3DModel':
        return _transformer(folder, values, like, param_dtype)
    if name == 'AutoencoderKLCogVideoX':
        return _vae(folder, values)
    raise ValueError(
        f"{folder}: its {CONFIG} names {name!r}, must be 'CogVideoXTransformer3DModel' or 'AutoencoderKLCogVideoX'"
    )


def _transformer(folder: StoragePath, values: Mapping[str, Any], like: Mapping[str, Any], param_dtype: str) -> Folder:
    given = _TRANSFORMER | values
    problems = _differences(values, _TRANSFORMER_MUST)
    if given['in_channels'] != given['out_channels']:
        problems.append(
            f'in_channels is {given["in_channels"]} and out_channels {given["out_channels"]}: image to video'
        )
    _refuse(folder, problems)
    exported = values.get(EXPORTED, {})
    if exported.get(CONSTANTS):
        raise ValueError(
            f'{folder}: is the network of an enhancement stage for diffusers, whose embeddings of the number of frames '
            'and of the noise are constants; use the run that it was exported from'
        )
    dim = given['num_attention_heads'] * given['attention_head_dim']
    config = DiTConfig(
        latent_channels=given['in_channels'],
        patch_size=given['patch_size'],
        embed_dim=dim,
        num_layers=given['num_layers'],
        num_heads=given['num_attention_heads'],
        mlp_dim=4 * dim,
        cond_dim=given['time_embed_dim'],
        text_dim=given['text_embed_dim'],
        **{field: like.get(field, False) for field in NEW},
        param_dtype=param_dtype,
    )
    new = tuple(name for field, name in NEW.items() if getattr(config, field))
    tensors = safetensors_file.read_folder(folder)
    learned = tensors.pop(POSITION_TABLE, None) is not None
    table = diffusers_keys.transformer_table(config, new, exported.get(FACTORS))
    return Folder(config, table, tensors, new, tuple(_notes(given | exported, learned, new)))


def _notes(given: Mapping[str, Any], learned: bool, new: tuple[str, ...]) -> list[str]:
    notes = []
    if not given['use_rotary_positional_embeddings']:
        notes.append(
            'without a counterpart: its position table (sine and cosine, added to the tokens); ours rotates queries '
            'and keys, so that it must be trained before it is of use'
        )
    if learned:
        notes.append(f'without a counterpart: {POSITION_TABLE}, learned positions that are added to the tokens')
    if given['norm_eps'] != HEAD_NORM_EPS and FACTORS not in given:
        notes.append(f'norm_out.norm: its eps is {given["norm_eps"]:g} there and {HEAD_NORM_EPS:g} here')
    notes += [f'not in the folder, newly initialised: {name}' for name in new]
    return notes


def _vae(folder: StoragePath, values: Mapping[str, Any]) -> Folder:
    given = _VAE | values
    problems, ratio = _differences(values, _VAE_MUST), given['temporal_compression_ratio']
    if not isinstance(ratio, int) or ratio.bit_count() != 1:
        problems.append(f'temporal_compression_ratio is {ratio!r}, ours is always a power of 2')
    _refuse(folder, problems)
    widths = given['block_out_channels']
    base = math.gcd(*widths)
    config = VAEConfig(
        base_channels=base,
        multipliers=tuple(width // base for width in widths),
        temporal_levels=ratio.bit_length() - 1,
        num_res_blocks=given['layers_per_block'],
        latent_channels=given['latent_channels'],
        groups=given['norm_num_groups'],
    )
    factor = given.get('scaling_factor')
    notes = [] if factor is None else [f"its latents are multiplied by {factor}: set the stage's scale_factor to it"]
    return Folder(config, diffusers_keys.vae_table(config), safetensors_file.read_folder(folder), (), tuple(notes))


def _differences(values: Mapping[str, Any], must: Mapping[str, Any]) -> list[str]:
    return [
        f'{name} is {values[name]!r}, ours is always {wanted!r}'
        for name, wanted in must.items()
        if name in values and values[name] != wanted
    ]


def _refuse(folder: StoragePath, problems: list[str]) -> None:
    require(not problems, f'{folder}: unsupported CogVideoX: {"; ".join(problems)}')
