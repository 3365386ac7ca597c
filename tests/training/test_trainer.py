"""The trainer with a toy stage: when it saves, evaluates, logs and stops, and that it resumes."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fv_jax.core.config import ConfigError
from fv_jax.core.exit_codes import PreemptedError
from fv_jax.training.config import LoopConfig
from fv_jax.training.heldout import HeldoutBatch
from fv_jax.training.monitoring.anomalies import BadStepsConfig
from fv_jax.training.monitoring.collapse import CollapseError, CollapseMonitorConfig
from fv_jax.training.optimizer import OptimConfig
from fv_jax.training.progress import Progress
from fv_jax.training.trainer import Trainer
from fv_jax.training.validation import Validation
from tests.training import toy

OPTIM = OptimConfig(learning_rate=0.3, clip_norm=1e3, ema_decay=0.9, lr_schedule='cosine')


class Diary:
    """A metric writer and a save policy that record the order of their calls."""

    def __init__(self):
        self.events, self.rows, self.lines, self.videos, self.states = [], {}, [], [], {}
        self.progress, self.cases, self.orders = {}, [], []
        self.saving, self.copies, self.could, self.flushed = None, {}, True, 0

    def scalars(self, step, values, text):
        kind = (
            'goodput'
            if 'goodput/step' in values
            else 'eval'
            if 'eval/loss' in values
            else 'health'
            if 'health/collapse_warnings' in values
            else 'log'
        )
        self.events.append((kind, step))
        self.rows[kind, step] = dict(values)
        self.lines.append(text)

    def flush(self):
        self.flushed = len(self.rows)

    def video(self, step, name, frames, fps):
        self.videos.append((step, name, frames.shape, fps))

    def start(self, step, state, progress):
        assert self.saving is None or self.saving not in self.states
        assert self.flushed == len(self.rows)  # a run that resumes here does not repeat them
        self.wait()
        self.events.append(('save', step))
        self.saving, self.copies[step] = step, (toy.copy_tree(state), progress.to_dict())

    def poll(self):
        self.events.append(('poll', self.saving))

    def wait(self):
        """From now on the started save is complete."""
        step, self.saving = self.saving, None
        if step is not None:
            self.events.append(('saved', step))
            self.states[step], self.progress[step] = self.copies.pop(step)
        return self.could

    def restore(self):
        if not self.states:
            return None
        step = max(self.states)
        return jax.tree.map(jnp.array, self.states[step]), Progress.from_dict(self.progress[step])

    def keep(self, case):
        self.cases.append(case)

    def log(self, text):
        self.lines.append(text)

    def rewind(self, step):
        self.events.append(('rewind', step))

    def steps(self, kind):
        return [step for k, step in self.events if k == kind]

    def draw(self, bad, start, order):
        """bad: (step, order) or step -> what is wrong with the batch."""
        self.orders.append((start, order))
        for step in itertools.count(start):
            self.events.append(('draw', step + 1))
            yield toy.batch(step + 1000 * order, **bad.get((step + 1, order), bad.get(step + 1, {})))


def show(samples):
    assert samples['y'].shape == (toy.ROWS, toy.OUT)
    return [('sample', np.zeros((2, 8, 8, 3), np.uint8))]


HELDOUT = [HeldoutBatch(toy.Toy().encode(toy.batch(90 + i)), np.arange(4 * i, 4 * i + 4)) for i in (0, 1)]


def run(config, *, state=None, validation=False, bad=None, health=None, progress=None, optim=OPTIM, diary=None, **more):
    stage, diary = toy.Toy(noise=0.1), diary or Diary()
    network, new, _ = toy.new(stage, optim, config.num_steps)
    state = new if state is None else jax.tree.map(jnp.array, state)
    trainer = Trainer(
        stage=stage,
        network=network,
        optim=optim,
        config=config,
        context=toy.CONTEXT,
        key=jax.random.key(1),
        writer=diary,
        make_batches=functools.partial(diary.draw, bad or {}),
        checkpointer=diary,
        restore=diary.restore,
        dump_bad_step=diary.keep,
        progress=Progress.from_dict(progress or {}),
        **more,
        validation=Validation(HELDOUT, show, 12.0, health) if validation else None,
    )
    try:
        last = trainer.run(state)
    except (FloatingPointError, CollapseError, PreemptedError) as error:
        last = error
    diary.wait()  # as the context around a run does
    return diary, last


@pytest.fixture(scope='module')
def uninterrupted():
    return run(LoopConfig(num_steps=7, save_every=3, eval_every=2), validation=True)


def test_trainer_saves_and_evaluates_when_due(uninterrupted):
    diary, last = uninterrupted
    assert diary.steps('save') == [3, 6, 7]
    assert diary.steps('eval') == [2, 4, 6, 7]
    assert diary.steps('log') == list(range(1, 8))
    assert diary.videos == [(step, 'sample', (2, 8, 8, 3), 12.0) for step in (2, 4, 6, 7)]
    assert int(last.step) == 7
    np.testing.assert_array_equal(last.trainable['head']['kernel'], diary.states[7].trainable['head']['kernel'])


def test_trainer_reads_metrics_one_step_late(uninterrupted):
    diary, _ = uninterrupted
    order = [event for event in diary.events if event[0] in ('draw', 'log')]
    assert order.index(('draw', 2)) < order.index(('log', 1))
    # What is saved or evaluated was looked at first.
    for step in (2, 3, 4, 6, 7):
        assert order.index(('log', step)) < (order.index(('draw', step + 1)) if step < 7 else len(order))
    for kind, step in diary.events:
        if kind in ('save', 'eval'):
            assert diary.events.index(('log', step)) < diary.events.index((kind, step))


def test_trainer_metrics(uninterrupted):
    diary, _ = uninterrupted
    assert 'steps_per_s' not in diary.rows['log', 1]
    row = diary.rows['log', 2]
    assert row['steps_per_s'] > 0 and row['clips_per_s'] == pytest.approx(toy.ROWS * row['steps_per_s'])
    assert diary.rows['eval', 2].keys() == {'eval/loss', 'eval/noise', 'eval/encoded'}
    assert next(iter(diary.rows['eval', 2])) == 'eval/loss'
    assert diary.rows['eval', 4]['eval/noise'] == diary.rows['eval', 2]['eval/noise']
    assert diary.rows['eval', 7]['eval/loss'] < diary.rows['eval', 2]['eval/loss']
    assert all('step' in line for line in diary.lines)


def test_trainer_encodes_batches(uninterrupted):
    diary, _ = uninterrupted
    assert diary.rows['log', 1]['encoded'] == diary.rows['eval', 2]['eval/encoded'] == 1


def test_resume_is_bit_exact(uninterrupted):
    diary, last = uninterrupted
    again, end = run(LoopConfig(num_steps=7, save_every=3), state=diary.states[3])
    assert again.steps('log') == [4, 5, 6, 7]
    for step in (4, 5, 6, 7):
        rows = again.rows['log', step], diary.rows['log', step]
        assert all(rows[0][name] == rows[1][name] for name in rows[0] if not name.endswith('_per_s'))
    for a, b in zip(jax.tree.leaves(end), jax.tree.leaves(last), strict=True):
        np.testing.assert_array_equal(a, b)


def test_resume_of_a_complete_run_does_nothing(uninterrupted):
    diary, _ = uninterrupted
    again, end = run(LoopConfig(num_steps=7), state=diary.states[7])
    assert again.events == [] and int(end.step) == 7


def test_trainer_log_every():
    diary, _ = run(LoopConfig(num_steps=5, log_every=2, save_every=3))
    assert diary.steps('log') == [2, 4, 5]
    assert diary.steps('save') == [3, 5]


NAN, INF, NO_SLOPE = {'bad': float('nan')}, {'bad': float('inf')}, {'slope': 0.0}


@pytest.mark.parametrize(
    ('batch', 'name'), [(NAN, 'loss is nan'), (INF, 'loss is inf'), (NO_SLOPE, 'grad_norm is nan')]
)
def test_bad_step_is_skipped_counted_and_dumped(batch, name, uninterrupted):
    """Also at a step that would be saved: that waits until the numbers are good again."""
    diary, last = run(LoopConfig(num_steps=7, save_every=3), bad={3: batch})
    assert int(last.step) == 7 and diary.steps('save') == [4, 6, 7] and diary.steps('log') == list(range(1, 8))
    assert [diary.rows['log', step]['bad_steps'] for step in range(1, 8)] == [0, 0, 1, 1, 1, 1, 1]
    assert diary.rows['log', 3]['update_norm'] == 0 and np.isfinite(diary.rows['log', 3]['param_norm'])
    (case,) = diary.cases
    assert (case.step, case.anomaly.kind, case.anomaly.needs_rollback) == (3, 'bad step', False)
    assert name in case.anomaly.reason and any(f'BAD STEP at step 3: {name}' in line for line in diary.lines)
    np.testing.assert_array_equal(case.batch['x'], toy.batch(2)['x'])
    assert diary.progress[7]['bad_steps'] == 1
    # The steps before and the one after are those of a run without it.
    other, _ = uninterrupted
    assert diary.rows['log', 2]['loss'] == other.rows['log', 2]['loss']
    assert diary.rows['log', 4]['loss'] != other.rows['log', 4]['loss']


def test_bad_step_metrics_are_always_written():
    diary, _ = run(LoopConfig(num_steps=5, log_every=5), bad={2: NAN})
    assert diary.steps('log') == [2, 5]


def test_rollback_after_consecutive_bad_steps_uses_other_batches():
    bad = {(step, 0): NAN for step in (5, 6, 7)}
    config = LoopConfig(num_steps=8, save_every=2, bad_steps=BadStepsConfig(max_consecutive=3))
    diary, last = run(config, bad=bad)
    assert int(last.step) == 8 and diary.orders == [(0, 0), (4, 1)]
    assert diary.events.index(('rewind', 4)) > diary.events.index(('log', 7))
    assert diary.steps('save') == [2, 4, 6, 8]
    assert (
        diary.progress[4]['num_rollbacks'] == 0
        and diary.progress[6]['num_rollbacks'] == 1
        and diary.progress[8]['bad_steps'] == 3
    )
    assert any('ROLLED BACK to step 4 (step 7: loss is nan (3 consecutive bad steps))' in line for line in diary.lines)
    # A run that is stopped after it resumes with the same batches and the same noise.
    again, end = run(config, bad=bad, state=diary.states[6], progress=diary.progress[6])
    assert again.orders == [(6, 1)]
    for step in (7, 8):
        assert again.rows['log', step]['loss'] == diary.rows['log', step]['loss']
        assert again.rows['log', step]['bad_steps'] == 3
    for a, b in zip(jax.tree.leaves(end), jax.tree.leaves(last), strict=True):
        np.testing.assert_array_equal(a, b)


def test_rollback_drops_later_losses():
    """Or spikes would be measured by steps that never were."""
    bad = {(step, 0): NAN for step in (6, 7)}
    config = LoopConfig(num_steps=8, save_every=4, bad_steps=BadStepsConfig(max_consecutive=2))
    diary, _ = run(config, bad=bad)
    assert diary.orders == [(0, 0), (4, 1)] and diary.steps('log').count(5) == 2
    assert diary.progress[8]['losses'] == [diary.rows['log', step]['loss'] for step in range(1, 9)]


def test_rollback_uses_other_noise():
    config = LoopConfig(num_steps=3)
    (first, _), (other, _) = run(config), run(config, progress={'num_rollbacks': 1})
    assert first.rows['log', 1]['noise'] != other.rows['log', 1]['noise']


@pytest.mark.parametrize(
    ('config', 'words'),
    [
        ({'on_limit': 'stop'}, 'step 5: loss is nan (2 consecutive bad steps); earlier checkpoints are kept'),
        ({'max_rollbacks': 0}, 'after 0 rollback(s)'),
        ({'max_rollbacks': 2}, 'after 2 rollback(s)'),
    ],
)
def test_rollback_limits_end_the_run(config, words):
    bad = {step: NAN for step in range(4, 9)}
    config = LoopConfig(num_steps=8, save_every=2, bad_steps=BadStepsConfig(max_consecutive=2, **config))
    diary, error = run(config, bad=bad)
    assert isinstance(error, FloatingPointError) and words in str(error) and '--config.init_from' in str(error)
    assert set(diary.steps('save')) == {2}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(diary.states[2]))


def test_rollback_without_a_checkpoint_ends_the_run():
    _, error = run(LoopConfig(num_steps=8), bad={step: NAN for step in range(1, 9)})
    assert 'step 3: loss is nan (3 consecutive bad steps), and there is no checkpoint' in str(error)


def test_rollback_at_once_when_parameters_overflow():
    with_rate = dataclasses.replace(OPTIM, learning_rate=1e30)
    diary, error = run(LoopConfig(num_steps=8), optim=with_rate)
    assert isinstance(error, FloatingPointError) and 'step 1: update_norm is inf' in str(error)
    assert not diary.states


def test_spike_is_logged_counted_and_dumped():
    config = LoopConfig(num_steps=40, log_every=10, bad_steps=BadStepsConfig(spike_sigmas=50.0, max_dumps=1))
    diary, last = run(config, bad={step: {'bad': 1e4} for step in (5, 30, 32)})
    assert int(last.step) == 40
    spikes = [line.split(':')[0] for line in diary.lines if line.startswith('SPIKE')]
    assert spikes == ['SPIKE at step 30', 'SPIKE at step 32']  # 5: nothing to compare to
    assert diary.rows['log', 40]['spikes'] == 2 and diary.rows['log', 40]['bad_steps'] == 0
    assert [case.step for case in diary.cases] == [30] and diary.steps('log') == [10, 20, 30, 32, 40]
    assert len(diary.progress[40]['losses']) == 38
    none = dataclasses.replace(config, bad_steps=BadStepsConfig(spike_sigmas=0.0))
    diary, _ = run(none, bad={30: {'bad': 1e4}})
    assert diary.rows['log', 40]['spikes'] == 0


def request_at(ends=None, saves=()):
    return lambda step: np.array([step == ends, step in saves])


def test_resume_is_bit_exact_after_a_stop_signal(uninterrupted):
    """The signal is read with the metrics of a step, while the next step runs: that one is completed."""
    config = LoopConfig(num_steps=7, save_every=3, eval_every=2)
    diary, error = run(config, validation=True, poll_signals=request_at(ends=3))
    # Step 3 was to be saved, so it was read at once; what is asked at step 4 is read there, for it is evaluated.
    assert isinstance(error, PreemptedError) and str(error).startswith('preempted at step 3, which is saved')
    assert diary.steps('save') == [3] and diary.steps('goodput')[-1] == 3
    diary, error = run(config, validation=True, poll_signals=request_at(ends=4))
    assert 'step 4' in str(error) and diary.steps('save') == [3, 4]
    # What is evaluated comes after what is saved: there may be seconds left.
    assert diary.events.index(('save', 4)) < diary.events.index(('eval', 4))
    diary, error = run(LoopConfig(num_steps=7, save_every=9), poll_signals=request_at(ends=1))
    assert 'step 2' in str(error) and diary.steps('save') == [2]
    _, last = run(LoopConfig(num_steps=7, save_every=9), state=diary.states[2], progress=diary.progress[2])
    for a, b in zip(jax.tree.leaves(last), jax.tree.leaves(uninterrupted[1]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_save_overlaps_with_steps_until_the_next_save(uninterrupted):
    diary, _ = uninterrupted
    at = diary.events.index
    assert at(('save', 3)) < at(('draw', 5)) < at(('saved', 3)) < at(('save', 6)) < at(('saved', 6))
    assert [saving for kind, saving in diary.events if kind == 'poll'] == [None, None, None, 3, 3, 3, 6]
    assert diary.events[-1] == ('goodput', 7) and at(('save', 7)) + 1 == at(('saved', 7))


def test_stop_signal_waits_for_the_save():
    diary = Diary()
    diary.could = False
    diary, error = run(LoopConfig(num_steps=7, save_every=9), poll_signals=request_at(ends=2), diary=diary)
    assert str(error).startswith('preempted at step 3, which could not be saved')
    assert diary.events[-2:] == [('saved', 3), ('goodput', 3)]


def test_stop_signal_at_the_last_step_is_ignored():
    diary, last = run(LoopConfig(num_steps=3), poll_signals=request_at(ends=3))
    assert int(last.step) == 3 and diary.steps('save') == [3]


def test_save_signal_saves_and_continues():
    diary, last = run(LoopConfig(num_steps=9, save_every=5), poll_signals=request_at(saves=(2, 7)))
    assert diary.steps('save') == [3, 5, 8, 9] and int(last.step) == 9


def test_goodput_is_written_at_evaluations_and_at_the_end(uninterrupted):
    diary, _ = uninterrupted
    assert diary.steps('goodput') == [2, 4, 6, 7]
    row = diary.rows['goodput', 7]
    assert sum(value for name, value in row.items() if name != 'goodput/seconds') == pytest.approx(1)
    assert row['goodput/compile'] > 0 and row['goodput/evaluation'] > 0 and row['goodput/checkpoint'] > 0


def test_profile_hook_is_called_at_every_step():
    inputs = []
    run(LoopConfig(num_steps=4, save_every=2), profile=lambda step, before: inputs.append((step, before is None)))
    assert inputs == [(1, True), (2, False), (3, True), (4, False)]


@pytest.mark.parametrize('field', ['num_steps', 'log_every', 'save_every', 'max_to_keep'])
def test_loop_config_refuses_zero(field):
    with pytest.raises(ConfigError, match=f'{field}=0: must be at least 1'):
        LoopConfig(**{'num_steps': 3, field: 0})


@dataclasses.dataclass
class HealthResult:
    metrics: dict
    videos: list


def test_health_check_is_written_and_reports_collapse():
    """It measures what is kept for inference, the average where there is one."""
    seen = []

    def health(params):
        seen.append(params['trainable']['head']['kernel'])
        return HealthResult({'energy': 0.2, 'psnr': 30.0}, [('heldout_0', np.zeros((1, 8, 8, 3), np.uint8))])

    collapse_monitor = CollapseMonitorConfig(after_step=3, update_ratio=1e9)
    diary, last = run(
        LoopConfig(num_steps=4, eval_every=2, collapse_monitor=collapse_monitor), validation=True, health=health
    )
    assert diary.steps('health') == [2, 4] and int(last.step) == 4
    assert [diary.rows['health', step]['health/collapse_warnings'] for step in (2, 4)] == [0, 1]
    assert diary.rows['health', 4]['health/energy'] == 0.2 and diary.rows['health', 4]['health/update_ratio'] > 0
    assert [video[:2] for video in diary.videos] == [(2, 'heldout_0'), (4, 'heldout_0')]
    assert any('COLLAPSE at step 4: energy 0.2 is below 0.6' in line for line in diary.lines)
    np.testing.assert_array_equal(seen[1], diary.states[4].ema['head']['kernel'])
    stop = dataclasses.replace(collapse_monitor, stop=True, after_step=2)
    diary, last = run(LoopConfig(num_steps=4, eval_every=2, collapse_monitor=stop), validation=True, health=health)
    assert isinstance(last, CollapseError) and 'step 2: energy 0.2 is below 0.6' in str(last)
    assert diary.steps('log') == [1, 2] and diary.steps('health') == [2]
