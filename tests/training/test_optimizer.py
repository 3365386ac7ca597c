"""Learning rates at known steps, clipping, weight decay, the moving average."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fv_jax.core.config import ConfigError
from fv_jax.training.optimizer import OptimConfig, learning_rates, make_optimizer, update_ema

PEAK = 0.5


def rates(steps, **fields):
    schedule = learning_rates(OptimConfig(learning_rate=PEAK, **fields), 110)
    return [float(schedule(step)) for step in steps]


def test_schedule_constant():
    np.testing.assert_allclose(rates([0, 1, 109]), [PEAK] * 3)


@pytest.mark.parametrize('kind', ['constant', 'cosine'])
def test_schedule_warmup_rises_from_above_zero_to_the_peak(kind):
    got = rates(range(12), lr_schedule=kind, warmup_steps=10)
    np.testing.assert_allclose(got[:11], [PEAK * i / 10 for i in (*range(1, 11), 10)], rtol=1e-6)
    assert got[11] == PEAK if kind == 'constant' else got[11] < PEAK


def test_schedule_warmup_of_one_step():
    np.testing.assert_allclose(rates([0, 1, 2], warmup_steps=1), [PEAK] * 3)


def test_schedule_cosine_ends_at_the_final_ratio():
    got = rates([10, 60, 110, 200], lr_schedule='cosine', warmup_steps=10, final_lr_ratio=0.1)
    np.testing.assert_allclose(got, [PEAK, PEAK * 0.55, PEAK * 0.1, PEAK * 0.1], rtol=1e-5)


def tree(value, bias=None):
    return {'a': {'kernel': jnp.full((2, 2), value), 'bias': jnp.full(2, value if bias is None else bias)}}


def first_update(grads, params, **fields):
    tx = make_optimizer(OptimConfig(**{'learning_rate': 0.1, 'clip_norm': 1e9, **fields}), 10)
    return tx.update(grads, tx.init(params), params)[0]


def test_weight_decay_applies_to_kernels_only():
    """Without a gradient only the decay is left: -rate * decay * p."""
    update = first_update(tree(0.0), tree(2.0), weight_decay=0.5)['a']
    np.testing.assert_allclose(update['kernel'], -0.1 * 0.5 * 2.0, rtol=1e-6)
    np.testing.assert_array_equal(update['bias'], 0)


def test_gradient_clipping_by_global_norm():
    """Six ones have norm sqrt(6). Adam itself is blind to the scale: an eps far above it shows what came in."""
    eps, clip = 1e6, 0.1
    for size, expected in ((1.0, clip / np.sqrt(6)), (0.01, 0.01)):
        update = first_update(tree(size), tree(0.0), clip_norm=clip, eps=eps, learning_rate=1.0)['a']
        for part in update.values():
            np.testing.assert_allclose(part, -expected / eps, rtol=1e-4)


def test_adamw_uses_the_configured_betas():
    fields = {'b1': 0.5, 'b2': 0.75, 'eps': 1e-3}
    tx = make_optimizer(OptimConfig(learning_rate=1.0, clip_norm=1e9, **fields), 10)
    expected = optax.adam(1.0, **fields)
    params, state, other = tree(1.0), tx.init(tree(1.0)), expected.init(tree(1.0))
    for size in (1.0, -3.0, 0.2):
        update, state = tx.update(tree(size), state, params)
        wanted, other = expected.update(tree(size), other, params)
        np.testing.assert_allclose(update['a']['kernel'], wanted['a']['kernel'], rtol=1e-6)


def test_ema_decay_starts_low_and_reaches_its_limit():
    ema, params = {'p': jnp.asarray(1.0)}, {'p': jnp.asarray(3.0)}
    for step, decay in ((0, 0.1), (8, 0.5), (10_000, 0.9)):
        got = update_ema(ema, params, 0.9, jnp.asarray(step))['p']
        np.testing.assert_allclose(got, decay * 1 + (1 - decay) * 3, rtol=1e-6)


def test_ema_is_float32():
    got = update_ema({'p': jnp.ones(2)}, {'p': jnp.ones(2, jnp.bfloat16)}, 0.9, jnp.asarray(0))
    assert got['p'].dtype == jnp.float32


@pytest.mark.parametrize('algorithm', ['adamw', 'muon'])
def test_momentum_dtype_bfloat16(algorithm):
    """The first update does not depend on what is kept; the second moment and the update itself are float32."""
    params, grads = stack(('kernel', (8, 24)), ('bias', (24,))), stack(('kernel', (8, 24)), ('bias', (24,)))
    half, whole = (
        make_optimizer(OptimConfig(algorithm, learning_rate=0.1, clip_norm=1e9, momentum_dtype=dtype), 10)
        for dtype in ('bfloat16', 'float32')
    )
    state, expected_state = half.init(params), whole.init(params)
    dtypes = {str(x.dtype) for x in jax.tree.leaves(state) if x.ndim}
    assert 'bfloat16' in dtypes and {str(x.dtype) for x in jax.tree.leaves(expected_state) if x.ndim} == {'float32'}
    for leaf, dtype in optax.tree.get_all_with_path(state, 'nu'):
        assert {x.dtype for x in jax.tree.leaves(dtype)} == {jnp.dtype('float32')}, leaf
    for _ in range(2):
        update, state = half.update(grads, state, params)
        expected, expected_state = whole.update(grads, expected_state, params)
    for a, b in zip(jax.tree.leaves(update), jax.tree.leaves(expected), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=0.02 * float(jnp.abs(b).max()))
    kept = [x.dtype for x in jax.tree.leaves(half.init(params))]
    assert [x.dtype for x in jax.tree.leaves(state)] == kept


@pytest.mark.parametrize(
    'field',
    [
        {'learning_rate': 0.0},
        {'clip_norm': float('nan')},
        {'b1': 1.0},
        {'ema_decay': -0.1},
        {'warmup_steps': -1},
        {'momentum_dtype': 'float16'},
    ],
)
def test_optim_config_refuses_values_out_of_range(field):
    (name,) = field
    with pytest.raises(ConfigError, match=f'{name}='):
        dataclasses.replace(OptimConfig(), **field)


def stack(*shapes):
    rng = np.random.default_rng(0)
    arrays = {name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in shapes}
    return {'a': arrays}


@pytest.mark.parametrize('shape', [(8, 24), (3, 8, 24), (3, 3, 4, 24), (3, 3, 3, 4, 24)])
def test_muon_updates_are_orthogonal_and_as_large_as_adamw(shape):
    """Its five iterations bring each singular value near 1, not to it: between 0.65 and 1.25 of the middle one."""
    params, grads = stack(('kernel', shape)), stack(('kernel', shape))
    update = np.asarray(first_update(grads, params, algorithm='muon')['a']['kernel'])
    matrices = update if len(shape) == 3 else update.reshape(1, -1, shape[-1])
    for matrix in matrices:
        values = np.linalg.svd(matrix, compute_uv=False)
        assert values.max() / values.min() < 1.25 / 0.65
    np.testing.assert_allclose(np.sqrt(np.mean(update**2)), 0.1 * 0.2, rtol=0.25)
    assert np.sum(update * np.asarray(grads['a']['kernel'])) < 0  # downhill


def test_muon_updates_each_layer_of_a_stack_by_itself():
    both = stack(('kernel', (2, 8, 24)))
    one = {'a': {'kernel': both['a']['kernel'][1]}}
    together = first_update(both, both, algorithm='muon')['a']['kernel'][1]
    np.testing.assert_allclose(together, first_update(one, one, algorithm='muon')['a']['kernel'], atol=1e-6)


def test_muon_uses_adamw_for_other_parameters():
    params = stack(('kernel', (8, 24)), ('bias', (24,)), ('scale', (2, 24)))
    update = first_update(params, params, algorithm='muon', b1=0.8)['a']
    tx = optax.adamw(0.1, b1=0.8, b2=OptimConfig().b2, weight_decay=0.0, nesterov=True)
    expected = tx.update(params, tx.init(params), params)[0]['a']
    for name in ('bias', 'scale'):
        np.testing.assert_array_equal(update[name], expected[name])
    assert not np.allclose(update['kernel'], expected['kernel'])
