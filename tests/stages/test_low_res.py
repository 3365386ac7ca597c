"""Stage 1 in closed form: draws, scales, guidance, noise. The official numbers are in tests/parity."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import stage1
from fv_jax.core.config import ConfigError, build, to_dict
from fv_jax.core.parallel_context import ParallelContext
from fv_jax.diffusion import guidance, noise_schedules, samplers, time_grids
from fv_jax.diffusion.time_grids import Times
from fv_jax.models.dit import STAGE1, DiTConfig
from fv_jax.models.lora import LoRAConfig
from fv_jax.stages.low_res import LowRes, LowResConfig
from fv_jax.stages.noise import per_example_keys, sampler_noise
from fv_jax.stages.registry import StageConfig
from tests.diffusion.fixed_noise import fixed_noise

DIT = DiTConfig(
    embed_dim=64,
    num_layers=1,
    num_heads=1,
    mlp_dim=64,
    cond_dim=16,
    text_dim=8,
    embed_num_frames=False,
    embed_noise_augmentation_timestep=False,
)
CONTEXT = ParallelContext(attention=lambda q, k, v: v)  # no network with attention is called with these
SHAPE = (4, 2, 4, 4, 16)
FLOW = {'prediction_type': 'flow', 'sampler': 'euler'}


def stage(**fields):
    return LowRes(LowResConfig(text_length=5, **fields), DIT)


def with_sampler(stage, **fields):
    return stage.with_sampler_config(dataclasses.replace(stage.sampler_config(), **fields))


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def batch():
    return {'z_high_BFHWC': normal(*SHAPE)}


def keys(step=0):
    return per_example_keys(jax.random.key(1), step, SHAPE[0])


class Recorder:
    """A fake network: records its inputs and returns `answer(x, timestep)`."""

    def __init__(self, answer):
        self.answer, self.calls = answer, []

    def __call__(self, x, timestep, text, *, context):
        self.calls.append({'x': x, 'timestep': timestep, 'text': text})
        return self.answer(x, timestep)


def dropout_fractions(timestep_B):
    a = noise_schedules.sqrt_alphas_by_timestep()[np.asarray(timestep_B)][:, None, None, None, None]
    return a, np.sqrt(1 - a**2)


def test_low_res_v_prediction_inputs_and_target():
    """The network sees x_k and k, whole numbers, one in each stratum of the global batch; its target is v."""
    here = stage()
    noised = here.sample_noise_and_time(batch(), keys())
    model = Recorder(lambda x, k: jnp.zeros_like(x))
    loss, metrics = here.loss(model, noised, context=CONTEXT)
    (call,) = model.calls
    assert call['timestep'].dtype == jnp.int32
    assert (np.asarray(call['timestep']) // 250).tolist() == [3, 2, 1, 0]
    a, s = dropout_fractions(call['timestep'])
    np.testing.assert_allclose(call['x'], a * noised.data_BFHWC + s * noised.noise_BFHWC, atol=1e-6)
    v = a * noised.noise_BFHWC - s * noised.data_BFHWC
    np.testing.assert_allclose(loss, np.mean(v**2), rtol=1e-5)
    np.testing.assert_allclose(metrics['target_norm'] ** 2, loss, rtol=1e-5)
    np.testing.assert_allclose((metrics['loss_near_noise'] + metrics['loss_near_data']) / 2, loss, rtol=1e-5)
    np.testing.assert_allclose(metrics['loss_near_noise'], np.mean(v[:2] ** 2), rtol=1e-5)
    right, _ = here.loss(Recorder(lambda x, k: jnp.asarray(v)), noised, context=CONTEXT)
    assert right.dtype == jnp.float32 and right.shape == () and right < 1e-12


def test_low_res_loss_is_the_weighted_x0_loss():
    """1 / (1 - a^2) on x0 = a x - sqrt(1 - a^2) v."""
    here = stage()
    noised = here.sample_noise_and_time(batch(), keys())
    model = Recorder(lambda x, k: jnp.sin(x))
    loss, _ = here.loss(model, noised, context=CONTEXT)
    (call,) = model.calls
    a, s = dropout_fractions(call['timestep'])
    x0 = a * np.asarray(call['x']) - s * np.sin(call['x'])
    np.testing.assert_allclose(loss, np.mean((x0 - noised.data_BFHWC) ** 2 / (1 - a**2)), rtol=1e-4)


def test_low_res_flow_inputs_and_target():
    here = stage(shift=2.0, **FLOW)
    noised = here.sample_noise_and_time(batch(), keys())
    model = Recorder(lambda x, t: noised.noise_BFHWC - noised.data_BFHWC)
    loss, _ = here.loss(model, noised, context=CONTEXT)
    assert loss == 0
    (call,) = model.calls
    t = np.asarray(noised.t_B)[:, None, None, None, None]
    np.testing.assert_allclose(call['x'], t * noised.noise_BFHWC + (1 - t) * noised.data_BFHWC, atol=1e-6)
    np.testing.assert_allclose(call['timestep'], 1000 * noised.t_B)
    w = noised.t_B / (2 - noised.t_B)  # shifted back, evenly spread
    assert np.floor(4 * np.asarray(w)).tolist() == [3, 2, 1, 0]


def test_low_res_noise_of_an_example_is_independent_of_the_batch():
    here = stage(caption_dropout=0.5)
    given = batch() | {'text_BLD': jnp.ones((4, 5, 8))}
    other = jax.tree.map(lambda x: x.at[0].set(7.0), given)
    one, two = here.sample_noise_and_time(given, keys()), here.sample_noise_and_time(other, keys())
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a[1:], b[1:])
    assert np.any(one.data_BFHWC[0] != two.data_BFHWC[0])
    assert abs(float(one.noise_BFHWC.std()) - 1) < 0.05
    assert np.any(here.sample_noise_and_time(given, keys(1)).noise_BFHWC != one.noise_BFHWC)


def test_low_res_caption_dropout():
    given = batch() | {'text_BLD': jnp.ones((4, 5, 8), jnp.bfloat16)}
    for rate, expected in ((0.0, 1.0), (1.0, 0.0)):
        text = stage(caption_dropout=rate).sample_noise_and_time(given, keys()).text_BLD
        assert text.dtype == jnp.float32
        np.testing.assert_array_equal(text, expected)
    noised = jax.jit(
        lambda step: stage(caption_dropout=0.25).sample_noise_and_time(given, keys(step)).text_BLD[:, 0, 0]
    )
    rows = np.concatenate([noised(step) for step in range(50)])
    assert set(rows.tolist()) == {0.0, 1.0} and abs(rows.mean() - 0.75) < 0.1
    np.testing.assert_array_equal(stage().sample_noise_and_time(batch(), keys()).text_BLD, np.zeros((4, 5, 8)))


@pytest.mark.parametrize('batched', [True, False])
def test_low_res_guidance_is_against_zero_text(batched):
    here = stage(guidance_batched=batched, num_steps=51)
    texts = []

    def network(x, timestep, text, *, context):
        texts.append(np.asarray(text[:, 0, 0]).tolist())
        assert timestep.shape == x.shape[:1]
        return (x + text.sum((1, 2))[:, None, None, None, None]).astype(jnp.bfloat16)

    text = jnp.full((4, 5, 8), 0.25)
    out = here.predict_fn(network, text, context=CONTEXT)(jnp.ones(SHAPE), Times(jnp.float32(0.999), jnp.float32(999)))
    w = guidance.guidance_schedule('official', 8.0, 5, 51)[999]
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, 1 + w * 10, rtol=1e-6)
    assert texts == ([[0] * 4 + [0.25] * 4] if batched else [[0.25] * 4, [0] * 4])


def test_low_res_official_guidance_steps():
    def scale(**fields):
        predict = stage(**fields).predict_fn(
            lambda x, k, text, *, context: text[:, :1, :1, None, None] + 0 * x, jnp.ones((1, 5, 8)), context=CONTEXT
        )
        return float(predict(jnp.zeros((1, 1, 1, 1, 1)), Times(jnp.float32(0.979), jnp.float32(979)))[0, 0, 0, 0, 0])

    assert scale(num_steps=20) == pytest.approx(guidance.guidance_schedule('official', 8.0, 5, 20)[979])
    assert scale(num_steps=20, guidance_steps=51) == pytest.approx(4.004, abs=1e-3)
    assert scale(guidance_exponent=3) == pytest.approx(guidance.guidance_schedule('official', 8.0, 3, 51)[979])
    assert scale(guidance_kind='cosine', guidance_scale=1.0) == 1


def exact_v_network(data, num_steps):
    """A network that knows the (scaled) data."""
    alphas = noise_schedules.denoiser_sqrt_alphas(noise_schedules.zero_snr_schedule(num_steps))

    def answer(x, timestep):
        a = jnp.asarray(alphas)[timestep.astype(jnp.int32)][:, None, None, None, None]
        return (a * x - data) / jnp.sqrt(1 - a**2)

    return answer


def test_low_res_sampling_with_an_exact_v_network():
    z = normal(*SHAPE)
    noise, step_noise = normal(*SHAPE, seed=1), normal(3, *SHAPE, seed=2)
    here = stage(scale_factor=2.0, num_steps=4, guidance_kind='constant', guidance_scale=1.0)
    for sampler in samplers.names('v_prediction'):
        model = Recorder(exact_v_network(2 * z, 4))
        sampled = with_sampler(here, sampler=sampler)
        x = sampled.trajectory(model, noise, jnp.zeros((4, 5, 8)), fixed_noise(step_noise), context=CONTEXT).integrate()
        out = sampled.unscale_latents(x)
        assert out.dtype == jnp.float32 and len(model.calls) == 1  # one trace: a scan
        np.testing.assert_allclose(out, z, atol=1e-5)


def test_low_res_sampling_with_an_exact_flow_network():
    z, noise = normal(*SHAPE), normal(*SHAPE, seed=1)
    here = stage(scale_factor=2.0, num_steps=4, guidance_scale=3.0, guidance_kind='constant', **FLOW)
    model = Recorder(lambda x, t: _data_and_noise(noise - 2 * z))
    out = here.unscale_latents(here.trajectory(model, noise, jnp.zeros((4, 5, 8)), None, context=CONTEXT).integrate())
    np.testing.assert_allclose(out, z, atol=1e-5)


@pytest.mark.parametrize('fields', [{'sampler': 'dpmpp_2m'}, FLOW])
def test_low_res_sampling_begins_at_a_noised_state(fields):
    """The scaled latents, at the level and the timestep of the state; then the timesteps of the sampler."""
    z, noise = normal(*SHAPE), normal(*SHAPE, seed=1)
    here = stage(scale_factor=2.0, num_steps=6, guidance_kind='constant', guidance_scale=1.0, **fields)
    model = Recorder(lambda x, t: jnp.zeros_like(x))

    class Given:
        def preview(self, shape):
            return noise, None

    inputs = {'z_high_BFHWC': z, 'text_BLD': jnp.zeros((4, 5, 8))}
    for first in (1, 4):
        from_state = dataclasses.replace(here, first_state=first)
        trajectory = from_state.sampling_trajectory(model, inputs, Given(), SHAPE, context=CONTEXT)
        assert trajectory.num_steps == from_state.num_sampler_steps == 6 - first
        assert from_state.num_function_evaluations() == 6 - first
        model.calls.clear()
        state = trajectory.start
        for i in range(trajectory.num_steps):
            state = trajectory.advance(state, i)
        if fields == FLOW:
            timesteps = time_grids.flow_time_grid(6).timestep
            a, s = 1 - timesteps[first] / 1000, timesteps[first] / 1000
        else:
            timesteps, alphas = noise_schedules.zero_snr_schedule(6)
            a, s = alphas[first], np.sqrt(1 - alphas[first] ** 2)
        np.testing.assert_allclose([float(call['timestep'][0]) for call in model.calls], timesteps[first:6], rtol=1e-6)
        np.testing.assert_allclose(model.calls[0]['x'], a * 2 * z + s * noise, atol=1e-6)
        np.testing.assert_allclose(from_state.noise_levels()[first], s / (a + s), rtol=1e-6)
    whole = here.sampling_trajectory(model, {'text_BLD': inputs['text_BLD']}, Given(), SHAPE, context=CONTEXT)
    start = whole.start if fields == FLOW else whole.start[0]
    np.testing.assert_array_equal(start, noise)


def test_low_res_without_guidance():
    assert stage().is_guided() and not stage().without_guidance().is_guided()
    assert stage().without_guidance().num_function_evaluations() * 2 == stage().num_function_evaluations()


def _data_and_noise(x):
    return jnp.concatenate([x, x])


def test_low_res_samples_depend_on_their_keys_alone():
    here = stage(num_steps=3, guidance_kind='constant', guidance_scale=1.0)
    model = Recorder(lambda x, k: jnp.tanh(x))

    def sample(rows):
        given = {'z_high_BFHWC': jnp.zeros((rows, *SHAPE[1:]))}
        return here.sample(model, given, per_example_keys(jax.random.key(0), 0, rows), context=CONTEXT)

    four, two = sample(4), sample(2)
    assert four.keys() == {'z_sample_BFHWC', 'z_high_BFHWC'}
    np.testing.assert_allclose(four['z_sample_BFHWC'][:2], two['z_sample_BFHWC'], atol=1e-6)
    assert len(np.unique(np.asarray(four['z_sample_BFHWC'][:, 0, 0, 0, 0]))) == 4


def test_low_res_sampler_noise_differs_between_steps_and_examples():
    shape = (2, 3, 50, 40)
    x, noise_fn = sampler_noise(per_example_keys(jax.random.key(0), 0, 2), shape)
    noises = [x, noise_fn(0), noise_fn(1), jax.jit(noise_fn)(jnp.int32(49))]
    rows = np.stack([np.asarray(n).reshape(2, -1) for n in noises]).reshape(8, -1)
    assert np.abs(np.corrcoef(rows) - np.eye(8)).max() < 0.06
    assert np.abs(rows.std(axis=1) - 1).max() < 0.04 and noises[1].dtype == jnp.float32
    alone, alone_fn = sampler_noise(per_example_keys(jax.random.key(0), 0, 1), (1, *shape[1:]))
    np.testing.assert_array_equal(alone[0], x[0])
    np.testing.assert_array_equal(alone_fn(1)[0], noises[2][0])


def test_low_res_encode_encodes_videos_and_keeps_latents():
    given = batch()
    assert stage().encode(given) == given
    here = dataclasses.replace(stage(), encoder=lambda video: video[..., :1] + 1)
    encoded = here.encode({'high_res_BFHWC': jnp.zeros((1, 1, 8, 8, 3))})
    assert encoded.keys() == {'z_high_BFHWC'} and float(encoded['z_high_BFHWC'].max()) == 1
    with pytest.raises(ValueError, match='this stage has no encoder'):
        stage().encode({'high_res_BFHWC': jnp.zeros((1, 1, 8, 8, 3))})


def test_low_res_sampler_is_configurable():
    here = with_sampler(stage(), num_steps=7, guidance_scale=2.0, guidance_kind='cosine', guidance_exponent=1)
    config = dataclasses.replace(
        stage().config, num_steps=7, guidance_scale=2.0, guidance_kind='cosine', guidance_exponent=1
    )
    assert here == dataclasses.replace(stage(), config=config)
    assert with_sampler(stage()) == stage()


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (
            {'prediction_type': 'flows'},
            "prediction_type=flows: must be one of v_prediction, flow; did you mean 'flow'?",
        ),
        (
            {'sampler': 'euler'},
            "sampler=euler: must be one of dpmpp_2m_sde, dpmpp_2m, ddim, for the prediction type 'v_prediction'",
        ),
        (
            {'prediction_type': 'flow'},
            "sampler=dpmpp_2m_sde: must be one of euler, heun, rk4, for the prediction type 'flow'",
        ),
        ({'guidance_kind': 'fixed'}, 'guidance_kind=fixed: must be one of official, constant, cosine'),
        ({'guidance_steps': 0}, 'guidance_steps=0: must be positive'),
        ({'guidance_exponent': 0}, 'guidance_exponent=0: must be positive'),
        ({'caption_dropout': 1.5}, 'caption_dropout=1.5: must be from 0 to 1'),
        ({'num_steps': 1}, 'num_steps=1: must be from 2 to 1000'),
        ({'num_steps': 1001}, 'num_steps=1001: must be from 2 to 1000'),
        ({'scale_factor': 0.0}, 'scale_factor=0.0: must be positive'),
        ({'shift': 2.0}, "shift=2.0: 'v_prediction' draws all timesteps alike; leave it at 1"),
    ],
)
def test_low_res_config_refuses_invalid_values(fields, message):
    with pytest.raises(ConfigError) as error:
        LowResConfig(**fields)
    assert str(error.value).startswith(message)


def test_low_res_config_round_trip():
    for config in (LowResConfig(guidance_steps=51), LowResConfig(shift=3.0, num_steps=1, **FLOW)):
        assert build(LowResConfig, to_dict(config)) == config


@pytest.mark.parametrize(('variant', 'lora', 'stored'), [('', LoRAConfig(), 'bfloat16'), ('full_ft', None, 'float32')])
def test_low_res_configs_are_official(variant, lora, stored):
    config = build(StageConfig, stage1.get_config(variant).stage.to_dict())
    assert config.options == LowResConfig()
    assert (config.network.lora, config.network.param_dtype, config.network.dtype) == (lora, stored, 'bfloat16')
    same = {name: getattr(STAGE1, name) for name in ('lora', 'param_dtype', 'dtype', 'remat')}
    assert dataclasses.replace(config.network, **same) == STAGE1
