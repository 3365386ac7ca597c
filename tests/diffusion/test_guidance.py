"""Guidance: its formula, its order, and what it does not evaluate."""

import jax.numpy as jnp
import numpy as np
import pytest

from fv_jax.diffusion import guidance
from fv_jax.diffusion.times import Times

TIME = Times(jnp.float32(0.5), jnp.float32(500))


def field(x, time, cond):
    return x * cond[:, None] + time.t


def with_cond(fn, cond):
    return lambda x, time: fn(x, time, cond)


def test_formula():
    x = jnp.arange(6.0).reshape(2, 3)
    guided = guidance.classifier_free(lambda x, time: 3 * x, lambda x, time: x + time.t, 13.0)
    np.testing.assert_allclose(guided(x, TIME), x + 0.5 + 13 * (2 * x - 0.5))


@pytest.mark.parametrize('cond_first', [True, False])
def test_batched_equals_two_evaluations(cond_first):
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
def test_scale_one_is_off(batched):
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


def test_guidance_of_guidance_is_a_function_of_the_same_kind():
    inner = guidance.classifier_free(lambda x, t: 2 * x, lambda x, t: x, 3.0)
    outer = guidance.classifier_free(inner, lambda x, t: 0 * x, 2.0)
    np.testing.assert_allclose(outer(jnp.ones(3), TIME), 8.0)
