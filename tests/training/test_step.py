"""One update of a toy stage: what moves, what does not, what is measured, whose memory is reused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fv_jax.training import state, step
from fv_jax.training.optimizer import OptimConfig, update_ema
from fv_jax.training.step import eval_step, sample_step, train_step
from tests.training import toy

OPTIM = OptimConfig(learning_rate=0.3, clip_norm=1e3, ema_decay=0.9)
KEY = jax.random.key(3)


def encode_batch(step=0):
    return toy.Toy().encode(toy.batch(step))


@pytest.fixture(scope='module')
def make_step():
    stage = toy.Toy(noise=0.1)
    network, start, tx = toy.new(stage, OPTIM)
    return stage, network, toy.copy_tree(start), train_step(stage, network, tx, OPTIM, 100, toy.CONTEXT)


def copy_state(start):
    return jax.tree.map(jnp.array, start)


@pytest.fixture(scope='module')
def train_steps(make_step):
    """40 steps: the states on the way, and the metrics."""
    _, _, start, step_fn = make_step
    current, states, rows = copy_state(start), [start], []
    for i in range(40):
        current, metrics = step_fn(current, encode_batch(i), KEY)
        states.append(toy.copy_tree(current))
        rows.append({name: float(value) for name, value in metrics.items()})
    return states, rows


def test_step_reduces_the_loss(train_steps):
    _, rows = train_steps
    assert rows[-1]['loss'] < rows[0]['loss'] / 10


def test_step_changes_trainable_parameters_only(train_steps):
    states, _ = train_steps
    np.testing.assert_array_equal(states[-1].frozen['offset'], states[0].frozen['offset'])
    assert np.abs(states[0].frozen['offset']).min() > 0
    assert set(states[0].trainable['head']) == {'kernel', 'bias'}
    for part in ('kernel', 'bias'):
        assert np.abs(states[1].trainable['head'][part] - states[0].trainable['head'][part]).min() > 0


def test_step_number_is_counted(train_steps):
    states, _ = train_steps
    assert [int(s.step) for s in states] == list(range(41)) and states[-1].step.dtype == np.int32


def test_step_updates_the_ema(train_steps):
    states, _ = train_steps
    for i in (0, 5):
        expected = update_ema(states[i].ema, states[i + 1].trainable, OPTIM.ema_decay, jnp.asarray(i))
        np.testing.assert_allclose(states[i + 1].ema['head']['kernel'], expected['head']['kernel'], rtol=1e-5)


def test_step_metrics_are_correct(train_steps):
    states, rows = train_steps
    names = {'loss', 'noise', 'encoded', 'grad_norm', 'update_norm', 'param_norm', 'learning_rate'}
    assert all(row.keys() == names and np.isfinite(list(row.values())).all() for row in rows)

    def norm(tree):
        return np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree)))

    moved = jax.tree.map(lambda new, old: new - old, states[6].trainable, states[5].trainable)
    assert rows[5]['update_norm'] == pytest.approx(norm(moved), rel=1e-4)
    assert rows[5]['param_norm'] == pytest.approx(norm(states[6].trainable), rel=1e-5)
    assert rows[5]['learning_rate'] == pytest.approx(0.3)
    # d/d kernel and d/d bias of mean (x (kernel + offset) + bias - y - noise)^2 at zero, but for the small noise.
    batch = toy.batch(0)
    error = batch['x'] @ states[0].frozen['offset'] - batch['y']
    gradients = [2 * batch['x'].T @ error / error.size, 2 * error.sum(0) / error.size]
    assert rows[0]['grad_norm'] == pytest.approx(norm(gradients), rel=0.05)


def test_step_noise_depends_on_the_step_alone(make_step, train_steps):
    _, rows = train_steps
    assert len({row['noise'] for row in rows}) == len(rows)
    _, _, start, step_fn = make_step
    _, metrics = step_fn(copy_state(start), encode_batch(0), KEY)
    assert float(metrics['noise']) == rows[0]['noise']
    _, metrics = step_fn(copy_state(start), encode_batch(0), jax.random.key(4))
    assert float(metrics['noise']) != rows[0]['noise']


def test_step_noise_differs_between_examples_and_steps(make_step):
    _, network, start, _ = make_step
    keys = []

    class Spy(toy.Toy):
        def sample_noise_and_time(self, batch, keys_B, progress=None):
            keys.append(jax.random.key_data(keys_B))
            return super().sample_noise_and_time(batch, keys_B, progress)

    _, _, tx = toy.new(Spy(), OPTIM)
    with jax.disable_jit():
        step_fn = train_step(Spy(), network, tx, OPTIM, 100, toy.CONTEXT)
        step_fn(step_fn(copy_state(start), encode_batch(), KEY)[0], encode_batch(), KEY)
    flat = np.concatenate(keys)
    assert flat.shape[0] == 2 * toy.ROWS and len(np.unique(flat, axis=0)) == len(flat)


def test_eval_noise_is_a_clips_own_in_any_batch(make_step):
    stage, network, start, _ = make_step
    evaluate = eval_step(stage, network, toy.CONTEXT)
    params = {'trainable': start.trainable, 'frozen': start.frozen}

    def noise(*clips):
        """Returns the mean noise of examples that are equal but for their clip's index."""
        batch = {name: np.repeat(np.asarray(value)[:1], len(clips), axis=0) for name, value in encode_batch().items()}
        return float(evaluate(params, batch, KEY, np.array(clips))['noise'])

    alone = [noise(clip) for clip in range(4)]
    assert len(set(alone)) == 4
    assert noise(0, 1, 2, 3) == pytest.approx(np.mean(alone), abs=1e-6)
    assert noise(2, 2) == pytest.approx(alone[2], abs=1e-6)


