"""Rotary positions: the tables' layout and what makes them positions."""

import jax.numpy as jnp
import numpy as np
import pytest

from fv_jax.models import rope as rope_lib
from fv_jax.models.rope import Rope, apply_rope, rope_axis_dims, rope_table


@pytest.mark.parametrize(
    ('head_dim', 'parts'), [(16, (4, 6, 6)), (32, (8, 12, 12)), (64, (16, 24, 24)), (128, (32, 48, 48))]
)
def test_rope_axis_dims(head_dim, parts):
    assert rope_axis_dims(head_dim) == parts


@pytest.mark.parametrize('head_dim', [8, 12, 24, 30])
def test_rope_refuses_a_head_that_does_not_split(head_dim):
    with pytest.raises(ValueError, match=f'{head_dim} channels.*multiple of 16'):
        rope_axis_dims(head_dim)


def test_rope_angles_of_one_token():
    frames, height, width = 3, 4, 5
    f, h, w = 2, 1, 4
    rope = rope_table(frames, height, width, 64)
    token = (f * height + h) * width + w
    angles = [f * 10000 ** (-2 * j / 16) for j in range(8)]
    angles += [position * 10000 ** (-2 * j / 24) for position in (h, w) for j in range(12)]
    np.testing.assert_allclose(rope.cos[token], np.repeat(np.cos(angles), 2), atol=1e-6)
    np.testing.assert_allclose(rope.sin[token], np.repeat(np.sin(angles), 2), atol=1e-6)


def test_rope_rotates_adjacent_channels():
    x = jnp.zeros((1, 1, 1, 16)).at[..., 4].set(1.0)
    angle = 0.3
    rope = Rope(jnp.full((1, 16), np.cos(angle)), jnp.full((1, 16), np.sin(angle)))
    expected = np.zeros(16)
    expected[4], expected[5] = np.cos(angle), np.sin(angle)
    np.testing.assert_allclose(apply_rope(x, rope)[0, 0, 0], expected, atol=1e-6)


def test_rope_scores_depend_on_relative_positions_only():
    rope = rope_table(4, 4, 4, 32)
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(np.tile(rng.standard_normal(32), (1, 64, 1, 1)), jnp.float32) for _ in range(2))
    scores = np.einsum('mk,jk->mj', apply_rope(q, rope)[0, :, 0], apply_rope(k, rope)[0, :, 0]).reshape((4,) * 6)
    np.testing.assert_allclose(scores[0, 1, 2, 1, 1, 3], scores[2, 2, 1, 3, 2, 2], atol=1e-4)
    np.testing.assert_allclose(scores[3, 0, 1, 1, 3, 0], scores[2, 0, 2, 0, 3, 1], atol=1e-4)
    assert abs(scores[0, 0, 0, 1, 0, 0] - scores[0, 0, 0, 0, 1, 0]) > 1e-2  # the axes differ


def test_rope_keeps_norms_and_does_not_rotate_text():
    rope = rope_table(2, 3, 4, 32, num_text=5)
    assert rope.cos.shape == rope.sin.shape == (5 + 24, 32)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 29, 3, 32)), jnp.float32)
    turned = apply_rope(x, rope)
    np.testing.assert_array_equal(turned[:, :5], x[:, :5])
    np.testing.assert_array_equal(turned[:, 5], x[:, 5])  # the first patch is at 0, 0, 0
    assert np.abs(turned[:, 6:] - x[:, 6:]).max() > 0.1
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)


def test_rope_table_depends_on_the_grid():
    # The official code keeps the first table it made: 3x4 after 4x3 is silently wrong there.
    first, second = rope_table(1, 4, 3, 16), rope_table(1, 3, 4, 16)
    assert np.abs(first.cos - second.cos).max() > 0.1


def test_rope_returns_float32():
    x = jnp.ones((1, 4, 1, 16), jnp.bfloat16)
    assert apply_rope(x, rope_table(1, 2, 2, 16)).dtype == jnp.float32


@pytest.mark.parametrize('form', [rope_lib._swap_by_roll, rope_lib._swap_by_matmul, rope_lib.swap_pairs])
def test_rope_swap_pairs_is_exact(form):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 3, 32)) * 1e3, jnp.float32)
    np.testing.assert_array_equal(form(x).reshape(-1, 2), x.reshape(-1, 2)[:, ::-1])
