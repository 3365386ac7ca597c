"""Stage 2 in closed form: signs, shifts, scales, draws. The official numbers are in tests/parity/test_superres.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fv_jax.core.config import ConfigError, build, to_dict
from fv_jax.core.parallel_context import ParallelContext
from fv_jax.diffusion import noise_schedules, time_grids
from fv_jax.models.dit import DiTConfig
from fv_jax.stages.noise import per_example_keys
from fv_jax.stages.super_res import SuperRes, SuperResConfig

DIT = DiTConfig(embed_dim=64, num_layers=1, num_heads=1, mlp_dim=64, cond_dim=16, text_dim=8)
CONTEXT = ParallelContext(attention=lambda q, k, v: v)  # no network with attention is called with these
SHAPE = (4, 2, 4, 4, 16)


def stage(**fields):
    return SuperRes(SuperResConfig(text_length=5, **fields), DIT)


def batch(seed=0):
    z_high, z_low = jax.random.normal(jax.random.key(seed), (2, *SHAPE))
    return {'z_high_BFHWC': z_high, 'z_low_BFHWC': z_low}


def keys(step=0):
    return per_example_keys(jax.random.key(1), step, SHAPE[0])


class Recorder:
    """A fake network: records its inputs and returns `answer(x, timestep)`."""

    def __init__(self, answer):
        self.answer, self.calls = answer, []

    def __call__(self, x, timestep, text, noise_augmentation_timestep=None, *, context):
        self.calls.append(
            {'x': x, 'timestep': timestep, 'text': text, 'noise_augmentation_timestep': noise_augmentation_timestep}
        )
        return self.answer(x, timestep)


def test_super_res_loss_of_an_exact_network_is_zero():
    """Tests the sign, in closed form: the official network's target is data - source."""
    here = stage()
    noised = here.sample_noise_and_time(batch(), keys())
    loss, metrics = here.loss(Recorder(lambda x, t: noised.data_BFHWC - noised.source_BFHWC), noised, context=CONTEXT)
    assert loss == 0 and loss.dtype == jnp.float32 and loss.shape == ()
    wrong, _ = here.loss(Recorder(lambda x, t: noised.source_BFHWC - noised.data_BFHWC), noised, context=CONTEXT)
    np.testing.assert_allclose(wrong, 4 * metrics['target_norm'] ** 2, rtol=1e-5)
    np.testing.assert_allclose(metrics['velocity_norm'], metrics['target_norm'])


@pytest.mark.parametrize('sampler', ['euler', 'heun', 'rk4'])
def test_super_res_integrates_the_official_velocity_to_the_data(sampler):
    here = stage(sampler=sampler, guidance_scale=1.0)
    source, data = jax.random.normal(jax.random.key(0), (2, *SHAPE))
    out = here.trajectory(
        Recorder(lambda x, t: data - source), source, jnp.zeros((4, 5, 8)), context=CONTEXT
    ).integrate()
    np.testing.assert_allclose(out, data, atol=1e-5)


def test_super_res_network_inputs():
    here = stage()
    noised = here.sample_noise_and_time(batch(), keys())
    model = Recorder(lambda x, t: jnp.zeros_like(x))
    loss, _ = here.loss(model, noised, context=CONTEXT)
    (call,) = model.calls
    t = np.asarray(noised.t_B)[:, None, None, None, None]
    np.testing.assert_allclose(call['x'], t * noised.source_BFHWC + (1 - t) * noised.data_BFHWC, atol=1e-6)
    np.testing.assert_allclose(call['timestep'], 1000 * noised.t_B)
    np.testing.assert_array_equal(call['noise_augmentation_timestep'], np.full(4, 675.0))
    np.testing.assert_allclose(loss, np.mean((np.asarray(noised.source_BFHWC) - noised.data_BFHWC) ** 2), rtol=1e-6)


