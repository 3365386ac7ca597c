"""Patches: order of features and tokens, the way back, sizes that do not divide."""

import jax.numpy as jnp
import numpy as np
import pytest

from fv_jax.models.patch import patch_grid, patchify, unpatchify


def latents(frames=2, height=4, width=6, channels=3):
    return jnp.arange(2 * frames * height * width * channels, dtype=jnp.float32).reshape(
        2, frames, height, width, channels
    )


def test_patchify_order_of_tokens_and_features():
    z = latents()
    tokens = patchify(z, 2)
    assert tokens.shape == (2, 2 * 2 * 3, 12)
    frame, row, column = 1, 1, 2
    token = tokens[1, (frame * 2 + row) * 3 + column]
    for c, p, q in np.ndindex(3, 2, 2):
        assert token[(c * 2 + p) * 2 + q] == z[1, frame, 2 * row + p, 2 * column + q, c]


@pytest.mark.parametrize('patch', [1, 2])
def test_unpatchify_inverts_patchify(patch):
    z = latents()
    grid = patch_grid(z.shape, patch)
    assert grid == (2, 4 // patch, 6 // patch)
    np.testing.assert_array_equal(unpatchify(patchify(z, patch), grid, patch), z)


@pytest.mark.parametrize(('height', 'width'), [(5, 6), (4, 7)])
def test_patchify_refuses_a_size_that_does_not_divide(height, width):
    with pytest.raises(ValueError, match=f'{height}x{width} do not divide into 2x2'):
        patchify(latents(height=height, width=width), 2)