def test_step_donates_the_state(make_step):
    _, _, start, step_fn = make_step
    given = copy_state(start)
    step_fn(given, encode_batch(), KEY)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))


def test_state_from_params_can_be_donated(make_step):
    """Its average starts as the numbers themselves, but not in their memory."""
    stage, _, start, step_fn = make_step
    _, _, tx = toy.new(stage, OPTIM)
    given = state.train_state_from_params(copy_state(start.trainable), copy_state(start.frozen), tx, ema=True)
    np.testing.assert_array_equal(given.ema['head']['kernel'], given.trainable['head']['kernel'])
    after, _ = step_fn(given, encode_batch(), KEY)
    assert int(after.step) == 1


def test_eval_step_uses_the_ema_and_fixed_noise(make_step, train_steps):
    stage, network, _, _ = make_step
    states, _ = train_steps
    evaluate = eval_step(stage, network, toy.CONTEXT)
    params = state.inference_params(states[-1])
    np.testing.assert_array_equal(params['trainable']['head']['bias'], states[-1].ema['head']['bias'])
    first, again, other = (evaluate(params, encode_batch(50), KEY, i + np.arange(toy.ROWS)) for i in (0, 0, 1))
    assert float(first['loss']) == float(again['loss']) != float(other['loss'])
    sample = sample_step(stage, network, toy.CONTEXT)(params, encode_batch(50), KEY, np.arange(toy.ROWS))
    model = network.model(**params)
    np.testing.assert_allclose(sample['y'], model(toy.batch(50)['x']), rtol=1e-5)


def test_inference_params_without_ema():
    config = OptimConfig(ema_decay=0.0)
    _, start, _ = toy.new(toy.Toy(), config)
    assert start.ema is None
    assert state.inference_params(start)['trainable'] is start.trainable


def test_state_types_are_those_of_a_later_state(make_step):
    """Down to JAX's weak types, or the step would be compiled twice."""

    class Weak(toy.Toy):
        def init(self, rngs):
            model = super().init(rngs)
            model.head['bias'][...] = jnp.where(jnp.arange(toy.OUT) > 0, 1.0, 0.0)
            return model

    stage = Weak()
    assert stage.init(nnx.Rngs(0)).head['bias'][...].weak_type
    network, start, tx = toy.new(stage, OPTIM)
    step_fn = train_step(stage, network, tx, OPTIM, 100, toy.CONTEXT)
    new, later = jax.eval_shape(lambda: start), jax.eval_shape(step_fn, start, encode_batch(), KEY)[0]
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(later), strict=True):
        assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)


@pytest.mark.parametrize('ema', [True, False])
def test_state_items_round_trip(ema):
    _, start, _ = toy.new(toy.Toy(), OptimConfig(ema_decay=0.9 if ema else 0.0))
    back = state.from_items(state.to_items(start), ema=ema)
    assert jax.tree.structure(back) == jax.tree.structure(start)
    assert all(a is b for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(start), strict=True))


