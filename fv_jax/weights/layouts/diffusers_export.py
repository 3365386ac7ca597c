"""Writes networks as folders that diffusers' stock classes load: config.json and safetensors.

A DiT becomes a `CogVideoXTransformer3DModel`, which computes the same once four differences are in its parameters:

    time_embedding.linear_2.bias  =  b_2 + mlp_frames(sinusoid(F)) + mlp_source(sinusoid(s))                (1)
    norm_final                    =  4 norm_final                                                           (2)
    proj_out                      =  -proj_out, of a stage whose network predicts the opposite              (3)
    q, k, v and the modulations are packed as in `diffusers_keys`                                           (4)

(1): the class has no embeddings of the number of latent frames F and of the noise augmentation timestep s. Both are
only added to the time's (model guide 1.1), so that they are constants of a folder: one folder for each pair (F, s).

(2): the class has one eps, 1e-5, for all layer norms, where the output head has 1e-6. The head's norm follows the
final norm directly, and its eps counts relative to what it normalizes: after a factor of 4 it is 1e-5/16 = 6.3e-7. The
factor is a power of two, so that it rounds nothing in any dtype.

A VAE becomes an `AutoencoderKLCogVideoX`. LoRA must be merged before.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fv_jax.core import files
from fv_jax.core.checks import require
from fv_jax.core.paths import StoragePath
from fv_jax.models.dit import BLOCK_NORM_EPS, FINAL_NORM_EPS, DiTConfig, sinusoid
from fv_jax.models.vae import VAEConfig
from fv_jax.weights.formats import safetensors_file
from fv_jax.weights.layouts import diffusers_keys, key_table
from fv_jax.weights.layouts.diffusers_folder import CONFIG, CONSTANTS, EXPORTED, FACTORS, NEW
from fv_jax.weights.layouts.key_table import KeyTable
from fv_jax.weights.parameters import Parameter, Parameters

STEM = 'diffusion_pytorch_model'  # of the safetensors
FINAL_NORM_FACTOR = 4.0  # (2)
# diffusers loads folders of any version that is not newer than itself without complaint.
VERSION = '0.31.0'
# Example code for users.
VAE_USAGE = """\
from diffusers import AutoencoderKLCogVideoX

vae = AutoencoderKLCogVideoX.from_pretrained('FOLDER')
vae.num_sample_frames_batch_size = 16  # frames that fv_jax encodes at a time
"""
_TIME_BIAS = 'time_embed.out.bias'


@dataclasses.dataclass(frozen=True)
class TransformerSettings:
    """What a transformer's folder is made for.

    Attributes:
      latents: (frames, height, width) of the latents; at this size the pipeline's rotary positions are ours.
      video_frames: of the clip that has these latents.
      temporal: video frames for a latent frame.
      text_length: tokens of the text.
      noise_augmentation_timestep: what the network embeds, s of (1); None for a network without that embedding.
      predicts_opposite: whether the scheduler takes the opposite of the network's output (3).
    """

    latents: tuple[int, int, int]
    video_frames: int
    temporal: int
    text_length: int
    noise_augmentation_timestep: float | None = None
    predicts_opposite: bool = False


def check_transformer(config: DiTConfig) -> None:
    """Raises ValueError for a DiT that the class cannot be."""
    wide = f'network.mlp_dim={config.mlp_dim}: diffusers has only MLPs of 4 x embed_dim = {4 * config.embed_dim}'
    require(config.mlp_dim == 4 * config.embed_dim, wide)


def write_transformer(
    folder: StoragePath, values: Parameters, config: DiTConfig, settings: TransformerSettings, dtype: str | None
) -> None:
    """Writes a DiT without LoRA.

    Args:
      folder: the folder, which is made.
      values: the parameters, read one at a time.
      config: of the network.
      settings: what the folder is made for.
      dtype: of the tensors; None keeps each parameter's own.

    Raises:
      ValueError: `check_transformer`.
    """
    check_transformer(config)
    assert config.lora is None, 'merge LoRA first'
    assert BLOCK_NORM_EPS == FINAL_NORM_EPS
    factors = {'final_norm': FINAL_NORM_FACTOR} | ({'output.out': -1.0} if settings.predicts_opposite else {})
    embedded = [name for field, name in NEW.items() if getattr(config, field)]
    table = diffusers_keys.transformer_table(config, tuple(embedded), factors)
    constants = {'frames': settings.latents[0], 'noise_augmentation_timestep': settings.noise_augmentation_timestep}
    exported = {FACTORS: factors} | ({CONSTANTS: constants} if embedded else {})
    rest = {name: value for name, value in values.items() if name.partition('.')[0] not in embedded}
    rest[_TIME_BIAS] = _fold_constants(values, config, settings)
    _write(folder, _transformer_config(config, settings) | {EXPORTED: exported}, rest, table, dtype)


def _fold_constants(values: Parameters, config: DiTConfig, settings: TransformerSettings) -> Parameter:
    """Adds the constant embeddings to the bias of the time's (1), in float32."""
    bias, inputs = values[_TIME_BIAS], {}
    if config.embed_num_frames:
        inputs['frames_embed'] = settings.latents[0]
    if config.embed_noise_augmentation_timestep:
        assert settings.noise_augmentation_timestep is not None
        inputs['source_embed'] = settings.noise_augmentation_timestep

    def folded() -> np.ndarray:
        total = bias.numpy().astype(np.float32)
        for name, value in inputs.items():
            total = total + _embed(values, name, sinusoid(jnp.full((1,), value, jnp.float32), config.embed_dim)[0])
        return total.astype(bias.dtype)

    return dataclasses.replace(bias, numpy=folded)


