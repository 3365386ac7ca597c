"""Flow maps: targets between Gaussians in closed form, draws, the official network bit for bit, and refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fv_jax.core.config import ConfigError, build, to_dict
from fv_jax.kernels.attention import SINGLE_DEVICE
from fv_jax.models.dit import DiT
from fv_jax.models.lora import LoRAConfig, LoRAParam
from fv_jax.stages.flow_map import FlowMap
from fv_jax.stages.flow_map_targets import TARGETS, FlowMapConfig, draw_intervals, draw_targets
from fv_jax.stages.noise import per_example_keys
from fv_jax.stages.protocol import BatchSize
from fv_jax.stages.registry import StageConfig
from fv_jax.stages.super_res import SuperRes
from fv_jax.text.encoder import TextConfig
from fv_jax.training import optimizer, state
from fv_jax.training.step import train_step
from tests.sampling import tiny
from tests.stages import gaussian_flow

ONLY = {name: tuple(float(name == other) for other in TARGETS) for name in TARGETS}
DIT = dataclasses.replace(tiny.DIT, embed_interval=True)
LORA = dataclasses.replace(DIT, lora=LoRAConfig(rank=2, targets=('qkv', 'mlp')))


def keys(count, step=0):
    return per_example_keys(jax.random.key(1), step, count)


def stage(dit=DIT, **fields):
    return FlowMap(FlowMapConfig(**({'text_length': 3} | fields)), dit)


def fill(model, seed=0):
    """The module with random parameters."""
    graphdef, params = nnx.split(model)
    rng = np.random.default_rng(seed)
    return nnx.merge(graphdef, jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), x.dtype), params))


def latents(examples=2):
    z_high, z_low, text = np.random.default_rng(3).standard_normal((3, examples, 3, 2, 4, 4)).astype(np.float32)
    return {'z_high_BFHWC': z_high, 'z_low_BFHWC': z_low, 'text_BLD': text[:, :, 0, :1].repeat(8, 2)[..., 0]}


# --- targets ---


@pytest.mark.parametrize('name', TARGETS)
@pytest.mark.parametrize(('w', 'sampler', 'substeps'), [(1.0, 'euler', 1), (3.0, 'euler', 1), (3.0, 'heun', 2)])
def test_exact_flow_map_has_no_loss(name, w, sampler, substeps):
    fields = {'teacher_guidance_scale': w, 'teacher_sampler': sampler, 'teacher_substeps': substeps}
    here = gaussian_flow.make_stage(target_shares=ONLY[name], **fields)
    exact, batch = gaussian_flow.exact_student(here), gaussian_flow.batch(64)
    noised = here.sample_noise_and_time(batch, keys(64), jnp.float32(0.9))
    assert set(noised.kind_B.tolist()) == {TARGETS.index(name)}
    loss, metrics = here.loss(exact, noised, context=gaussian_flow.CONTEXT, average=exact)
    assert loss < 1e-9 * metrics['target_norm'] ** 2
    exact.bias[...] += 0.1
    wrong, _ = here.loss(exact, noised, context=gaussian_flow.CONTEXT, average=exact)
    assert wrong > (1e-6 if name == 'split' else 0.009)  # the split target moves with the network


@pytest.mark.parametrize('w', [1.0, 3.0])
def test_flow_map_of_a_gaussian_is_learned(w):
    """One evaluation is as good as five of the teacher, whose own single step is far off."""
    here, num_steps = gaussian_flow.make_stage(teacher_guidance_scale=w), 1000
    optim = optimizer.OptimConfig(learning_rate=0.2, lr_schedule='cosine', b2=0.99, clip_norm=100.0, ema_decay=0.95)
    network, tx = state.ModelDef.from_stage(here), optimizer.make_optimizer(optim, num_steps)
    found = state.init_train_state(network, here, tx, jax.random.key(0), ema=True)
    step = train_step(here, network, tx, optim, num_steps, gaussian_flow.CONTEXT)
    batch = gaussian_flow.batch(128)
    for _ in range(num_steps):
        found, _ = step(found, batch, jax.random.key(2))
    model, source = network.model(found.ema, found.frozen), jax.random.normal(jax.random.key(5), (500, 1, 1, 1, 2))
    wanted = gaussian_flow.solve(here, source, 0, 5)
    for count in (1, 2, 5):
        sampled = here.with_sampler_config(dataclasses.replace(here.sampler_config(), num_steps=count))
        z = sampled.trajectory(model, source, jnp.ones((500, 1, 1)), context=gaussian_flow.CONTEXT).integrate()
        assert gaussian_flow.rms(z - wanted) < 0.01
    assert gaussian_flow.rms(source - gaussian_flow.guided(here, source, 1.0) - wanted) > 0.2


def test_velocity_target_of_the_data_is_flow_matching():
    """Without guidance, at r = t and with the data's velocity as a target: the gradient of stage 2's loss."""

    class Data:
        def __call__(self, x, timestep, text, source, *, context):
            return noised.data_BFHWC - noised.source_BFHWC

    class FromData(FlowMap):
        def teacher_of(self, model):
            return Data()

    here = stage(target_shares=ONLY['velocity'], teacher_guidance_scale=1.0)
    here = FromData(here.config, here.network)
    model = fill(DiT(here.network, rngs=nnx.Rngs(0)))
    model.interval_embed.out = jax.tree.map(jnp.zeros_like, model.interval_embed.out)
    noised = here.sample_noise_and_time(latents(), keys(2), jnp.float32(0))
    plain = SuperRes(here.teacher.config, here.teacher.network)
    teacher = FlowMap.teacher_of(dataclasses.replace(stage(LORA)), model)

    def gradient(stage, model):
        graphdef, params = nnx.split(model)

        def loss(params):
            return stage.loss(nnx.merge(graphdef, params), noised, context=SINGLE_DEVICE, average=model)[0]

        return jax.jit(jax.value_and_grad(loss))(params)

    (loss, found), (plain_loss, wanted) = gradient(here, model), gradient(plain, teacher)
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-6)
    wanted = dict(nnx.to_flat_state(wanted))
    for path, value in nnx.to_flat_state(found):
        if path[0] != 'interval_embed':
            np.testing.assert_allclose(value[...], wanted[path][...], rtol=1e-5, atol=1e-7, err_msg=str(path))


# --- draws ---


def test_draws_follow_their_shares():
    config = FlowMapConfig(target_shares=(0.2, 0.3, 0.5), rollout_share=0.25)
    kinds, rollouts = jax.vmap(lambda key: draw_targets(config, key))(jax.random.split(jax.random.key(0), 2000))
    np.testing.assert_allclose(np.bincount(kinds) / 2000, config.target_shares, atol=0.03)
    assert abs(rollouts.mean() - 0.25) < 0.03


@pytest.mark.parametrize('kind', range(3))
@pytest.mark.parametrize('knots', [2, 5])
def test_intervals_are_knots_of_the_kind(kind, knots):
    config = FlowMapConfig(num_knots=knots, num_steps=1)
    draw = jax.vmap(lambda key, done: draw_intervals(config, *jax.random.split(key, (2, 8)), jnp.int32(kind), done))
    done = jnp.linspace(0, 1, 200, endpoint=False)
    start, middle, end = (np.asarray(x) for x in draw(jax.random.split(jax.random.key(0), 200), done))
    length = end - start
    assert start.min() >= 0 and start.max() < knots and end.max() <= knots
    assert abs((start == 0).mean() - (1 if kind == 2 and knots == 2 else 0.3)) < 0.05
    if kind < 2:
        assert np.all(length == kind) and set(np.unique(start)) == set(range(knots))
        return
    assert np.all((middle > start) & (middle < end))
    assert np.all(length[:10] == 2)
    if knots == 5:
        later = length[80:]  # of any length after 40 % of the steps
        assert set(np.unique(later)) == {2, 3, 4, 5} and np.all(length[:53] < 5)
        assert {(i, j) for i, j in zip(start.ravel(), end.ravel(), strict=True)} == {
            (i, j) for i in range(4) for j in range(i + 2, 6)
        }


def test_evaluation_draws_velocities():
    noised = stage().sample_noise_and_time(latents(), keys(2))
    assert not noised.kind_B.any() and not noised.rollout_B.any()
    np.testing.assert_array_equal(noised.start_B, noised.end_B)
    np.testing.assert_array_equal(noised.t_B, stage().knots.t[noised.start_B])


def test_rollout_replaces_the_line():
    """With the exact map the state at t is that of the teacher's sampler."""
    here = gaussian_flow.make_stage(target_shares=(0.5, 0.5, 0.0), rollout_share=1.0, teacher_guidance_scale=1.0)
    exact, seen = gaussian_flow.exact_student(here), []
    noised = here.sample_noise_and_time(gaussian_flow.batch(8), keys(8), jnp.float32(0.9))

    def record(x, *rest, **more):
        seen.append(x)
        return exact(x, *rest, **more)

    here.loss(record, noised, context=gaussian_flow.CONTEXT, average=exact)
    assert noised.rollout_B.all() and len(set(noised.start_B.tolist())) > 2
    for i, start in enumerate(noised.start_B):
        wanted = gaussian_flow.solve(here, noised.source_BFHWC[i], 0, int(start))
        np.testing.assert_allclose(seen[0][i], wanted, atol=1e-5)


