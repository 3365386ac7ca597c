"""The flags of VAE tiling, for the commands that have no settings of a stage to put it in."""

import argparse
from typing import Protocol

from fv_jax.core.checks import require
from fv_jax.core.command_line import UsageError, parse_size
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.models.vae_tiling import DEFAULT_OVERLAP, Tiling


class Flags(Protocol):
    """A parser, or a group of its arguments."""

    def add_argument(self, *names: str, **how: object) -> argparse.Action: ...


def add_tiling_flags(parser: Flags) -> None:
    """--tile-size and --tile-overlap."""
    parser.add_argument('--tile-size', help='VAE tiling, HEIGHTxWIDTH in whole latents: less memory (default: off)')
    parser.add_argument('--tile-overlap', type=int, help=f'pixels that tiles share (default: {DEFAULT_OVERLAP})')


def read_tiling(arguments: argparse.Namespace, latent_spec: LatentSpec) -> Tiling | None:
    """What they say, for the VAE of these latents; None for whole frames.

    Raises UsageError or ConfigError for tiles that cannot be.
    """
    overlap = arguments.tile_overlap
    if arguments.tile_size is None:
        require(overlap is None, f'--tile-overlap={overlap}: means nothing without --tile-size', UsageError)
        return None
    size = parse_size('--tile-size', arguments.tile_size)
    return Tiling(size, DEFAULT_OVERLAP if overlap is None else overlap, latent_spec.spatial)
