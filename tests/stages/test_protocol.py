"""The keys of a batch's rows, and what stages share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fv_jax.stages import protocol


def data(keys):
    return np.asarray(jax.random.key_data(keys))


def test_a_rows_key_depends_on_seed_step_and_row_alone():
    key = jax.random.key(0)
    four, eight = protocol.row_keys(key, 3, 4), protocol.row_keys(key, 3, 8)
    np.testing.assert_array_equal(data(four), data(eight)[:4])
    assert len(np.unique(data(eight), axis=0)) == 8
    assert not np.any(np.all(data(protocol.row_keys(key, 4, 8)) == data(eight), axis=1))
    assert not np.any(np.all(data(protocol.row_keys(jax.random.key(1), 3, 8)) == data(eight), axis=1))


def test_keys_and_noise_are_the_same_under_jit_with_a_traced_step():
    key = jax.random.key(5)
    jitted = jax.jit(lambda step: protocol.row_normal(protocol.row_keys(key, step, 3), (3, 4, 2)))
    np.testing.assert_array_equal(jitted(7), protocol.row_normal(protocol.row_keys(key, 7, 3), (3, 4, 2)))


def test_noise_is_gaussian_and_each_row_has_its_own():
    noise = np.asarray(protocol.row_normal(protocol.row_keys(jax.random.key(0), 0, 4), (4, 100, 100)))
    assert noise.dtype == np.float32
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert np.abs(np.corrcoef(noise.reshape(4, -1)) - np.eye(4)).max() < 0.05


def test_videos_are_encoded_and_latents_are_left_alone():
    names = {'video': 'z'}
    batch = {'video': jnp.ones((1, 2)), 'text_BLD': jnp.zeros((1, 3, 4))}
    encoded = protocol.encode_videos(batch, names, lambda video: 2 * video)
    assert encoded.keys() == {'z', 'text_BLD'} and float(encoded['z'][0, 0]) == 2
    assert protocol.encode_videos(encoded, names, None) == encoded
    with pytest.raises(ValueError, match='the batch holds video and this stage was made without an encoder'):
        protocol.encode_videos(batch, names, None)


def test_text_or_zeros():
    text = jnp.ones((1, 3, 4), jnp.bfloat16)
    assert protocol.text_or_zeros({'text_BLD': text}, (1, 9, 9)).dtype == jnp.float32
    np.testing.assert_array_equal(protocol.text_or_zeros({}, (1, 2, 3)), np.zeros((1, 2, 3)))
