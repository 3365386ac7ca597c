"""Guidance: its formula, its order, and what it does not evaluate."""

import jax.numpy as jnp
import numpy as np
import pytest

from fv_jax.diffusion import guidance
from fv_jax.diffusion.time_grids import Times

TIME = Times(jnp.float32(0.5), jnp.float32(500))


def field(x, time, cond):
    return x * cond[:, None] + time.t


def with_cond(fn, cond):
    return lambda x, time: fn(x, time, cond)


def test_guidance_formula():
    x = jnp.arange(6.0).reshape(2, 3)
    guided = guidance.classifier_free(lambda x, time: 3 * x, lambda x, time: x + time.t, 13.0)
    np.testing.assert_allclose(guided(x, TIME), x + 0.5 + 13 * (2 * x - 0.5))


@pytest.mark.parametrize('cond_first', [True, False])
def test_guidance_batched_equals_two_evaluations(cond_first):
    x = jnp.arange(6.0).reshape(2, 3)
    cond, null = jnp.array([2.0, 5.0]), jnp.zeros(2)
    seen = []

    def fn(x, time, cond):
        seen.append(np.asarray(cond))
        return field(x, time, cond)

    one = guidance.classifier_free_batched(fn, cond, null, 4.0, cond_first=cond_first)(x, TIME)
    two = guidance.classifier_free(with_cond(field, cond), with_cond(field, null), 4.0)(x, TIME)
    np.testing.assert_allclose(one, two)
    assert seen[0].tolist() == ([2, 5, 0, 0] if cond_first else [0, 0, 2, 5])


@pytest.mark.parametrize('batched', [True, False])
def test_guidance_scale_one_is_the_conditional_prediction(batched):
    seen = []

    def fn(x, time, cond):
        seen.append(np.asarray(cond).tolist())
        return field(x, time, cond)

    cond, null, x = jnp.full(2, 3.0), jnp.zeros(2), jnp.ones((2, 3))
    if batched:
        guided = guidance.classifier_free_batched(fn, cond, null, 1.0)
    else:
        guided = guidance.classifier_free(with_cond(fn, cond), with_cond(fn, null), 1.0)
    np.testing.assert_array_equal(guided(x, TIME), field(x, TIME, cond))
    assert seen == [[3, 3]]


def test_guidance_can_be_nested():
    inner = guidance.classifier_free(lambda x, t: 2 * x, lambda x, t: x, 3.0)
    outer = guidance.classifier_free(inner, lambda x, t: 0 * x, 2.0)
    np.testing.assert_allclose(outer(jnp.ones(3), TIME), 8.0)


# Scales that depend on the timestep.


def test_guidance_official_scale_oscillates():
    """Model guide 5.2: of the timestep, not of the step's index; between 1 and 1 + scale."""
    table = guidance.guidance_schedule('official', 8.0, 5, 51)
    assert table.dtype == np.float64 and table.shape == (1000,)
    np.testing.assert_allclose(
        table[[999, 979, 959, 940, 920, 901]], [8.287, 4.004, 2.404, 5.046, 6.275, 2.003], atol=6e-4
    )
    assert table.min() >= 1 and table.max() <= 9
    assert np.sum(np.diff(np.sign(np.diff(table))) != 0) > 400  # up and down all the time


def test_guidance_official_scale_requires_float64():
    """The cosine's argument is of the order of 10^7 where one float32 is a radian from the next."""
    timesteps = np.arange(1000, dtype=np.float32)
    progress = (np.float32(51) - timesteps) / np.float32(51)
    single = 1 + 8 * (1 - np.cos(np.float32(np.pi) * progress**5)) / 2
    assert np.abs(single - guidance.guidance_schedule('official', 8.0, 5, 51)).max() > 1


def test_guidance_cosine_scale_rises_from_1_to_the_scale():
    table = guidance.guidance_schedule('cosine', 8.0, 5)
    assert np.all(np.diff(table) <= 0)  # by timestep: the data is at 0
    np.testing.assert_allclose(table[[999, 0]], [1, 8], atol=1e-3)
    np.testing.assert_allclose(guidance.guidance_schedule('cosine', 8.0, 1)[500], 4.5)
    np.testing.assert_array_equal(guidance.guidance_schedule('constant', 3.0), np.full(1000, 3.0))


def test_guidance_decreasing_scale_falls_from_the_scale_to_1():
    table = guidance.guidance_schedule('decreasing', 9.0, 2)
    assert np.all(np.diff(table) > 0)  # by timestep: the noise is at 999
    np.testing.assert_allclose(table[[999, 500, 0]], [9, 3, 1], atol=0.02)


@pytest.mark.parametrize(
    ('kind', 'scale', 'off'),
    [
        ('constant', 1, True),
        ('cosine', 1, True),
        ('decreasing', 1, True),
        ('official', 0, True),
        ('official', 1, False),
        ('constant', 2, False),
    ],
)
def test_is_unguided(kind, scale, off):
    table = guidance.guidance_schedule(kind, scale)
    assert guidance.is_unguided(table) == off
    rows = []

    def fn(x, time, cond):
        rows.append(len(x))
        return x

    guidance.classifier_free_batched(fn, jnp.ones(2), jnp.zeros(2), table)(jnp.ones((2, 3)), TIME)
    assert rows == [2 if off else 4]


@pytest.mark.parametrize(('timestep', 'entry'), [(0, 0), (499.6, 500), (999, 999), (1000, 999)])
def test_guidance_scale_is_that_of_the_nearest_timestep(timestep, entry):
    table = np.arange(1000.0)
    assert guidance.guidance_scale_at(table, Times(jnp.float32(0), jnp.float32(timestep))) == entry


@pytest.mark.parametrize('cond_first', [True, False])
def test_guidance_with_a_schedule(cond_first):
    x, cond, null = jnp.arange(6.0).reshape(2, 3), jnp.array([2.0, 5.0]), jnp.zeros(2)
    table = guidance.guidance_schedule('official', 8.0)
    two = guidance.classifier_free(with_cond(field, cond), with_cond(field, null), table)(x, TIME)
    one = guidance.classifier_free_batched(field, cond, null, table, cond_first=cond_first)(x, TIME)
    np.testing.assert_allclose(two, table[500] * x * cond[:, None] + 0.5, rtol=1e-6)
    np.testing.assert_allclose(one, two)