def test_super_res_times_have_the_official_distribution():
    """Official: u uniform, t' = 1 - s(1-u)/(1+(s-1)(1-u)), 0 at the source. Ours is 1 - t', u stratified."""
    t = np.asarray(stage(shift=2.5).sample_noise_and_time(batch(), keys()).t_B, np.float64)
    plain = np.asarray(stage(shift=1.0).sample_noise_and_time(batch(), keys()).t_B, np.float64)
    u = 1 - plain
    assert np.floor(4 * u).tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(1 - t, 1 - 2.5 * (1 - u) / (1 + 1.5 * (1 - u)), atol=1e-6)
    assert np.all(t > plain)  # towards the source


def test_super_res_source_is_noise_augmented():
    here = stage(scale_factor=2.0)
    z, noise = jax.random.normal(jax.random.key(0), (2, *SHAPE))
    a = noise_schedules.sqrt_alphas_by_timestep(1.0)[675]
    np.testing.assert_allclose(here.make_source(z, noise), a * 2 * z + np.sqrt(1 - a**2) * noise, atol=1e-6)
    steps = jnp.array([0, 100, 675, 999])
    per_row = here.make_source(z, noise, steps)
    np.testing.assert_array_equal(per_row[3], noise[3])  # no signal is left at 999
    np.testing.assert_allclose(per_row[0], 2 * z[0], atol=0.2)
    np.testing.assert_array_equal(per_row[2], here.make_source(z, noise)[2])


def test_super_res_latents_are_scaled_once():
    here = stage(scale_factor=2.0, guidance_scale=1.0, noise_augmentation_timestep=999)
    given = batch()
    noised = here.sample_noise_and_time(given, keys())
    np.testing.assert_array_equal(noised.data_BFHWC, 2 * given['z_high_BFHWC'])
    out = here.sample(Recorder(lambda x, t: jnp.zeros_like(x)), given, keys(), context=CONTEXT)
    assert out.keys() == {'z_sample_BFHWC', 'z_high_BFHWC', 'z_low_BFHWC'}
    np.testing.assert_array_equal(out['z_low_BFHWC'], given['z_low_BFHWC'])
    assert abs(float(out['z_sample_BFHWC'].std()) - 0.5) < 0.05  # unit noise over the scale factor


def test_super_res_images_have_their_own_noise_augmentation_range():
    here = stage(noise_augmentation_timestep_range=(600, 750), image_noise_augmentation_timestep_range=(100, 110))
    clips = here.sample_noise_and_time(batch(), keys()).noise_augmentation_timestep_B
    images = here.sample_noise_and_time(
        {name: z[:, :1] for name, z in batch().items()}, keys()
    ).noise_augmentation_timestep_B
    assert clips.min() >= 600 and images.max() <= 110 and images.min() >= 100
    same = stage(noise_augmentation_timestep_range=(600, 750))
    assert same.noise_augmentation_timesteps(1) == same.noise_augmentation_timesteps(13) == (600, 750)


def test_super_res_noise_augmentation_timestep_per_example():
    here = stage(noise_augmentation_timestep=50, noise_augmentation_timestep_range=(20, 22))
    drawn = np.concatenate(
        [here.sample_noise_and_time(batch(), keys(step)).noise_augmentation_timestep_B for step in range(8)]
    )
    assert set(drawn.tolist()) == {20, 21, 22}
    assert all({20, 22} <= set(one.tolist()) for one in drawn.reshape(8, 4))  # stratified over the batch
    model = Recorder(lambda x, t: jnp.zeros_like(x))
    here.loss(model, here.sample_noise_and_time(batch(), keys()), context=CONTEXT)
    np.testing.assert_array_equal(model.calls[0]['noise_augmentation_timestep'], drawn[:4])
    a = noise_schedules.sqrt_alphas_by_timestep()[drawn[:4]][:, None, None, None, None]
    left = here.sample_noise_and_time(batch(), keys()).source_BFHWC - a * here.scale_latents(batch()['z_low_BFHWC'])
    np.testing.assert_allclose(
        left.var(axis=(1, 2, 3, 4)), 1 - a.ravel() ** 2, rtol=0.2
    )  # each row its own noise level


