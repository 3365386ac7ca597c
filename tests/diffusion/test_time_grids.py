"""The shift, the grid and the drawn times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fv_jax.diffusion import time_grids

UNIT = st.floats(0, 1, allow_subnormal=False)
SHIFTS = st.floats(0.1, 10)


@settings(deadline=None)
@given(UNIT, SHIFTS)
def test_time_shift_is_inverted_by_the_inverse_shift(w, shift):
    t = time_grids.shift_times(w, shift)
    assert 0 <= t <= 1 + 1e-12
    assert abs(time_grids.shift_times(t, 1 / shift) - w) < 1e-9


@settings(deadline=None)
@given(UNIT, SHIFTS)
def test_time_shift_equals_the_official_one_in_reversed_time(u, shift):
    official = 1 - shift * (1 - u) / (1 + (shift - 1) * (1 - u))  # 0 at the source
    assert abs(time_grids.shift_times(1 - u, shift) - (1 - official)) < 1e-9


def test_time_shift_moves_times_towards_the_source():
    w = np.linspace(0, 1, 11)
    t = time_grids.shift_times(w, 2.5)
    assert t[0] == 0 and t[-1] == 1 and np.all(t[1:-1] > w[1:-1])
    np.testing.assert_array_equal(time_grids.shift_times(w, 1.0), w)


def test_flow_time_grid_of_five_official_steps():
    exact = time_grids.flow_time_grid(5, 2.5)
    np.testing.assert_allclose(1 - exact.t, [0, 1 / 11, 4 / 19, 0.375, 8 / 13, 1], atol=1e-7)
    np.testing.assert_allclose(exact.timestep, 1000 * exact.t, rtol=1e-6)
    rounded = time_grids.flow_time_grid(5, 2.5, 'official')
    np.testing.assert_array_equal(rounded.timestep, [1000, 904, 784, 624, 384, 0])
    np.testing.assert_array_equal(1 - rounded.t, [0, 0.09375, 0.21484375, 0.375, 0.6171875, 1])
    np.testing.assert_array_equal(-np.diff(rounded.t), [0.09375, 0.12109375, 0.16015625, 0.2421875, 0.3828125])


@pytest.mark.parametrize(
    ('shift', 'timesteps'),
    [
        (1.0, [1000, 920, 832, 752, 664, 584, 500, 416, 336, 248, 168, 84, 0]),
        (2.7, [1000, 968, 932, 892, 844, 792, 728, 656, 576, 476, 352, 196, 0]),
    ],
)
def test_flow_time_grid_of_twelve_official_steps(shift, timesteps):
    """The table is what the official formula gives in bfloat16 on a CPU, where the spacing 1/12 is rounded too."""
    np.testing.assert_array_equal(time_grids.flow_time_grid(12, shift, 'official').timestep, timesteps)


@pytest.mark.parametrize('numerics', ['exact', 'official'])
@pytest.mark.parametrize('num_steps', [1, 2, 7, 50])
def test_flow_time_grid_decreases_from_source_to_data(numerics, num_steps):
    grid = time_grids.flow_time_grid(num_steps, 2.0, numerics)
    assert grid.t.shape == grid.timestep.shape == (num_steps + 1,)
    assert grid.t.dtype == grid.timestep.dtype == np.float32
    assert grid.t[0] == 1 and grid.t[-1] == 0 and grid.timestep[0] == 1000 and grid.timestep[-1] == 0
    assert np.all(np.diff(grid.t) < 0) and np.all(np.diff(grid.timestep) < 0)


def test_flow_time_grid_refuses_invalid_values():
    with pytest.raises(ValueError, match='num_steps=0'):
        time_grids.flow_time_grid(0)
    with pytest.raises(ValueError, match='shift=0'):
        time_grids.flow_time_grid(4, 0)


def test_embedded_timestep():
    assert time_grids.embedded_timestep(675) == 675
    assert time_grids.embedded_timestep(675, 'official') == 676
    assert time_grids.embedded_timestep(650, 'official') == 648
    assert time_grids.embedded_timestep(100, 'official') == 100


def test_stratified_times_have_one_in_each_stratum():
    keys = jax.random.split(jax.random.key(0), 16)
    u = 1 - np.asarray(time_grids.stratified_times(keys))
    assert np.floor(u * 16).astype(int).tolist() == list(range(16))
    shifted = np.asarray(time_grids.stratified_times(keys, 2.5))
    np.testing.assert_allclose(shifted, time_grids.shift_times(1 - u, 2.5), atol=1e-6)


def test_stratified_times_depend_on_the_keys_of_their_examples():
    keys = jax.random.split(jax.random.key(0), 4)
    other = jax.random.split(jax.random.key(1), 4).at[2].set(keys[2])
    one, two = time_grids.stratified_times(keys), time_grids.stratified_times(other)
    assert one[2] == two[2] and one[0] != two[0]


def test_stratified_times_have_the_shifted_distribution():
    keys = jax.random.split(jax.random.key(3), 4096)
    t = np.asarray(time_grids.stratified_times(keys, 2.5))
    assert t.min() >= 0 and t.max() <= 1
    for q in (0.25, 0.5, 0.75):
        np.testing.assert_allclose(np.quantile(t, q), time_grids.shift_times(q, 2.5), atol=2e-3)


def test_discretize_times_is_uniform_over_timesteps():
    middles = (np.arange(1000) + 0.5) / 1000
    np.testing.assert_array_equal(time_grids.discretize_times(jnp.asarray(middles, jnp.float32)), np.arange(1000))
    ends = time_grids.discretize_times(jnp.array([0.0, 1e-9, 1.0]))
    assert ends.tolist() == [0, 0, 999] and ends.dtype == jnp.int32
    drawn = time_grids.discretize_times(time_grids.stratified_times(jax.random.split(jax.random.key(0), 4000)))
    counts = np.bincount(np.asarray(drawn), minlength=1000)
    assert counts.sum() == 4000 and counts.min() >= 3 and counts.max() <= 5


def test_stratified_integers_cover_their_range():
    keys = jax.random.split(jax.random.key(0), 8)
    drawn = np.stack([time_grids.stratified_integers(keys, jax.random.key(step), 600, 900) for step in range(40)])
    assert drawn.dtype == np.int32 and drawn.min() >= 600 and drawn.max() <= 900
    parts = np.floor((np.sort(drawn, axis=1) - 600) / 301 * 8 + 1e-9)
    assert (np.abs(parts - np.arange(8)) <= 1).all()  # an integer may stand for the end of the part before
    # Every row meets every part: rows are already in order of t.
    assert all(len(set(column)) == 8 for column in drawn.T)


def test_stratified_integers_are_uniform():
    keys = jax.random.split(jax.random.key(1), 3000)
    drawn = np.asarray(time_grids.stratified_integers(keys, jax.random.key(0), 2, 4))
    assert np.bincount(drawn, minlength=5).tolist() == [0, 0, 1000, 1000, 1000]
    assert set(time_grids.stratified_integers(keys[:5], jax.random.key(0), 675, 675).tolist()) == {675}
    alone = [int(time_grids.stratified_integers(keys[i : i + 1], keys[i], 0, 9)[0]) for i in range(60)]
    assert set(alone) == set(range(10))
