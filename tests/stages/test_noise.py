"""The keys and the noise of a batch's examples."""

import jax
import numpy as np

from fv_jax.stages import noise


def data(keys):
    return np.asarray(jax.random.key_data(keys))


def test_per_example_keys_depend_on_seed_step_and_index_alone():
    key = jax.random.key(0)
    four, eight = noise.per_example_keys(key, 3, 4), noise.per_example_keys(key, 3, 8)
    np.testing.assert_array_equal(data(four), data(eight)[:4])
    assert len(np.unique(data(eight), axis=0)) == 8
    assert not np.any(np.all(data(noise.per_example_keys(key, 4, 8)) == data(eight), axis=1))
    assert not np.any(np.all(data(noise.per_example_keys(jax.random.key(1), 3, 8)) == data(eight), axis=1))


def test_per_example_keys_are_the_same_under_jit():
    key = jax.random.key(5)
    jitted = jax.jit(lambda step: noise.per_example_normal(noise.per_example_keys(key, step, 3), (3, 4, 2)))
    np.testing.assert_array_equal(jitted(7), noise.per_example_normal(noise.per_example_keys(key, 7, 3), (3, 4, 2)))


def test_per_example_normal_is_independent_and_unit_normal():
    drawn = np.asarray(noise.per_example_normal(noise.per_example_keys(jax.random.key(0), 0, 4), (4, 100, 100)))
    assert drawn.dtype == np.float32
    assert abs(drawn.mean()) < 0.02 and abs(drawn.std() - 1) < 0.02
    assert np.abs(np.corrcoef(drawn.reshape(4, -1)) - np.eye(4)).max() < 0.05