def test_super_res_noise_of_an_example_is_independent_of_the_batch():
    here = stage(noise_augmentation_timestep_range=(0, 999), caption_dropout=0.5)
    given = batch() | {'text_BLD': jnp.ones((4, 5, 8))}
    other = jax.tree.map(lambda x: x.at[0].set(7.0), given)
    one, two = here.sample_noise_and_time(given, keys()), here.sample_noise_and_time(other, keys())
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a[1:], b[1:])
    assert np.any(one.source_BFHWC[0] != two.source_BFHWC[0])


def test_super_res_caption_dropout():
    given = batch() | {'text_BLD': jnp.ones((4, 5, 8), jnp.bfloat16)}
    for rate, expected in ((0.0, 1.0), (1.0, 0.0)):
        text = stage(caption_dropout=rate).sample_noise_and_time(given, keys()).text_BLD
        assert text.dtype == jnp.float32
        np.testing.assert_array_equal(text, expected)
    here = stage(caption_dropout=0.25)
    rows = np.concatenate([here.sample_noise_and_time(given, keys(step)).text_BLD[:, 0, 0] for step in range(50)])
    assert set(rows.tolist()) == {0.0, 1.0} and abs(rows.mean() - 0.75) < 0.1


def test_super_res_without_text_uses_zeros():
    np.testing.assert_array_equal(stage().sample_noise_and_time(batch(), keys()).text_BLD, np.zeros((4, 5, 8)))


@pytest.mark.parametrize('batched', [True, False])
def test_super_res_guidance_is_against_zero_text(batched):
    here = stage(guidance_scale=13.0, guidance_batched=batched)

    def network(x, timestep, text, noise_augmentation_timestep, *, context):
        return x + text.sum((1, 2))[:, None, None, None, None]

    text = jnp.full((4, 5, 8), 0.01)
    out = here.velocity_fn(network, text, context=CONTEXT)(
        jnp.ones(SHAPE), time_grids.Times(jnp.float32(1), jnp.float32(1000))
    )
    np.testing.assert_allclose(out, -(1 + 13 * 0.4), rtol=1e-5)


@pytest.mark.parametrize(
    ('numerics', 'timesteps', 'noise_augmentation_timestep', 'dtype'),
    [
        ('exact', [1000, 1000 * 10 / 11, 1000 * 15 / 19, 625, 1000 * 5 / 13], 675, jnp.float32),
        ('official', [1000, 904, 784, 624, 384], 676, jnp.bfloat16),
    ],
)
def test_super_res_official_numerics(numerics, timesteps, noise_augmentation_timestep, dtype):
    here, seen = stage(numerics=numerics, guidance_scale=1.0), []

    def network(x, timestep, text, noise_augmentation_timestep, *, context):
        assert x.dtype == dtype
        jax.debug.callback(
            lambda *v: seen.append([float(i) for i in v]), timestep[0], noise_augmentation_timestep[0], ordered=True
        )
        return jnp.zeros_like(x)

    run = jax.jit(lambda source: here.trajectory(network, source, jnp.zeros((4, 5, 8)), context=CONTEXT).integrate())
    assert run(jnp.ones(SHAPE)).dtype == jnp.float32
    jax.effects_barrier()
    np.testing.assert_allclose([t for t, _ in seen], timesteps, rtol=1e-6)
    assert {s for _, s in seen} == {noise_augmentation_timestep}
    noised = here.sample_noise_and_time(batch(), keys())
    a = noise_schedules.sqrt_alphas_by_timestep()[675]  # the table is read at 675 in both
    np.testing.assert_allclose(
        np.var(noised.source_BFHWC - a * here.scale_latents(batch()['z_low_BFHWC'])), 1 - a**2, rtol=0.1
    )


def test_super_res_metrics_split_the_loss_by_half_of_t():
    here = stage()
    noised = here.sample_noise_and_time(batch(), keys())
    by_row = jnp.arange(4.0)[:, None, None, None, None]
    model = Recorder(lambda x, t: noised.data_BFHWC - noised.source_BFHWC + by_row)
    loss, metrics = here.loss(model, noised, context=CONTEXT)
    np.testing.assert_allclose(loss, (0 + 1 + 4 + 9) / 4, rtol=1e-5)
    np.testing.assert_allclose(metrics['loss_near_source'], (0 + 1) / 2, rtol=1e-5)  # rows 0 and 1 are drawn there
    np.testing.assert_allclose(metrics['loss_near_data'], (4 + 9) / 2, rtol=1e-5)


