"""Saving by the clock, and saves that fail; which checkpoint a run goes on from."""

import contextlib

import jax
import jax.numpy as jnp
import pytest

from fv_jax.checkpoints.manager import CheckpointError, Checkpoints
from fv_jax.core.config import ConfigError
from fv_jax.running import saving, starting
from fv_jax.running.saving import Saver
from fv_jax.training.loop import LoopConfig
from fv_jax.training.progress import Progress
from fv_jax.training.state import TrainState


def train_state(step):
    w = {'w': jnp.full(3, step)}
    return TrainState(jnp.asarray(step), w, {'f': jnp.zeros(2)}, {'m': jnp.ones(3)}, w)


def saver(folder, **loop):
    config = LoopConfig(num_steps=100, **loop)
    checkpoints = Checkpoints(folder, keep=config.keep, keep_every=config.keep_every)
    lines = []
    return Saver(checkpoints, config, {'loop': {}}, {}, lines.append), lines


def steps(folder):
    return sorted(int(path.name) for path in (folder / 'checkpoints').iterdir())


def test_the_newest_stay_and_so_do_some_of_the_old_ones(tmp_path):
    save, lines = saver(tmp_path, keep=2, keep_every=4)
    for step in (2, 4, 6, 8, 10, 12, 14):
        assert save(step, train_state(step), Progress(bad_steps=step))
    assert steps(tmp_path) == [4, 8, 12, 14] and lines[-1] == 'saved step 14'
    assert Checkpoints(tmp_path, read_only=True).meta()['progress']['bad_steps'] == 14


def test_by_the_clock(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(saving.time, 'monotonic', lambda: now)
    save, _ = saver(tmp_path, save_minutes=2.0)
    assert not save.due()
    now += 119
    assert not save.due()
    now += 1
    assert save.due()
    with monkeypatch.context() as patch:
        patch.setattr(save.checkpoints, 'save', lambda *_: None)
        save(1, train_state(1), Progress())
    assert not save.due()
    assert not saver(tmp_path)[0].due()


def test_failed_saves_are_said_and_a_few_are_borne(tmp_path, monkeypatch):
    save, lines = saver(tmp_path, failed_saves=2)
    full = CheckpointError('step could not be saved (No space left on device)')

    def fail(*_):
        raise full

    with failing(monkeypatch, save.checkpoints, fail):
        assert not save(1, train_state(1), Progress()) and not save(2, train_state(2), Progress())
    assert [line.split('.')[0] for line in lines] == [f'WARNING: {full}'] * 2 and 'failed_saves' in lines[1]
    assert save(3, train_state(3), Progress())  # there is room again, and counting starts anew
    with failing(monkeypatch, save.checkpoints, fail):
        assert not save(4, train_state(4), Progress()) and not save(5, train_state(5), Progress())
        with pytest.raises(CheckpointError, match='No space left'):
            save(6, train_state(6), Progress())
    save, _ = saver(tmp_path, failed_saves=9)
    with failing(monkeypatch, save.checkpoints, fail), pytest.raises(CheckpointError):  # after the last step
        save(100, train_state(100), Progress())
    assert steps(tmp_path) == [3]


@contextlib.contextmanager
def failing(monkeypatch, checkpoints, fail):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, 'save', fail)
        yield


@pytest.mark.parametrize('name', ['save_minutes', 'keep_every', 'failed_saves'])
def test_what_cannot_be_is_refused(name):
    with pytest.raises(ConfigError, match=f'{name}=-1: must be at least 0'):
        LoopConfig(num_steps=1, **{name: -1})


# Which one is gone on from.


class Parts:
    """What `restore` needs of an assembly."""

    ema = True
    abstract_state = jax.eval_shape(lambda: train_state(0))


@pytest.fixture
def saved(tmp_path):
    save, _ = saver(tmp_path, keep=5)
    for step in (1, 2, 3):
        save(step, train_state(step), Progress(bad_steps=step))
    return tmp_path


def damage(folder, step, what):
    files = [p for p in sorted((folder / 'checkpoints' / str(step)).rglob('*')) if p.is_file()]
    if what == 'byte':
        path = max((p for p in files if p.parent.name == 'd'), key=lambda p: p.stat().st_size)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif what == 'item':
        for path in files:
            if path.parts[-2] == 'state' or 'state' in path.parts:
                path.unlink()
    elif what == 'meta':
        next(p for p in files if p.parent.name == 'meta').write_text('{')
    if what == 'item without checksums':
        damage(folder, step, 'item')
        next(p for p in files if p.name == 'checksums.json').unlink()


@pytest.mark.parametrize('what', ['byte', 'item', 'meta', 'item without checksums'])
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_taken(saved, what):
    damage(saved, 3, what)
    lines = []
    own = starting.own_checkpoints(saved)
    state, progress = starting.restore(Parts, own)
    assert int(state.step) == 2 and progress.bad_steps == 2 and state.trainable['w'].tolist() == [2, 2, 2]
    assert list(own.damaged) == [3]
    starting.put_aside(saved, own)
    assert steps(saved) == [1, 2] and (saved / 'damaged' / '3').is_dir()
    save, lines = saver(saved)  # the step can be saved again
    assert save(3, train_state(3), Progress()) and lines == ['saved step 3']
    assert starting.own_checkpoints(saved).steps == [1, 2, 3]


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_anew(saved):
    for step in (1, 2, 3):
        damage(saved, step, 'byte')
    with pytest.raises(CheckpointError, match=r'no checkpoint is whole; of step 3, .*choose another --workdir'):
        starting.own_checkpoints(saved)


def test_another_architecture_is_no_damage(saved):
    class Other(Parts):
        abstract_state = jax.eval_shape(lambda: TrainState(**(vars(train_state(0)) | {'frozen': {'f': jnp.zeros(9)}})))

    with pytest.raises(CheckpointError, match='another architecture'):
        starting.restore(Other, starting.own_checkpoints(saved))


def test_a_run_without_checkpoints_has_none(tmp_path):
    assert starting.own_checkpoints(tmp_path) is None
    (tmp_path / 'checkpoints').mkdir()
    assert starting.own_checkpoints(tmp_path) is None