# --- the network ---


@pytest.mark.parametrize('dit', [DIT, LORA], ids=['all', 'lora'])
def test_new_flow_map_is_its_teacher_bit_for_bit(dit):
    here = stage(dit, target_shares=ONLY['velocity'])
    model = fill(here.init(nnx.Rngs(0)))
    zero = [model.interval_embed.out] + ([x.lora for x in (model.blocks.mlp.hidden,)] if dit.lora else [])
    for part in zero:
        nnx.update(part, jax.tree.map(jnp.zeros_like, nnx.state(part)))
    if dit.lora:
        for linear in (model.blocks.attention.qkv, model.blocks.mlp.hidden, model.blocks.mlp.out):
            linear.lora.b[...] = jnp.zeros_like(linear.lora.b[...])
    else:
        here.adapt_initial_params(model)
    batch = latents()
    x, text = jnp.asarray(batch['z_low_BFHWC']), jnp.asarray(batch['text_BLD'])
    inputs = x, jnp.float32([900, 300]), text, jnp.int32([100, 120])
    wanted = here.teacher_of(model)(*inputs)
    assert wanted.std() > 0.01
    for interval in (0.0, 300.0):
        np.testing.assert_array_equal(model(*inputs, jnp.full(2, interval)), wanted)
    model.interval_embed.out.bias[...] += 1
    assert np.any(model(*inputs, jnp.zeros(2)) != wanted)


