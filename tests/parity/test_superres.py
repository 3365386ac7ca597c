"""Stage 2's loss, gradients and sampling against the official ones (model guide 5.3 and 7).

Official layout (B, T, C, H, W) and time from source to data; ours BFHWC and the other way. The latents in these files
are scaled already, so the stage's scale factor is 1 here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fv_jax.diffusion import process, time_grids
from fv_jax.kernels.attention import SINGLE_DEVICE
from fv_jax.stages.latent_stage import NoisedPair
from fv_jax.stages.super_res import SuperRes, SuperResConfig
from fv_jax.weights import load_official
from fv_jax.weights.layouts import official_dit as dit_weights

TRAJECTORY, GRADIENT = 1e-3, 1e-4
TIMESTEP = 1e-4  # one rounding of a float32 number near 1000 is 6e-5


def ours(x):
    return np.moveaxis(x, -3, -1)


def assert_close(got, expected, atol):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


@pytest.fixture(scope='module')
def model(official):
    return load_official(official / 'stage2.pt')


def make_stage(model, **fields):
    return SuperRes(SuperResConfig(scale_factor=1.0, **fields), model.config)


# Training.


@pytest.fixture(scope='module')
def train(official):
    with np.load(official / 'train_loss_io.npz') as file:
        return dict(file)


@pytest.fixture(scope='module')
def train_stage(train, model):
    return make_stage(model, noise_augmentation_timestep=int(train['ref_noise_step']), shift=float(train['shift_t']))


@pytest.fixture(scope='module')
def loss_and_gradients(train_stage, model):
    graphdef, params = nnx.split(model)

    def loss(params, noised):
        return train_stage.loss(nnx.merge(graphdef, params), noised, context=SINGLE_DEVICE)[0]

    compiled = jax.jit(jax.value_and_grad(loss))
    return lambda noised: compiled(params, noised)


def noise_batch(train, train_stage, t_B, rows=slice(None)):
    noise, z_low = (jnp.asarray(ours(train[name][rows])) for name in ('ref_noise', 'ref_latent'))
    return NoisedPair(
        source_BFHWC=train_stage.make_source(z_low, noise),
        data_BFHWC=jnp.asarray(ours(train['x_hr'][rows])),
        text_BLD=jnp.asarray(train['context'][rows]),
        t_B=jnp.asarray(t_B, jnp.float32),
        noise_augmentation_timestep_B=jnp.full(z_low.shape[0], int(train['ref_noise_step'])),
    )


@pytest.fixture(scope='module')
def shifted(train, train_stage, loss_and_gradients):
    """The noised batch at the times of `u` with the shift, its loss and its gradients."""
    noised = noise_batch(train, train_stage, time_grids.shift_times(1 - train['u'], float(train['shift_t'])))
    return noised, *loss_and_gradients(noised)


def test_superres_parity_of_times(train, shifted):
    t_B = shifted[0].t_B
    assert_close(1 - t_B, train['t'], 1e-6)
    assert_close(1000 * t_B, train['net_timesteps'], TIMESTEP)


def test_superres_parity_of_source_x_t_and_target(train, shifted):
    noised = shifted[0]
    assert_close(noised.source_BFHWC, ours(train['ref_noised']), 1e-6)
    x_t = process.interpolate(noised.source_BFHWC, noised.data_BFHWC, noised.t_B)
    assert_close(x_t, ours(train['xt']), 2e-6)
    assert_close(-process.velocity(noised.source_BFHWC, noised.data_BFHWC), ours(train['target']), 2e-6)


def test_superres_parity_of_the_loss(train, shifted):
    np.testing.assert_allclose(shifted[1], train['loss'], rtol=1e-5)


def test_superres_parity_of_gradients(train, model, shifted):
    rows = {key: row for row in dit_weights.table(model.config) for key, _ in row.official}
    grads = {'.'.join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(shifted[2])}
    names = [name.removeprefix('grad__') for name in train if name.startswith('grad__')]
    assert len(names) >= 13
    for name in names:
        row, layer = find_mapping(rows, dit_weights.PREFIX + name)
        expected = row.to_ours(train[f'grad__{name}'])
        got = np.asarray(grads[row.path] if layer is None else grads[row.path][layer])
        error = np.abs(got.reshape(expected.shape) - expected).max() / np.abs(expected).max()
        assert error < GRADIENT, f'{name}: off by {error:.1e} of its maximum'


def find_mapping(rows, key):
    """Returns the row of the table for an official key, and which layer of a stacked parameter it is."""
    if key in rows:
        return rows[key], None
    parts = key.split('.')
    for i, part in enumerate(parts):
        pattern = '.'.join([*parts[:i], '{i}', *parts[i + 1 :]])
        if part.isdigit() and pattern in rows:
            return rows[pattern], int(part)
    raise KeyError(key)


def test_superres_parity_of_the_gradient_norm(train, shifted):
    norm = np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(shifted[2])))
    np.testing.assert_allclose(norm, train['grad_global_norm'], rtol=1e-4)


def test_superres_parity_of_the_loss_without_shift(train, train_stage, loss_and_gradients):
    noised = noise_batch(train, train_stage, 1 - train['u'])
    assert_close(1000 * noised.t_B, train['noshift_net_timesteps'], TIMESTEP)
    assert_close(
        process.interpolate(noised.source_BFHWC, noised.data_BFHWC, noised.t_B), ours(train['noshift_xt']), 2e-6
    )
    np.testing.assert_allclose(loss_and_gradients(noised)[0], train['noshift_loss'], rtol=1e-5)


def test_superres_parity_of_the_loss_at_stratified_times(train, train_stage, loss_and_gradients):
    """The official stratification repeats one row at the times (i + t) / k; ours gives each row a stratum."""
    timesteps = train['interval2_net_timesteps']
    noised = noise_batch(train, train_stage, timesteps / 1000, rows=[0] * len(timesteps))
    assert_close(
        process.interpolate(noised.source_BFHWC, noised.data_BFHWC, noised.t_B), ours(train['interval2_xt']), 2e-6
    )
    np.testing.assert_allclose(loss_and_gradients(noised)[0], train['interval2_loss'], rtol=1e-5)


# Sampling.


@pytest.fixture(scope='module')
def sample(official):
    with np.load(official / 'sampler_stage2.npz') as file:
        return dict(file)


@pytest.fixture(scope='module', params=['a', 'b'])
def run(request, sample, model):
    """One official run and the stage that repeats it."""
    data = {key.removeprefix(f'{request.param}_'): value for key, value in sample.items()}
    stage = make_stage(
        model,
        noise_augmentation_timestep=int(sample['ref_step']),
        shift=float(data['shift_t']),
        guidance_scale=float(data['cfg']),
        num_steps=int(data['num_steps']),
    )
    text = jnp.asarray(sample['context'])
    graphdef, params = nnx.split(model)

    @jax.jit
    def velocity(params, x, time):
        return stage.velocity_fn(nnx.merge(graphdef, params), text, context=SINGLE_DEVICE)(x, time)

    @jax.jit
    def integrate(params, source):
        return stage.trajectory(nnx.merge(graphdef, params), source, text, context=SINGLE_DEVICE).integrate()

    return data, stage, lambda x, time: velocity(params, x, time), lambda source: integrate(params, source)


def test_superres_parity_of_the_sampling_source(run, sample):
    data, stage, _, _ = run
    assert bool(np.all(data['cond_first']))  # the order that the stage stacks them in
    assert_close(stage.make_source(ours(sample['ref_x']), ours(data['ref_noise'])), ours(data['x0_noised_ref']), 1e-6)


def test_superres_parity_of_every_step(run):
    """Each official state, through our velocity and Euler's step, gives the next official state."""
    data, stage, velocity, _ = run
    grid = time_grids.flow_time_grid(stage.config.num_steps, stage.config.shift)
    assert_close(1 - grid.t[:-1], data['t'], 1e-6)
    assert_close(grid.timestep[:-1], data['net_timesteps'][:, 0], TIMESTEP)
    states = [*data['x'], data['final']]
    for i in range(stage.config.num_steps):
        v = velocity(jnp.asarray(ours(states[i])), time_grids.Times(grid.t[i], grid.timestep[i]))
        assert_close(-v, ours(data['v'][i]), TRAJECTORY)
        assert_close(ours(states[i]) + (grid.t[i + 1] - grid.t[i]) * v, ours(states[i + 1]), TRAJECTORY)


def test_superres_parity_of_the_trajectory(run):
    """One solve, from the official source to the last state."""
    data, _, _, integrate = run
    assert_close(integrate(jnp.asarray(ours(data['x0_noised_ref']))), ours(data['final']), TRAJECTORY)


def test_superres_parity_of_intermediate_states(run):
    """The same trajectory step by step, so that errors add up from the source on."""
    data, stage, velocity, _ = run
    grid = time_grids.flow_time_grid(stage.config.num_steps, stage.config.shift)
    x = jnp.asarray(ours(data['x0_noised_ref']))
    for i in range(stage.config.num_steps):
        assert_close(x, ours(data['x'][i]), TRAJECTORY)
        x = x + (grid.t[i + 1] - grid.t[i]) * velocity(x, time_grids.Times(grid.t[i], grid.timestep[i]))
    assert_close(x, ours(data['final']), TRAJECTORY)
