"""Random numbers of a sample: of the row's seed alone, and none used twice."""

import jax
import numpy as np

from fv_jax.sampling.noise import SeededNoise

SHAPE = (2, 3, 4, 5, 6)


def draws(noise, shape):
    start, step = noise.preview(shape)
    return [start, step(0), step(1), noise.posterior(shape), noise.augmentation(shape)]


def test_noise_of_an_example_depends_on_its_seed_alone():
    together = draws(SeededNoise.from_seeds([7, 2**32 - 1]), SHAPE)
    alone = draws(SeededNoise.from_seeds([2**32 - 1]), (1, *SHAPE[1:]))
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a[1:], b)
        assert not np.allclose(a[0], a[1])


def test_noise_is_independent_and_unit_normal():
    noises = np.stack(draws(SeededNoise.from_seeds([0, 1]), SHAPE)).reshape(10, -1)
    assert np.abs(np.corrcoef(noises) - np.eye(10)).max() < 0.25
    assert abs(noises.mean()) < 0.05 and abs(noises.std() - 1) < 0.05


def test_noise_is_a_pytree():
    noise = SeededNoise.from_seeds([3])
    shape = (1, *SHAPE[1:])
    np.testing.assert_array_equal(jax.jit(lambda n: n.augmentation(shape))(noise), noise.augmentation(shape))