def test_trainable_is_the_student_alone():
    _, trained, rest = nnx.split(stage(LORA).init(nnx.Rngs(0)), stage(LORA).trainable(), ...)
    assert {type(x) for path, x in nnx.to_flat_state(trained) if path[0] != 'interval_embed'} == {LoRAParam}
    assert 'interval_embed' in trained and 'interval_embed' not in rest and 'teacher' not in rest
    _, trained, rest = nnx.split(stage().init(nnx.Rngs(0)), stage().trainable(), ...)
    assert set(rest) == {'teacher'} and 'teacher' not in trained
    half = stage(dataclasses.replace(LORA, param_dtype='bfloat16')).init(nnx.Rngs(0))
    assert half.interval_embed.hidden.kernel.dtype == jnp.float32 and half.patch_embed.kernel.dtype == jnp.bfloat16


def test_flow_map_without_its_teacher_is_sampled_only():
    here = stage(has_teacher=False)
    model = here.init(nnx.Rngs(0))
    assert not hasattr(model, 'teacher')
    with pytest.raises(ValueError, match='exported without its teacher'):
        here.loss(model, here.sample_noise_and_time(latents(), keys(2)), context=SINGLE_DEVICE, average=model)


# --- sampling and descriptions ---


@pytest.mark.parametrize(
    ('num_steps', 'knots'), [(1, [0, 5]), (2, [0, 3, 5]), (3, [0, 2, 3, 5]), (5, [0, 1, 2, 3, 4, 5])]
)
def test_samples_jump_between_knots(num_steps, knots):
    here = stage(num_steps=num_steps)
    np.testing.assert_array_equal(here.time_grid().t, here.knots.t[knots])
    assert here.num_function_evaluations() == num_steps and not here.is_guided()


