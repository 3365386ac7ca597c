"""The averaged network in a stage's loss: for a stage that asks for it, and for no other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fv_jax.training.monitoring.replay import replay
from fv_jax.training.optimizer import OptimConfig
from fv_jax.training.step import eval_step, train_step
from tests.training import toy

KEY = jax.random.key(0)
OPTIM = OptimConfig(learning_rate=0.1, warmup_steps=0, ema_decay=0.5)


@dataclasses.dataclass(frozen=True)
class Consistent(toy.Toy):
    """Its loss is the distance between what the network and its average say."""

    takes_average = True

    def loss(self, model, noised, *, context, average=None):
        loss = jnp.mean((model(noised['x']) - 3 * average(noised['x']) - noised['y']) ** 2)
        return loss, {'bias': jnp.mean(average.head['bias'][...]), 'offset': jnp.mean(average.offset[...])}


def encode_batch(step=0):
    return Consistent().encode(toy.batch(step))


@pytest.mark.parametrize('microbatches', [1, 2])
def test_ema_is_passed_to_the_loss(microbatches):
    stage = Consistent()
    network, state, tx = toy.new(stage, OPTIM)
    step = train_step(stage, network, tx, OPTIM, 100, toy.CONTEXT, microbatches=microbatches)
    for i in range(3):
        before = toy.copy_tree(state)
        state, metrics = step(state, encode_batch(i), KEY)
        assert float(metrics['bias']) == pytest.approx(before.ema['head']['bias'].mean(), abs=1e-6)
        assert float(metrics['offset']) == pytest.approx(before.frozen['offset'].mean(), abs=1e-6)
    assert np.any(before.ema['head']['bias'] != before.trainable['head']['bias'])


def test_ema_in_the_loss_has_no_gradient():
    """d/db mean (x k + b - 3 c - y)^2 where c, the average's prediction, is a constant."""
    stage = Consistent()
    network, state, tx = toy.new(stage, OPTIM)
    x, y = toy.batch()['x'], toy.batch()['y']
    error = x @ np.asarray(state.frozen['offset']) * (1 - 3) - y  # the kernel and the bias start as zeros
    wanted = {'bias': error.mean(0), 'kernel': x.T @ error / len(x)}
    norm = np.sqrt(sum(np.sum(grad**2) for grad in wanted.values()))
    _, metrics = train_step(stage, network, tx, OPTIM, 100, toy.CONTEXT)(state, encode_batch(), KEY)
    assert float(metrics['grad_norm']) == pytest.approx(float(norm), rel=1e-5)


def test_ema_of_an_evaluated_network_is_itself():
    stage = Consistent()
    network, state, _ = toy.new(stage, OPTIM)
    params = {'trainable': {'head': {'kernel': jnp.ones((3, 2)), 'bias': jnp.full(2, 7.0)}}, 'frozen': state.frozen}
    found = eval_step(stage, network, toy.CONTEXT)(params, encode_batch(), KEY, np.arange(toy.ROWS))
    assert float(found['bias']) == 7


def test_ema_of_a_replayed_step_is_that_of_its_dump():
    stage = Consistent()
    network, state, _ = toy.new(stage, OPTIM)
    average = {'head': {'kernel': jnp.ones((3, 2)), 'bias': jnp.full(2, 5.0)}}
    params = {'trainable': state.trainable, 'frozen': state.frozen, 'average': average}
    assert replay(stage, network, params, encode_batch(), KEY, 0, 1, toy.CONTEXT).metrics['bias'] == 5


def test_ema_is_not_passed_to_other_stages():
    seen = []

    class Spy(toy.Toy):
        def loss(self, model, noised, *, context, average=None):
            seen.append(average)
            return super().loss(model, noised, context=context)

    network, state, tx = toy.new(Spy(), OPTIM)
    train_step(Spy(), network, tx, OPTIM, 100, toy.CONTEXT)(state, encode_batch(), KEY)
    assert seen and set(seen) == {None}
