"""Maps the official VAE file (3d-vae.pt) to our VAE and infers its sizes (model guide 3).

Two names differ: the official decoder counts its levels from the finest, ours from the coarsest
(the order in which they run), and causal convolutions have an inner `.conv`. All kernels become channels-last.
"""

import math
from collections.abc import Iterable

from fv_jax.models.vae import OFFICIAL, VAEConfig
from fv_jax.weights.layouts import key_table
from fv_jax.weights.layouts.key_table import TensorMapping, Tensors, affine, conv, linear, norm


def is_vae(tensors: Iterable[str]) -> bool:
    """Returns whether these are the keys of a VAE."""
    return any(key.startswith(('encoder.', 'decoder.')) for key in tensors)


def infer_config(tensors: Tensors) -> VAEConfig:
    """Infers widths, number of blocks and latent channels from the shapes of tensors."""
    levels = key_table.common_count(
        tensors,
        ('encoder.down.{i}.block.0.norm1.weight', 'decoder.up.{i}.block.0.conv2.conv.bias'),
        len(OFFICIAL.widths),
    )
    blocks = [
        key_table.common_count(tensors, [f'encoder.down.{level}.block.{{i}}.norm1.weight'], OFFICIAL.num_res_blocks)
        for level in range(levels)
    ]
    widths = [
        key_table.common_size(
            tensors,
            [
                (f'{side}.{level}.block.*.{key}', 0)
                for side in ('encoder.down', 'decoder.up')
                for key in ('conv1.conv.bias', 'conv2.conv.bias', 'conv2.conv.weight')
            ],
            OFFICIAL.widths[min(level, len(OFFICIAL.widths) - 1)],
        )
        for level in range(levels)
    ]
    base = math.gcd(*widths)
    return VAEConfig(
        base_channels=base,
        multipliers=tuple(width // base for width in widths),
        temporal_levels=OFFICIAL.temporal_levels,  # shapes determine neither this nor the groups
        num_res_blocks=max(set(blocks), key=blocks.count),
        latent_channels=key_table.common_size(
            tensors,
            [
                ('decoder.conv_in.conv.weight', 1),
                ('decoder.*.conv_y.conv.weight', 1),
                ('decoder.*.conv_b.conv.weight', 1),
            ],
            OFFICIAL.latent_channels,
        ),
        groups=OFFICIAL.groups,
    )


def table(config: VAEConfig) -> list[TensorMapping]:
    """Maps every parameter of a VAE of this `config` to the official tensor it is made of."""
    return _encoder(config) + _decoder(config)


def _causal(official: str, path: str, out: int, into: int) -> list[TensorMapping]:
    return affine(f'{official}.conv', path, (out, into, 3, 3, 3), conv)


def _frame(official: str, path: str, channels: int) -> list[TensorMapping]:
    return affine(f'{official}.conv', path, (channels, channels, 3, 3), conv)


def _spatial_norm(official: str, path: str, size: int, latent: int) -> list[TensorMapping]:
    rows = norm(f'{official}.norm_layer', f'{path}.norm_layer', size)
    for part in ('conv_y', 'conv_b'):
        rows += affine(f'{official}.{part}.conv', f'{path}.{part}', (size, latent, 1, 1, 1))
    return rows


def _res_block(official: str, path: str, into: int, out: int, latent: int | None = None) -> list[TensorMapping]:
    """Maps a residual block; with `latent` channels, its norms are spatial."""
    rows = []
    for i, (first, last) in enumerate(((into, out), (out, out)), 1):
        names = f'{official}.norm{i}', f'{path}.norm{i}', first
        rows += norm(*names) if latent is None else _spatial_norm(*names, latent)
        rows += _causal(f'{official}.conv{i}', f'{path}.conv{i}', last, first)
    if into != out:
        rows += affine(f'{official}.nin_shortcut', f'{path}.nin_shortcut', (out, into, 1, 1, 1), linear)
    return rows


def _encoder(config: VAEConfig) -> list[TensorMapping]:
    widths, last = config.widths, config.widths[-1]
    rows = _causal('encoder.conv_in', 'encoder.conv_in', widths[0], 3)
    for level, width in enumerate(widths):
        for b in range(config.num_res_blocks):
            into = widths[max(level - 1, 0)] if b == 0 else width
            rows += _res_block(f'encoder.down.{level}.block.{b}', f'encoder.down.{level}.{b}', into, width)
        if level < len(widths) - 1:
            rows += _frame(f'encoder.down.{level}.downsample', f'encoder.downsample.{level}', width)
    for i in range(2):
        rows += _res_block(f'encoder.mid.block_{i + 1}', f'encoder.mid.{i}', last, last)
    rows += norm('encoder.norm_out', 'encoder.norm_out', last)
    return rows + _causal('encoder.conv_out', 'encoder.conv_out', 2 * config.latent_channels, last)


def _decoder(config: VAEConfig) -> list[TensorMapping]:
    widths, latent = config.widths[::-1], config.latent_channels
    rows = _causal('decoder.conv_in', 'decoder.conv_in', widths[0], latent)
    for i in range(2):
        rows += _res_block(f'decoder.mid.block_{i + 1}', f'decoder.mid.{i}', widths[0], widths[0], latent)
    for index, width in enumerate(widths):
        level = len(widths) - 1 - index
        for b in range(config.num_res_blocks + 1):
            into = widths[max(index - 1, 0)] if b == 0 else width
            rows += _res_block(f'decoder.up.{level}.block.{b}', f'decoder.up.{index}.{b}', into, width, latent)
        if level > 0:
            rows += _frame(f'decoder.up.{level}.upsample', f'decoder.upsample.{index}', width)
    rows += _spatial_norm('decoder.norm_out', 'decoder.norm_out', widths[-1], latent)
    return rows + _causal('decoder.conv_out', 'decoder.conv_out', 3, widths[-1])
