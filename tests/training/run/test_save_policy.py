"""Saving by the clock, failed saves, and the checkpoint that a run resumes from."""

import contextlib
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fv_jax.checkpoints import checksums
from fv_jax.checkpoints.errors import CheckpointError
from fv_jax.checkpoints.manager import Checkpoints
from fv_jax.core.config import ConfigError
from fv_jax.training.config import LoopConfig
from fv_jax.training.progress import Progress
from fv_jax.training.run import initialization, save_policy
from fv_jax.training.run.save_policy import SavePolicy
from fv_jax.training.state import TrainState


def train_state(step):
    w = {'w': jnp.full(3, step)}
    return TrainState(jnp.asarray(step), w, {'f': jnp.zeros(2)}, {'m': jnp.ones(3)}, w)


def saver(folder, **loop):
    config = LoopConfig(num_steps=100, **loop)
    checkpoints = Checkpoints(folder, max_to_keep=config.max_to_keep, keep_period=config.keep_period)
    return SavePolicy(checkpoints, config, {'loop': {}}, {}, lambda *wishes: np.array(wishes))


def save(saver, step):
    """From its beginning to its end."""
    saver.start(step, train_state(step), Progress(bad_steps=step))
    return saver.wait()


def steps(folder):
    return sorted(int(path.name) for path in (folder / 'checkpoints').iterdir())


def test_save_policy_keeps_newest_and_periodic_checkpoints(tmp_path, log_lines):
    saves = saver(tmp_path, max_to_keep=2, keep_period=4)
    for step in (2, 4, 6, 8, 10, 12, 14):
        assert save(saves, step)
    assert steps(tmp_path) == [4, 8, 12, 14] and log_lines[-1] == 'saved step 14'
    assert Checkpoints(tmp_path, read_only=True).meta()['progress']['bad_steps'] == 14


