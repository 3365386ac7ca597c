"""Flags of VAE tiling, for commands without the settings of a stage."""

import argparse
from typing import Protocol

from fv_jax.core.checks import require
from fv_jax.core.command_line import UsageError, parse_size
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.models.vae_tiling import DEFAULT_OVERLAP, Tiling


class Flags(Protocol):
    """A parser or an argument group of one."""

    def add_argument(self, *names: str, **how: object) -> argparse.Action: ...


def add_tiling_flags(parser: Flags) -> None:
    """Adds --tile-size and --tile-overlap to a parser."""
    parser.add_argument('--tile-size', help='VAE tiling, HEIGHTxWIDTH in whole latents: less memory (default: off)')
    parser.add_argument(
        '--tile-overlap', type=int, help=f'pixels that neighbouring tiles share (default: {DEFAULT_OVERLAP})'
    )


def read_tiling(arguments: argparse.Namespace, latent_spec: LatentSpec) -> Tiling | None:
    """Returns the tiling that the flags ask for, or None for whole frames.

    Args:
      arguments: with `tile_size` and `tile_overlap`.
      latent_spec: of the VAE.

    Raises:
      UsageError: not HEIGHTxWIDTH, or an overlap without a size.
      ConfigError: a size that is no multiple of a latent, or an overlap that is too large.
    """
    overlap = arguments.tile_overlap
    if arguments.tile_size is None:
        require(overlap is None, f'--tile-overlap={overlap}: has no effect without --tile-size; add it', UsageError)
        return None
    size = parse_size('--tile-size', arguments.tile_size)
    return Tiling(size, DEFAULT_OVERLAP if overlap is None else overlap, latent_spec.spatial)