def test_super_res_trains_a_network():
    here = stage()
    model = here.init(nnx.Rngs(0))
    graphdef, params, rest = nnx.split(model, here.trainable(), ...)
    assert not jax.tree.leaves(rest)
    given = batch()

    def attention(q, k, v, num_tokens):
        return jax.nn.dot_product_attention(q, k, v)

    def loss(params):
        return here.loss(
            nnx.merge(graphdef, params, rest),
            here.sample_noise_and_time(given, keys()),
            context=ParallelContext(attention=attention),
        )

    (value, metrics), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(value, metrics['target_norm'] ** 2, rtol=1e-5)  # a new network is the zero function
    assert any(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(grads))
    assert all(v.shape == () for v in metrics.values())


def test_super_res_network_without_noise_augmentation_embedding():
    here = SuperRes(SuperResConfig(text_length=5), dataclasses.replace(DIT, embed_noise_augmentation_timestep=False))
    model = Recorder(lambda x, t: jnp.zeros_like(x))
    here.loss(model, here.sample_noise_and_time(batch(), keys()), context=CONTEXT)
    assert model.calls[0]['noise_augmentation_timestep'] is None


def test_super_res_refuses_latents_of_two_sizes():
    given = batch() | {'z_low_BFHWC': jnp.zeros((4, 2, 2, 3, 16))}
    with pytest.raises(ValueError, match=r'z_low is \(4, 2, 2, 3, 16\) and z_high \(4, 2, 4, 4, 16\)'):
        stage().sample_noise_and_time(given, keys())


def test_super_res_encode_encodes_videos_and_keeps_latents():
    given = batch()
    assert stage().encode(given) == given
    here = dataclasses.replace(stage(), encoder=lambda video: video[..., :1] + 1)
    videos = {'high_res_BFHWC': jnp.zeros((1, 1, 8, 8, 3)), 'low_res_BFHWC': jnp.ones((1, 1, 8, 8, 3))}
    encoded = here.encode(videos)
    assert encoded.keys() == {'z_high_BFHWC', 'z_low_BFHWC'}
    assert float(encoded['z_high_BFHWC'].max()) == 1 and float(encoded['z_low_BFHWC'].max()) == 2
    with pytest.raises(ValueError, match='no degraded variants'):
        stage().encode({'z_high_BFHWC': given['z_high_BFHWC']})


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'noise_augmentation_timestep': 1000}, 'noise_augmentation_timestep=1000: must be from 0 to 999'),
        (
            {'image_noise_augmentation_timestep_range': (0, 1000)},
            'image_noise_augmentation_timestep_range=(0, 1000): must be from 0 to 999',
        ),
        (
            {'noise_augmentation_timestep_range': (100, 20)},
            'noise_augmentation_timestep_range=(100, 20): must be from 0 to 999, the smaller first',
        ),
        ({'shift': 0.0}, 'shift=0.0: must be positive'),
        ({'caption_dropout': 1.5}, 'caption_dropout=1.5: must be from 0 to 1'),
        ({'num_steps': 0}, 'num_steps=0: must be positive'),
        ({'sampler': 'eular'}, "sampler=eular: must be one of euler, heun, rk4, for the prediction type 'flow'"),
        ({'numerics': 'bf16'}, 'numerics=bf16: must be one of exact, official'),
    ],
)
def test_super_res_config_refuses_invalid_values(fields, message):
    with pytest.raises(ConfigError) as error:
        SuperResConfig(**fields)
    assert str(error.value).startswith(message)


def test_super_res_config_round_trip():
    config = SuperResConfig(
        noise_augmentation_timestep=50, noise_augmentation_timestep_range=(20, 100), numerics='official'
    )
    assert build(SuperResConfig, to_dict(config)) == config
