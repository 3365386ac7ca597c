"""Latents to patch tokens and back (model guide 1.2, 1.6).

A token is one latent frame's P x P patch; its features run channel first, then the patch's row, then its
column. Tokens run frame, row, column.

Dimensions: B batch, F latent frames, H W latent height and width, C latent channels, S video tokens,
P a patch's features.
"""

from einops import rearrange

from fv_jax.core.array_typing import Array, Float, typed
from fv_jax.core.checks import require


def patch_grid(shape_BFHWC: tuple[int, ...], patch: int) -> tuple[int, int, int]:
    """Computes the grid (frames, rows, columns) of patches of latents shaped `shape_BFHWC`.

    Raises:
      ValueError: height or width is not a multiple of the patch (the official code drops the rest).
    """
    _, frames, height, width, _ = shape_BFHWC
    require(
        height % patch == 0 and width % patch == 0,
        f'latents of {height}x{width} do not divide into {patch}x{patch} patches; use a height and a width '
        f'that are multiples of {patch} (in pixels, of {patch} times what the VAE makes one latent)',
    )
    return frames, height // patch, width // patch


@typed
def patchify(z_BFHWC: Float[Array, 'b f h w c'], patch: int) -> Float[Array, 'b s p']:
    """Cuts latents into tokens.

    Args:
      z_BFHWC: latents.
      patch: side of a patch.

    Returns:
      (B, S, P) with S = F (H / patch) (W / patch) and P = C patch^2.

    Raises:
      ValueError: height or width is not a multiple of the patch.
    """
    patch_grid(z_BFHWC.shape, patch)
    return rearrange(z_BFHWC, 'b f (h p) (w q) c -> b (f h w) (c p q)', p=patch, q=patch)


@typed
def unpatchify(tokens_BSP: Float[Array, 'b s p'], grid: tuple[int, int, int], patch: int) -> Float[Array, 'b f h w c']:
    """Reassembles latents from tokens; the inverse of `patchify`.

    Args:
      tokens_BSP: patch features.
      grid: (frames, rows, columns) of patches.
      patch: side of a patch.

    Returns:
      (B, F, H, W, C).
    """
    frames, rows, columns = grid
    return rearrange(
        tokens_BSP,
        'b (f h w) (c p q) -> b f (h p) (w q) c',
        f=frames,
        h=rows,
        w=columns,
        p=patch,
        q=patch,
    )
