"""Widens a trained small VAE without changing what it computes (Net2WiderNet, arXiv:1511.05641).

    python launch/widen_vae.py runs/before.safetensors 1,2,4,6 runs/wider.safetensors

Every channel of a level is copied as often as the level becomes wider, within its group of the group norms, whose
statistics therefore stay. What reads copies weights them at random so that they sum to the original weight; the copies
receive different gradients from then on. A shortcut that a block needs where its widths differ is the identity.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flax import nnx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fv_jax import weights
from fv_jax.core.paths import as_path
from fv_jax.models.vae import VAE, VAEConfig
from fv_jax.weights import exported_network
from fv_jax.weights.layouts import key_table

SHARE = (0.2, 0.8)  # of a weight, for the first of the copies


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description='Widens a small VAE without changing its function.')
    parser.add_argument('source', help="a file of weights, or 'embedded'")
    parser.add_argument('multipliers', help='of the wider VAE, each a multiple of the old one: 1,2,4,6')
    parser.add_argument('output', type=Path)
    arguments = parser.parse_args(argv)
    vae = weights.load_vae(arguments.source)
    multipliers = tuple(int(m) for m in arguments.multipliers.split(','))
    wide = widen(vae, dataclasses.replace(vae.config, multipliers=multipliers))
    exported_network.write(as_path(arguments.output), key_table.module_parameters(nnx.state(wide)), wide.config)
    print(f'{arguments.output}: widths {vae.config.widths} -> {wide.config.widths}')
    return 0


def widen(vae: VAE, config: VAEConfig, seed: int = 0) -> VAE:
    """Returns a VAE of a wider configuration, whose levels' widths are whole multiples, that computes the same."""
    for old, new in zip(vae.config.widths, config.widths, strict=True):
        if new % old:
            raise ValueError(f'width {new}: must be a multiple of {old}')
    rng, wide = np.random.default_rng(seed), VAE(config, rngs=nnx.Rngs(0))
    old = {path: np.asarray(value[...]) for path, value in nnx.to_flat_state(nnx.state(vae))}
    state = nnx.to_flat_state(nnx.state(wide))
    for path, variable in state:
        shape = variable[...].shape
        values = old[path] if path in old else _identity(path, shape, old)
        variable[...] = _widen_array(values, shape, config.groups, rng)
    return wide


def _identity(path: tuple, shape: tuple[int, ...], old: dict[tuple, np.ndarray]) -> np.ndarray:
    """Returns the kernel or the bias of a shortcut that the narrow network did not need."""
    channels = old[(*path[:-2], 'conv1', 'bias')].shape[0]
    return np.eye(channels, dtype=np.float32) if len(shape) == 2 else np.zeros(channels, np.float32)


def _widen_array(values: np.ndarray, shape: tuple[int, ...], groups: int, rng: np.random.Generator) -> np.ndarray:
    outputs = _copied_channels(values.shape[-1], shape[-1], groups)
    values = values[..., outputs]
    if values.ndim < 2 or values.shape[-2] == shape[-2]:
        return values
    inputs = _copied_channels(values.shape[-2], shape[-2], groups)
    share = rng.uniform(*SHARE, (shape[-2], shape[-1])).astype(np.float32)
    for channel in range(values.shape[-2]):
        share[inputs == channel] /= share[inputs == channel].sum(axis=0)
    return values[..., inputs, :] * share


def _copied_channels(old: int, new: int, groups: int) -> np.ndarray:
    """Returns, for each channel of the wide level, the channel that it copies: one of the same group."""
    if old == new:
        return np.arange(new)
    group, place = np.divmod(np.arange(new), new // groups)
    return group * (old // groups) + place % (old // groups)


if __name__ == '__main__':
    sys.exit(main())