def test_model_def_has_abstract_leaves():
    network = state.ModelDef.from_stage(toy.Toy())
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves((network.trainable, network.frozen)))
    trainable, frozen = network.init(toy.Toy(), jax.random.key(0))
    model = network.model(trainable, frozen)
    model.head['bias'][...] = jnp.ones(toy.OUT)
    other = network.model(trainable, frozen)  # the template is filled, not used up
    np.testing.assert_array_equal(other.head['bias'][...], 0)
    _, same = network.init(toy.Toy(), jax.random.key(0))
    _, different = network.init(toy.Toy(), jax.random.key(1))
    np.testing.assert_array_equal(same['offset'], frozen['offset'])
    assert np.abs(different['offset'] - frozen['offset']).min() > 0


def test_step_metrics_have_norms_of_each_part():
    tree = {'blocks': {'a': jnp.array([3.0]), 'b': jnp.array([4.0])}, 'head': {'a': jnp.array([12.0])}}
    found = step._group_norms('grad_norm', tree)
    assert found.keys() == {'grad_norm/blocks', 'grad_norm/head'}
    np.testing.assert_allclose([found['grad_norm/blocks'], found['grad_norm/head']], [5, 12])
    assert step._group_norms('grad_norm', {'head': tree['head']}) == {}  # the whole, once more


@pytest.mark.parametrize('algorithm', ['adamw', 'muon'])
@pytest.mark.parametrize('wrong', [{'bad': float('nan')}, {'bad': float('inf')}, {'slope': 0.0}])
def test_bad_step_changes_only_the_step_number(algorithm, wrong):
    optim = OptimConfig(algorithm, learning_rate=0.3, warmup_steps=5, weight_decay=0.1)
    stage = toy.Toy()
    network, start, tx = toy.new(stage, optim)
    step_fn = train_step(stage, network, tx, optim, 100, toy.CONTEXT)
    before, _ = step_fn(start, encode_batch(), KEY)
    kept = toy.copy_tree(before)
    after, metrics = step_fn(before, stage.encode(toy.batch(1, **wrong)), KEY)
    assert int(after.step) == 2 and not np.isfinite(float(metrics['loss']) + float(metrics['grad_norm']))
    for part in ('trainable', 'frozen', 'opt_state', 'ema'):
        for a, b in zip(jax.tree.leaves(getattr(after, part)), jax.tree.leaves(getattr(kept, part)), strict=True):
            np.testing.assert_array_equal(a, b)
    assert float(metrics['update_norm']) == 0 and np.isfinite(float(metrics['param_norm']))
    # The rate is the optimizer's, which has done one update: the second of the warm-up.
    _, metrics = step_fn(after, encode_batch(2), KEY)
    assert float(metrics['learning_rate']) == pytest.approx(0.3 * 2 / 5)


@pytest.mark.parametrize('microbatches', [2, 4])
def test_microbatches_equal_the_whole_batch(make_step, microbatches):
    """Loss, metrics, norms and the new state; each row has the noise that it has in the whole batch."""
    stage, network, start, whole_fn = make_step
    _, _, tx = toy.new(stage, OPTIM)
    step_fn = train_step(stage, network, tx, OPTIM, 100, toy.CONTEXT, microbatches=microbatches)
    whole, parts = copy_state(start), copy_state(start)
    for i in range(3):
        whole, expected = whole_fn(whole, encode_batch(i), KEY)
        parts, metrics = step_fn(parts, encode_batch(i), KEY)
        assert metrics.keys() == expected.keys()
        for name in expected:
            np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
    for a, b in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_microbatches_accumulate_one_gradient(make_step):
    """The temporary memory of a step does not grow with the number of microbatches."""
    stage, network, start, _ = make_step
    _, _, tx = toy.new(stage, OPTIM)
    rows = {name: np.tile(value, (16, *[1] * (value.ndim - 1))) for name, value in encode_batch().items()}

    def temp_bytes(microbatches):
        step_fn = train_step(stage, network, tx, OPTIM, 100, toy.CONTEXT, microbatches=microbatches)
        return step_fn.lower(start, rows, KEY).compile().memory_analysis().temp_size_in_bytes

    assert temp_bytes(64) <= temp_bytes(4)


def test_microbatches_with_a_bad_one_skip_the_step(make_step):
    stage, network, start, _ = make_step
    _, _, tx = toy.new(stage, OPTIM)
    step_fn = train_step(stage, network, tx, OPTIM, 100, toy.CONTEXT, microbatches=2)
    given = encode_batch()
    given['bad'][1] = np.inf
    after, metrics = step_fn(copy_state(start), given, KEY)
    assert not np.isfinite(metrics['loss']) and int(after.step) == 1
    for a, b in zip(jax.tree.leaves(after.trainable), jax.tree.leaves(start.trainable), strict=True):
        np.testing.assert_array_equal(a, b)