def _embed(values: Parameters, name: str, x_D: jax.Array) -> np.ndarray:
    """Computes an MLP of the conditioning vector, float32."""
    weights = [jnp.asarray(values[f'{name}.{part}'].numpy(), jnp.float32) for part in _MLP]
    with jax.default_matmul_precision('highest'):
        return np.asarray(jax.nn.silu(x_D @ weights[0] + weights[1]) @ weights[2] + weights[3])


_MLP = ('hidden.kernel', 'hidden.bias', 'out.kernel', 'out.bias')


def _transformer_config(config: DiTConfig, settings: TransformerSettings) -> dict[str, Any]:
    return {
        '_class_name': 'CogVideoXTransformer3DModel',
        '_diffusers_version': VERSION,
        'num_attention_heads': config.num_heads,
        'attention_head_dim': config.head_dim,
        'in_channels': config.latent_channels,
        'out_channels': config.latent_channels,
        'time_embed_dim': config.cond_dim,
        'text_embed_dim': config.text_dim,
        'num_layers': config.num_layers,
        'patch_size': config.patch_size,
        'norm_eps': BLOCK_NORM_EPS,
        'sample_frames': settings.video_frames,
        'sample_height': settings.latents[1],
        'sample_width': settings.latents[2],
        'temporal_compression_ratio': settings.temporal,
        'max_text_seq_length': settings.text_length,
        'use_rotary_positional_embeddings': True,
    }


def write_vae(folder: StoragePath, values: Parameters, config: VAEConfig, scale_factor: float) -> None:
    """Writes a VAE.

    Args:
      folder: the folder, which is made.
      values: the parameters, read one at a time.
      config: of the network.
      scale_factor: what a pipeline multiplies the latents by.
    """
    levels = len(config.widths)
    described = {
        '_class_name': 'AutoencoderKLCogVideoX',
        '_diffusers_version': VERSION,
        'block_out_channels': list(config.widths),
        'down_block_types': ['CogVideoXDownBlock3D'] * levels,
        'up_block_types': ['CogVideoXUpBlock3D'] * levels,
        'latent_channels': config.latent_channels,
        'layers_per_block': config.num_res_blocks,
        'norm_num_groups': config.groups,
        'temporal_compression_ratio': 2**config.temporal_levels,
        'scaling_factor': scale_factor,
    }
    _write(folder, described, values, diffusers_keys.vae_table(config), None)


def _write(
    folder: StoragePath, config: Mapping[str, Any], values: Parameters, table: KeyTable, dtype: str | None
) -> None:
    specs, tensors = key_table.to_official(values, table, dtype and np.dtype(jnp.dtype(dtype)))
    files.make_folder(folder)
    safetensors_file.write_folder(folder, STEM, {'format': 'pt'}, specs, tensors)
    files.write_json(folder / CONFIG, config)
