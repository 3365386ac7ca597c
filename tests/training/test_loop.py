"""The loop, with a toy stage: when it saves, evaluates and speaks, when it stops, and that it can go on."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fv_jax.core.config import ConfigError
from fv_jax.training.alarm import AlarmConfig, CollapseError
from fv_jax.training.loop import Loop, LoopConfig, Validation
from fv_jax.training.optim import OptimConfig
from tests.training import toy

OPTIM = OptimConfig(learning_rate=0.3, clip_norm=1e3, ema_decay=0.9, lr_schedule='cosine')


class Diary:
    """A writer, and a place to save to, that note what happens in what order."""

    def __init__(self):
        self.events, self.rows, self.lines, self.videos, self.states = [], {}, [], [], {}

    def scalars(self, step, values, text):
        kind = 'eval' if 'eval/loss' in values else 'health' if 'health/alarms' in values else 'log'
        self.events.append((kind, step))
        self.rows[kind, step] = dict(values)
        self.lines.append(text)

    def video(self, step, name, frames, fps):
        self.videos.append((step, name, frames.shape, fps))

    def save(self, step, state):
        self.events.append(('save', step))
        self.states[step] = toy.copied(state)

    def steps(self, kind):
        return [step for k, step in self.events if k == kind]

    def batches(self, start=0, bad=None):
        for step in itertools.count(start):
            self.events.append(('draw', step + 1))
            yield toy.batch(step, **(bad or {}).get(step + 1, {}))


def show(samples):
    assert samples['y'].shape == (toy.ROWS, toy.OUT)
    return [('sample', np.zeros((2, 8, 8, 3), np.uint8))]


def run(config, *, state=None, validation=False, bad=None, batches=None, health=None):
    stage, diary = toy.Toy(noise=0.1), Diary()
    network, new, _ = toy.new(stage, OPTIM, config.num_steps)
    state = new if state is None else jax.tree.map(jnp.array, state)
    loop = Loop(
        stage=stage,
        network=network,
        optim=OPTIM,
        config=config,
        rules=toy.RULES,
        key=jax.random.key(1),
        writer=diary,
        save=diary.save,
        validation=Validation([stage.encode(toy.batch(s)) for s in (90, 91)], show, 12.0, health)
        if validation
        else None,
    )
    batches = diary.batches(int(state.step), bad) if batches is None else batches
    try:
        last = loop.run(state, batches)
    except (FloatingPointError, CollapseError) as error:
        last = error
    return diary, last


@pytest.fixture(scope='module')
def whole():
    return run(LoopConfig(num_steps=7, save_every=3, eval_every=2), validation=True)


def test_when_it_saves_and_evaluates(whole):
    diary, last = whole
    assert diary.steps('save') == [3, 6, 7]
    assert diary.steps('eval') == [2, 4, 6, 7]
    assert diary.steps('log') == list(range(1, 8))
    assert diary.videos == [(step, 'sample', (2, 8, 8, 3), 12.0) for step in (2, 4, 6, 7)]
    assert int(last.step) == 7
    np.testing.assert_array_equal(last.trainable['head']['kernel'], diary.states[7].trainable['head']['kernel'])


def test_a_step_is_started_before_the_one_before_is_read(whole):
    diary, _ = whole
    order = [event for event in diary.events if event[0] in ('draw', 'log')]
    assert order.index(('draw', 2)) < order.index(('log', 1))
    # What is saved or evaluated was looked at first.
    for step in (2, 3, 4, 6, 7):
        assert order.index(('log', step)) < (order.index(('draw', step + 1)) if step < 7 else len(order))
    for kind, step in diary.events:
        if kind in ('save', 'eval'):
            assert diary.events.index(('log', step)) < diary.events.index((kind, step))


def test_rows(whole):
    diary, _ = whole
    assert 'steps_per_s' not in diary.rows['log', 1]
    row = diary.rows['log', 2]
    assert row['steps_per_s'] > 0 and row['clips_per_s'] == pytest.approx(toy.ROWS * row['steps_per_s'])
    assert diary.rows['eval', 2].keys() == {'eval/loss', 'eval/noise', 'eval/encoded'}
    assert next(iter(diary.rows['eval', 2])) == 'eval/loss'
    assert diary.rows['eval', 4]['eval/noise'] == diary.rows['eval', 2]['eval/noise']
    assert diary.rows['eval', 7]['eval/loss'] < diary.rows['eval', 2]['eval/loss']
    assert all('step' in line for line in diary.lines)


def test_batches_are_encoded(whole):
    diary, _ = whole
    assert diary.rows['log', 1]['encoded'] == diary.rows['eval', 2]['eval/encoded'] == 1


def test_a_run_that_goes_on_is_the_run_that_did_not_stop(whole):
    diary, last = whole
    again, end = run(LoopConfig(num_steps=7, save_every=3), state=diary.states[3])
    assert again.steps('log') == [4, 5, 6, 7]
    for step in (4, 5, 6, 7):
        rows = again.rows['log', step], diary.rows['log', step]
        assert all(rows[0][name] == rows[1][name] for name in rows[0] if not name.endswith('_per_s'))
    for a, b in zip(jax.tree.leaves(end), jax.tree.leaves(last), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_run_that_is_complete_does_nothing(whole):
    diary, _ = whole
    again, end = run(LoopConfig(num_steps=7), state=diary.states[7], batches=iter([]))
    assert again.events == [] and int(end.step) == 7


def test_lines_can_be_rarer():
    diary, _ = run(LoopConfig(num_steps=5, log_every=2, save_every=3))
    assert diary.steps('log') == [2, 4, 5]
    assert diary.steps('save') == [3, 5]


@pytest.mark.parametrize(
    ('batch', 'name'),
    [({'bad': float('nan')}, 'loss is nan'), ({'bad': float('inf')}, 'loss is inf'), ({'slope': 0.0}, 'grad_norm is')],
)
def test_what_is_not_finite_stops_the_run_and_is_not_saved(batch, name):
    """Also at a step that would be saved, and where the gradient is the first not to be finite."""
    for at in (4, 5):
        diary, error = run(LoopConfig(num_steps=8, save_every=2), bad={at: batch})
        assert isinstance(error, FloatingPointError) and f'step {at}: {name}' in str(error)
        assert diary.steps('save') == ([2] if at == 4 else [2, 4])
        assert all(np.isfinite(leaf).all() for state in diary.states.values() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize('field', ['num_steps', 'log_every', 'save_every', 'keep'])
def test_what_cannot_be_is_refused(field):
    with pytest.raises(ConfigError, match=f'{field}=0: must be at least 1'):
        LoopConfig(**{'num_steps': 3, field: 0})


@dataclasses.dataclass
class Measured:
    figures: dict
    videos: list


def test_a_health_check_is_written_shown_and_rings():
    """It measures what is kept for inference, the average where there is one."""
    seen = []

    def health(params):
        seen.append(params['trainable']['head']['kernel'])
        return Measured({'energy': 0.2, 'psnr': 30.0}, [('heldout_0', np.zeros((1, 8, 8, 3), np.uint8))])

    alarm = AlarmConfig(after_step=3, update_ratio=1e9)
    diary, last = run(LoopConfig(num_steps=4, eval_every=2, alarm=alarm), validation=True, health=health)
    assert diary.steps('health') == [2, 4] and int(last.step) == 4
    assert [diary.rows['health', step]['health/alarms'] for step in (2, 4)] == [0, 1]
    assert diary.rows['health', 4]['health/energy'] == 0.2 and diary.rows['health', 4]['health/update_ratio'] > 0
    assert [video[:2] for video in diary.videos] == [(2, 'heldout_0'), (4, 'heldout_0')]
    assert any('ALARM at step 4: energy 0.2 is below 0.6' in line for line in diary.lines)
    np.testing.assert_array_equal(seen[1], diary.states[4].ema['head']['kernel'])
    stop = dataclasses.replace(alarm, stop=True, after_step=2)
    diary, last = run(LoopConfig(num_steps=4, eval_every=2, alarm=stop), validation=True, health=health)
    assert isinstance(last, CollapseError) and 'step 2: energy 0.2 is below 0.6' in str(last)
    assert diary.steps('log') == [1, 2] and diary.steps('health') == [2]