def test_save_is_due_by_the_clock(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(save_policy.time, 'monotonic', lambda: now)
    saves = saver(tmp_path, save_minutes=2.0)
    assert not saves.is_due()
    now += 119
    assert not saves.is_due()
    now += 1
    assert saves.is_due()
    saves.start(1, train_state(1), Progress())
    assert not saves.is_due()
    assert not saver(tmp_path).is_due()


def test_failed_saves_are_reported_and_limited(tmp_path, monkeypatch, log_lines):
    saves = saver(tmp_path, max_failed_saves=2)
    with full_disk(monkeypatch):
        assert not save(saves, 1) and not save(saves, 2)
    assert all(line.startswith('WARNING: ') and 'No space left' in line for line in log_lines)
    assert 'step 2 could not be saved' in log_lines[1] and 'max_failed_saves' in log_lines[1] and len(log_lines) == 2
    assert save(saves, 3)  # there is room again, and the count is reset
    with full_disk(monkeypatch):
        assert not save(saves, 4) and not save(saves, 5)
        with pytest.raises(CheckpointError, match='No space left'):
            save(saves, 6)
    saves = saver(tmp_path, max_failed_saves=9)
    with full_disk(monkeypatch), pytest.raises(CheckpointError):  # after the last step
        save(saves, 100)
    assert steps(tmp_path) == [3]


@contextlib.contextmanager
def full_disk(monkeypatch):
    """After Orbax has written the arrays."""

    def fail(*_):
        raise OSError('No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(checksums, 'write_checksums', fail)
        yield


def test_save_result_is_reported_without_waiting(tmp_path, monkeypatch, log_lines):
    """At the steps after it; what failed counts from then on, also when another save or the end comes first."""
    saves = saver(tmp_path, max_failed_saves=1)
    saves.poll()
    gate, write_checksums = threading.Event(), checksums.write_checksums
    monkeypatch.setattr(checksums, 'write_checksums', lambda folder: gate.wait() and write_checksums(folder))
    saves.start(1, train_state(1), Progress())
    for _ in range(3):
        saves.poll()
    assert not log_lines and saves.checkpoints.saving_since < time.monotonic()
    gate.set()
    poll_until(saves, log_lines, 1)
    assert log_lines == ['saved step 1'] and saves.checkpoints.saving_since is None
    with full_disk(monkeypatch):
        saves.start(2, train_state(2), Progress())
        poll_until(saves, log_lines, 2)
        assert 'WARNING' in log_lines[1] and 'step 2 could not be saved' in log_lines[1] and saves.failed == 1
        saves.start(3, train_state(3), Progress())
        with pytest.raises(CheckpointError, match='step 3 could not be saved'):
            saves.start(4, train_state(4), Progress())


def poll_until(saves, lines, count):
    deadline = time.monotonic() + 60
    while len(lines) < count and time.monotonic() < deadline:
        saves.poll()
        time.sleep(0.01)


def test_save_in_progress_is_completed_when_the_run_fails(tmp_path, monkeypatch, log_lines):
    write_checksums = checksums.write_checksums
    monkeypatch.setattr(checksums, 'write_checksums', lambda folder: time.sleep(0.3) or write_checksums(folder))
    saves = saver(tmp_path)
    with pytest.raises(FloatingPointError), saves:
        saves.start(1, train_state(1), Progress())
        raise FloatingPointError
    assert log_lines == ['saved step 1'] and (tmp_path / 'checkpoints' / '1' / checksums.CHECKSUMS).is_file()


@pytest.mark.parametrize('name', ['save_minutes', 'keep_period', 'max_failed_saves'])
def test_loop_config_refuses_negative_values(name):
    with pytest.raises(ConfigError, match=f'{name}=-1: must be at least 0'):
        LoopConfig(num_steps=1, **{name: -1})


# The checkpoint that the run resumes from.


class FakeSetup:
    """What `restore` needs of a train setup."""

    ema = True
    abstract_state = jax.eval_shape(lambda: train_state(0))


@pytest.fixture
def save_checkpoints(tmp_path):
    saves = saver(tmp_path, max_to_keep=5)
    for step in (1, 2, 3):
        save(saves, step)
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
def test_resume_falls_back_from_a_damaged_checkpoint(save_checkpoints, what, log_lines):
    damage(save_checkpoints, 3, what)
    own = initialization.valid_checkpoints(save_checkpoints)
    state, progress = initialization.restore(FakeSetup, own)
    assert int(state.step) == 2 and progress.bad_steps == 2 and state.trainable['w'].tolist() == [2, 2, 2]
    assert list(own.damaged) == [3]
    initialization.mark_damaged(own)
    assert Checkpoints(save_checkpoints, read_only=True).steps == [1, 2] and steps(save_checkpoints) == [1, 2, 3]
    assert (save_checkpoints / 'damaged' / '3.txt').read_text() == own.damaged[3] + '\n'
    log_lines.clear()
    saves = saver(save_checkpoints)  # the step can be saved again
    assert save(saves, 3) and log_lines == ['saved step 3']
    assert initialization.valid_checkpoints(save_checkpoints).steps == [1, 2, 3]


def test_resume_refuses_when_all_checkpoints_are_marked_as_damaged(save_checkpoints):
    """A new run would start at step 0, and drop the metrics of this one."""
    for step in (1, 2, 3):
        Checkpoints(save_checkpoints, read_only=True).mark_damaged(step, '')
    with pytest.raises(CheckpointError, match=r'no checkpoint is intact; step\(s\) 1, 2, 3 are marked as damaged'):
        initialization.valid_checkpoints(save_checkpoints)


def test_resume_refuses_when_all_checkpoints_are_damaged(save_checkpoints):
    for step in (1, 2, 3):
        damage(save_checkpoints, step, 'byte')
    with pytest.raises(CheckpointError, match=r'no checkpoint is intact; step 3: .*choose another --workdir'):
        initialization.valid_checkpoints(save_checkpoints)


def test_resume_reports_another_architecture_not_as_damage(save_checkpoints):
    class Other(FakeSetup):
        abstract_state = jax.eval_shape(lambda: TrainState(**(vars(train_state(0)) | {'frozen': {'f': jnp.zeros(9)}})))

    with pytest.raises(CheckpointError, match='another architecture'):
        initialization.restore(Other, initialization.valid_checkpoints(save_checkpoints))


def test_valid_checkpoints_of_a_new_run_are_none(tmp_path):
    assert initialization.valid_checkpoints(tmp_path) is None
    (tmp_path / 'checkpoints').mkdir()
    assert initialization.valid_checkpoints(tmp_path) is None
