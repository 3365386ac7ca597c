"""The T5 encoder: sizes, structure, masks; agreement with the official one is in tests/parity."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fv_jax.core import axes
from fv_jax.core.config import ConfigError, build, to_dict
from fv_jax.core.parallel_context import ParallelContext
from fv_jax.kernels.attention import attention
from fv_jax.models.t5 import T5, T5Config, relative_buckets
from tests.small_text import SMALL, random_t5

IDS = np.random.default_rng(0).integers(1, SMALL.vocab_size, (2, 8)).astype(np.int32)


@pytest.fixture(scope='module')
def run():
    graphdef, params = nnx.split(random_t5())
    compiled = jax.jit(lambda params, ids, mask: nnx.merge(graphdef, params)(ids, mask))
    return lambda ids, mask=None: np.asarray(compiled(params, ids, mask))


def test_t5_accepts_numpy_arrays():
    model, ids = random_t5(), np.array([[5, 3, 1, 0]], np.int32)
    mask = ids != 0
    np.testing.assert_array_equal(model(ids, mask), model(jnp.asarray(ids), jnp.asarray(mask)))


def test_t5_xxl_number_of_parameters():
    abstract = nnx.eval_shape(lambda: T5(T5Config(), rngs=nnx.Rngs(0)))
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(nnx.state(abstract))) == 4_762_310_656


def test_t5_parameters_have_logical_axes_and_dtype():
    config = dataclasses.replace(SMALL, param_dtype='bfloat16')
    flat = nnx.to_flat_state(nnx.state(nnx.eval_shape(lambda: T5(config, rngs=nnx.Rngs(0)))))
    known = {value for name, value in vars(axes).items() if name.isupper()} | {None}
    assert len(flat) == 12
    for path, leaf in flat:
        names = leaf.get_metadata('axes')
        assert leaf.dtype == jnp.bfloat16 and len(names) == len(leaf.shape) and set(names) <= known, path
        assert (names[0] == axes.LAYERS) == (path[0] == 'blocks'), path


def test_t5_relative_position_buckets():
    """Known by hand: 16 a side; 0-7 exact; then 16, 32 and 64 begin buckets 10, 12 and 14; 128 and more is the last."""
    buckets = relative_buckets(400, 32, 128)
    distances = (0, 1, 7, 8, 11, 12, 15, 16, 22, 23, 31, 32, 63, 64, 90, 91, 127, 128, 399)
    expected = np.array([0, 1, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 13, 14, 14, 15, 15, 15, 15])
    np.testing.assert_array_equal(buckets[399, 399 - np.array(distances)], expected)  # keys before the query
    after = buckets[0, list(distances)]
    np.testing.assert_array_equal(after[1:], expected[1:] + 16)
    assert after[0] == 0
    np.testing.assert_array_equal(buckets[1:, 1:], buckets[:-1, :-1])  # only the difference of positions counts


def test_t5_few_buckets_and_short_texts():
    assert relative_buckets(1, 32, 128).tolist() == [[0]]
    assert relative_buckets(5, 4, 2)[0].tolist() == [0, 3, 3, 3, 3]
    assert relative_buckets(5, 4, 2)[4].tolist() == [1, 1, 1, 1, 0]


def test_t5_without_mask_attends_to_padding(run):
    changed = IDS.copy()
    changed[:, -1] = 0
    assert (np.abs(run(IDS) - run(changed))[:, :-1].max(axis=(1, 2)) > 1e-3).all()
    padded = np.abs(run(changed) - run(changed, (changed != 0).astype(np.int32)))[:, :-1]
    assert (padded.max(axis=(1, 2)) > 1e-3).all()
    np.testing.assert_allclose(run(IDS, np.ones_like(IDS)), run(IDS), atol=1e-6)


def test_t5_mask_hides_padding(run):
    mask = np.array([[1, 1, 1, 1, 0, 0, 1, 0], [1, 1, 1, 1, 1, 1, 1, 1]], np.int32)
    out, other = run(IDS, mask), run(np.where(mask, IDS, 3), mask)
    np.testing.assert_array_equal(out[mask == 1], other[mask == 1])
    assert np.abs(out - other)[mask == 0].max() > 1e-3


def test_t5_bias_depends_on_relative_positions_only(run):
    """A text in the middle of hidden tokens is what it is at the start."""
    ids = np.zeros((2, 2, 8), np.int32)
    ids[0, :, :4] = ids[1, :, 3:7] = IDS[:, :4]
    start, middle = (run(row, (row != 0).astype(np.int32)) for row in ids)
    np.testing.assert_allclose(middle[:, 3:7], start[:, :4], atol=1e-5)
    assert np.abs(run(IDS[:, ::-1])[:, ::-1] - run(IDS)).max() > 1e-2  # but order does matter


def test_t5_in_bfloat16_is_close_to_float32(run):
    model = random_t5(dataclasses.replace(SMALL, dtype='bfloat16'))
    exact, near = run(IDS), jax.jit(model)(jnp.asarray(IDS))
    assert near.dtype == jnp.float32
    error = np.sqrt(np.mean((near - exact) ** 2) / np.mean(exact**2))
    assert 1e-5 < error < 0.05


def test_t5_uses_the_parallel_context():
    seen = set()

    def constrain(x, names):
        assert len(names) == x.ndim
        seen.update(names)
        return x

    jax.eval_shape(lambda ids: random_t5()(ids, context=ParallelContext(attention, constrain)), IDS)
    assert seen == {axes.ACT_BATCH, axes.ACT_EMBED, axes.ACT_HEADS, axes.ACT_MLP, None}


@pytest.mark.parametrize(
    ('field', 'words'),
    [
        ({'num_heads': 0}, 'num_heads=0: must be at least 1'),
        ({'num_buckets': 30}, 'num_buckets=30: must be a multiple of 4'),
        ({'max_distance': 8}, 'max_distance=8: must be above 8'),
        ({'norm_eps': 0.0}, 'norm_eps=0.0: must be positive'),
        ({'dtype': 'float16'}, 'dtype=float16: must be one of float32, bfloat16'),
    ],
)
def test_t5_config_refuses_invalid_values(field, words):
    with pytest.raises(ConfigError, match=words):
        T5Config(**field)


def test_t5_config_round_trip():
    assert build(T5Config, to_dict(SMALL)) == SMALL