def test_velocities_alone_are_sampled_without_intervals():
    here, seen = stage(target_shares=ONLY['velocity'], num_steps=5, num_knots=5), []

    def record(x, timestep, text, source, interval_B, *, context):
        seen.append(interval_B)
        return x

    here.trajectory(record, jnp.zeros((1, 1, 2, 2, 4)), jnp.zeros((1, 3, 8)), context=SINGLE_DEVICE).integrate()
    assert len(seen) == 1


def test_sampler_settings_that_move_the_knots_are_refused():
    settings = stage().sampler_config()
    for name, value in (
        ('shift', 3.0),
        ('numerics', 'official'),
        ('guidance_scale', 2.0),
        ('num_steps', 6),
        ('sampler', 'euler'),
    ):
        with pytest.raises(ConfigError, match=f'{name}={value}: must be'):
            stage().with_sampler_config(dataclasses.replace(settings, **{name: value}))


def test_programs_have_the_cost_of_targets():
    size = BatchSize(2, (9, 16, 32), (3, 2, 4))
    step = stage(teacher_sampler='heun', teacher_substeps=2, rollout_share=0.5).programs(size)[0]
    assert [(cost.name, cost.share, cost.forwards) for cost in step.targets] == [
        ('velocity', 0.25, 2.5),
        ('step', 0.25, 8.5),
        ('split', 0.5, 2.5),
    ]
    assert step.target_forwards == 4.0
    assert [cost.forwards for cost in stage(teacher_guidance_scale=1.0).programs(size)[0].targets] == [1, 1, 2]


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'guidance_scale': 3.0}, 'guidance_scale=3.0: must be 1'),
        ({'caption_dropout': 0.1}, 'caption_dropout=0.1: must be 0'),
        ({'num_steps': 6}, 'num_steps=6: must be from 1 to 5'),
        ({'sampler': 'heun'}, 'sampler=heun: must be one of mean_velocity'),
        ({'teacher_sampler': 'mean_velocity'}, 'sampler=mean_velocity: must be one of euler, heun, rk4'),
        ({'target_shares': (0.5, 0.4, 0.0)}, 'target_shares=(0.5, 0.4, 0.0): must be three'),
        ({'rollout_share': 0.5, 'target_shares': (1.0, 0.0, 0.0)}, 'rollout_share=0.5: must be 0'),
        ({'num_knots': 1, 'num_steps': 1}, 'num_knots=1: an interval cannot be split'),
        ({'numerics': 'official', 'teacher_substeps': 4}, 'teacher_substeps=4: must be 1'),
    ],
)
def test_flow_map_config_refuses_invalid_values(fields, message):
    with pytest.raises(ConfigError) as error:
        FlowMapConfig(**fields)
    assert str(error.value).startswith(message)


def test_flow_map_needs_captions_for_guidance():
    text = TextConfig('hash', length=3, dim=8)

    def make(w, text):
        return StageConfig('flow_map', DIT, FlowMapConfig(teacher_guidance_scale=w), vae='embedded', text=text)

    for w, encoder in ((1.0, TextConfig()), (3.0, text)):
        config = make(w, encoder)
        assert build(StageConfig, to_dict(config)) == config
    with pytest.raises(ConfigError, match=r'text\.encoder: missing'):
        make(3.0, TextConfig())


def test_interval_embedding_belongs_to_flow_maps():
    with pytest.raises(ConfigError, match='embed_interval=False: must be True'):
        FlowMap(FlowMapConfig(), tiny.DIT)
    with pytest.raises(ConfigError, match='embed_interval=True: must be False'):
        SuperRes(tiny.SUPERRES, DIT)
