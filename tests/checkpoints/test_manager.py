"""Checkpoints: bit-exact round trips, also from other devices; errors in one line."""

import os
import subprocess
import sys
import tempfile
import threading
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from fv_jax.checkpoints import checksums, manager
from fv_jax.checkpoints.errors import CheckpointError, DamagedError
from fv_jax.checkpoints.manager import Checkpoints
from fv_jax.training import optimizer, state
from tests.training import toy

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {'JAX_PLATFORMS': 'cpu'}
OPTIM = optimizer.OptimConfig(ema_decay=0.9)
ITEMS = {'params': {'w': np.zeros(3)}}
CONFIG = {'stage': {'kind': 'toy'}, 'loop': {'num_steps': 3, 'max_to_keep': None}}


def train_state(ema=True):
    """Returns a state whose values all differ, none of which float16 or a short decimal represents exactly."""
    _, start, _ = toy.new(toy.Toy(), optimizer.OptimConfig(ema_decay=0.9 if ema else 0.0))
    rng = np.random.default_rng(0)
    filled = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), start)
    counts = [x for x in jax.tree.leaves(filled.opt_state) if x.dtype == jnp.int32]
    assert counts  # the optimizer's own
    number = iter(range(11, 99))
    filled = jax.tree.map(lambda x: jnp.asarray(next(number)) if x.dtype == jnp.int32 else x, filled)
    filled.step = jnp.asarray(5)
    return filled


def abstract(tree):
    return jax.eval_shape(lambda: tree)


def save(folder, *steps, max_to_keep=None, items=None):
    checkpoints = Checkpoints(folder, max_to_keep=max_to_keep)
    for step in steps:
        checkpoints.save(
            step, items or {'state': {'step': jnp.asarray(step)}, 'params': {'w': jnp.full(3, step)}}, CONFIG
        )
    return checkpoints


def restore_params(folder, step=None):
    """Returns the values that `save` wrote."""
    items = {'params': {'w': jax.ShapeDtypeStruct((3,), jnp.int32)}}
    return np.asarray(Checkpoints(folder, read_only=True).restore(items, step)['params']['w'])


def one_line(error):
    text = str(error.value)
    assert '\n' not in text and len(text) < 700
    return text


# Round trip.


@pytest.mark.parametrize('ema', [True, False])
def test_restore_is_bit_exact(tmp_path, ema):
    saved = train_state(ema)
    Checkpoints(tmp_path).save(5, state.to_items(saved), CONFIG)
    items = Checkpoints(tmp_path).restore(abstract(state.to_items(saved)))
    back = state.from_items(items, ema=ema)
    assert jax.tree.structure(back) == jax.tree.structure(saved)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(saved), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert int(back.step) == 5


def test_restore_of_params_alone(tmp_path):
    saved = train_state()
    Checkpoints(tmp_path).save(5, state.to_items(saved), CONFIG)
    params = Checkpoints(tmp_path, read_only=True).restore(abstract({'params': state.inference_params(saved)}))
    assert params.keys() == {'params'}
    np.testing.assert_array_equal(params['params']['trainable']['head']['kernel'], saved.ema['head']['kernel'])


def test_meta_has_the_configuration_and_the_data_position(tmp_path):
    save(tmp_path, 1, 2)
    reader = Checkpoints(tmp_path, read_only=True)
    assert reader.meta() == {'step': 2, 'data_position': 2, 'config': CONFIG}
    assert reader.meta(1)['step'] == 1


def test_max_to_keep_deletes_the_oldest(tmp_path):
    checkpoints = save(tmp_path, 1, 2, 3, 4, max_to_keep=2)
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ['3', '4']
    assert checkpoints.latest_step == 4
    assert restore_params(tmp_path).tolist() == [4, 4, 4] and restore_params(tmp_path, 3).tolist() == [3, 3, 3]


def test_read_only_changes_nothing(tmp_path):
    save(tmp_path, 1, 2, 3)
    debris = tmp_path / 'checkpoints' / '4.orbax-checkpoint-tmp'
    debris.mkdir()
    before = sorted(tmp_path.rglob('*'))
    reader = Checkpoints(tmp_path, max_to_keep=1, read_only=True)
    assert reader.latest_step == 3
    restore_params(tmp_path)
    assert sorted(tmp_path.rglob('*')) == before


def test_restore_puts_arrays_on_the_first_device_by_default(tmp_path):
    """Written by a process with two devices, over both."""
    program = f"""
from pathlib import Path
import jax, jax.numpy as jnp
from fv_jax.checkpoints.manager import Checkpoints
mesh = jax.make_mesh((2,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
w = jax.device_put(jnp.arange(8.0), split)
assert len(w.sharding.device_set) == 2
Checkpoints(Path({str(tmp_path)!r})).save(1, {{'state': {{'step': jnp.asarray(1)}}, 'params': {{'w': w}}}}, {{}})
"""
    environment = ENVIRONMENT | {'XLA_FLAGS': '--xla_force_host_platform_device_count=2'}
    subprocess.run([sys.executable, '-c', program], check=True, cwd=ROOT, env=environment, capture_output=True)
    items = {'params': {'w': jax.ShapeDtypeStruct((8,), jnp.float32)}}
    w = Checkpoints(tmp_path, read_only=True).restore(items)['params']['w']
    assert w.sharding == jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    np.testing.assert_array_equal(w, np.arange(8.0))


# Asynchronous saves.


@pytest.fixture
def gate(monkeypatch):
    """An event before which nothing is written: creating the folder of a checkpoint blocks."""
    gate, mkdir = threading.Event(), os.mkdir

    def wait(path, *args, **kwargs):
        if threading.current_thread() is not threading.main_thread():
            gate.wait()
        mkdir(path, *args, **kwargs)

    monkeypatch.setattr(os, 'mkdir', wait)
    yield gate
    gate.set()


def test_save_is_of_the_arrays_before_they_were_donated(tmp_path, gate):
    """Steps overwrite the arrays before any of them is written."""
    w = jnp.arange(100_000, dtype=jnp.float32)
    step = jax.jit(lambda w: 2 * w + 1, donate_argnums=0)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.start(1, {'params': {'w': w}}, CONFIG)
    for _ in range(3):
        w = step(w)
    assert float(w[1]) == 15.0
    assert checkpoints.poll() == (True, False) and not steps(tmp_path)
    gate.set()
    checkpoints.wait()
    assert checkpoints.saving_since is None and steps(tmp_path) == [1]
    items = {'params': {'w': jax.ShapeDtypeStruct((100_000,), jnp.float32)}}
    back = Checkpoints(tmp_path, read_only=True).restore(items)['params']['w']
    np.testing.assert_array_equal(back, np.arange(100_000, dtype=np.float32))


def steps(folder):
    return sorted(int(path.name) for path in (folder / 'checkpoints').iterdir() if path.name.isdigit())


def test_save_with_another_structure_on_disk_is_removed(tmp_path, monkeypatch):
    checkpoints = save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, '_check_structure', fail_with(CheckpointError('another architecture')))
        with pytest.raises(CheckpointError, match=r'step 2 could not be saved .*another architecture.* step 1'):
            checkpoints.save(2, ITEMS, CONFIG)
    assert steps(tmp_path) == [1] and checkpoints.latest_step == 1
    checkpoints.save(2, ITEMS, CONFIG)
    assert steps(tmp_path) == [1, 2]


def test_save_fails_at_once_in_a_folder_that_is_not_writable(tmp_path, monkeypatch):
    checkpoints = save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, 'TemporaryFile', fail_with(OSError('Read-only file system')))
        began = time.monotonic()
        with pytest.raises(CheckpointError, match=r'step 2 could not be saved .Read-only file system'):
            checkpoints.save(2, ITEMS, CONFIG)
    assert time.monotonic() - began < 300  # Orbax would wait for ten minutes
    checkpoints.save(3, ITEMS, CONFIG)
    assert steps(tmp_path) == [1, 3] and checkpoints.latest_step == 3


def fail_with(error):
    def fail(*_, **__):
        raise error

    return fail


# Errors of reading.


def test_restore_names_the_first_difference_to_another_architecture(tmp_path):
    items = state.to_items(train_state())
    Checkpoints(tmp_path).save(1, items, CONFIG)
    wanted = abstract({'params': items['params']})
    head = wanted['params']['trainable']['head']
    head['kernel'] = jax.ShapeDtypeStruct((3, 4), jnp.float32)
    with pytest.raises(CheckpointError) as error:
        Checkpoints(tmp_path).restore(wanted)
    text = one_line(error)
    assert 'has another architecture: trainable/head/kernel is (3, 2) there and (3, 4) in this' in text
    assert "1 differences in 'params'" in text
    del head['kernel']
    head['more'] = jax.ShapeDtypeStruct((7,), jnp.float32)
    with pytest.raises(
        CheckpointError, match=r'head/kernel is \(3, 2\) there and absent in this configuration \(2 diff'
    ):
        Checkpoints(tmp_path).restore(wanted)
    with pytest.raises(CheckpointError, match=r'trainable/head/kernel .*\(2 differences'):
        Checkpoints(tmp_path).restore(wanted | {'state': abstract(items['state'])})


def test_restore_refuses_the_state_of_another_optimizer(tmp_path):
    items = state.to_items(train_state())
    Checkpoints(tmp_path).save(1, items, CONFIG)
    wanted = abstract(items)
    wanted['state']['opt_state'] = {}
    with pytest.raises(CheckpointError, match=r'opt_state/.* in this configuration'):
        Checkpoints(tmp_path).restore(wanted)


def test_restore_without_checkpoints_or_of_an_absent_step(tmp_path):
    with pytest.raises(CheckpointError, match='none: does not exist'):
        Checkpoints(tmp_path / 'none', read_only=True)
    assert not (tmp_path / 'none').exists()
    (tmp_path / 'empty' / 'checkpoints').mkdir(parents=True)
    empty = Checkpoints(tmp_path / 'empty', read_only=True)
    assert empty.latest_step is None
    with pytest.raises(CheckpointError, match='contains no completed checkpoint'):
        empty.meta()
    save(tmp_path, 2, 4)
    with pytest.raises(CheckpointError, match='has no step 3; it has 2, 4'):
        Checkpoints(tmp_path, read_only=True).meta(3)


def test_damaged_step_is_omitted_until_it_is_saved_again(tmp_path):
    checkpoints = save(tmp_path, 1, 2, 3)
    checkpoints.mark_damaged(3, 'a file differs')
    checkpoints.reload()
    assert checkpoints.steps == [1, 2] and checkpoints.list_damaged() == {3}
    assert steps(tmp_path) == [1, 2, 3] and (tmp_path / 'damaged' / '3.txt').read_text() == 'a file differs\n'
    reader = Checkpoints(tmp_path, read_only=True)
    assert reader.latest_step == 2 and reader.meta()['step'] == 2
    with pytest.raises(DamagedError, match='step 3 is damaged: a file differs'):
        reader.meta(3)
    save(tmp_path, 3, items={'params': {'w': jnp.full(3, 7)}})
    assert restore_params(tmp_path).tolist() == [7, 7, 7] and not list((tmp_path / 'damaged').iterdir())


def test_max_to_keep_does_not_count_a_damaged_step(tmp_path):
    save(tmp_path, 1, 2, 3).mark_damaged(2, '')
    assert save(tmp_path, 4, max_to_keep=2).steps == [3, 4] and steps(tmp_path) == [2, 3, 4]


def test_step_that_cannot_be_removed_is_tried_again(tmp_path, monkeypatch, log_lines):
    checkpoints = save(tmp_path, 1, 2, max_to_keep=2)
    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', fail_with(OSError('Device or resource busy')))
        patch.setattr(checksums, 'write_checksums', lambda folder: None)  # replaces its file too
        checkpoints.save(3, ITEMS, CONFIG)
    assert steps(tmp_path) == [1, 2, 3] and 'checkpoints/1: cannot be removed (Device or res' in log_lines[0]
    checkpoints.save(4, ITEMS, CONFIG)
    assert steps(tmp_path) == checkpoints.steps == [3, 4]


def test_restore_of_an_absent_item(tmp_path):
    save(tmp_path, 1, items={'params': {'w': jnp.ones(3)}})
    with pytest.raises(CheckpointError, match="has no item 'state'"):
        Checkpoints(tmp_path).restore({'state': {'step': jax.ShapeDtypeStruct((), jnp.int32)}})


@pytest.mark.parametrize('damage', ['arrays', 'meta'])
def test_restore_of_a_damaged_checkpoint_names_the_other_steps(tmp_path, damage):
    save(tmp_path, 1, 2)
    newest = tmp_path / 'checkpoints' / '2'
    for path in [p for p in newest.rglob('*') if p.is_file()]:
        if damage == 'arrays' and path.parent.name == 'd':
            path.write_bytes(path.read_bytes()[:-5])
        if damage == 'meta' and path.parent.name == 'meta':
            path.write_text('{')
    with pytest.raises(CheckpointError) as error:
        restore_params(tmp_path) if damage == 'arrays' else Checkpoints(tmp_path, read_only=True).meta()
    assert 'checkpoints/2: cannot be read; other steps: 1' in one_line(error)
    assert restore_params(tmp_path, 1).tolist() == [1, 1, 1]


# Errors of saving.


FULL_DISK = """
import resource, sys
from pathlib import Path
import jax.numpy as jnp
import numpy as np
from fv_jax.checkpoints.errors import CheckpointError
from fv_jax.checkpoints.manager import Checkpoints

checkpoints = Checkpoints(Path(sys.argv[1]), max_to_keep=1)
for step in (1, 2):
    numbers = np.random.default_rng(step).standard_normal(50_000)
    try:
        checkpoints.save(step, {'state': {'step': jnp.asarray(step)}, 'params': {'w': jnp.asarray(numbers)}}, {})
    except CheckpointError as error:
        print(error)
    # No file may grow beyond this from now on, which is what a write to a full disk meets.
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
"""


def test_save_to_a_full_disk_leaves_earlier_checkpoints(tmp_path):
    """In a process of its own: the library's threads do not survive it unharmed."""
    command = [sys.executable, '-c', FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, check=True, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    (text,) = done.stdout.splitlines()
    assert len(text) < 700
    assert 'step 2 could not be saved' in text and 'the newest checkpoint is step 1' in text
    items = {'params': {'w': jax.ShapeDtypeStruct((50_000,), jnp.float32)}}
    reader = Checkpoints(tmp_path, read_only=True)
    assert [p.name for p in reader.folder.iterdir()] == ['1']  # the disk is as free as before
    expected = np.random.default_rng(1).standard_normal(50_000).astype(np.float32)
    np.testing.assert_array_equal(reader.restore(items)['params']['w'], expected)
    # The same command again, with room.
    save(tmp_path, 2, max_to_keep=1)
    assert [p.name for p in reader.folder.iterdir()] == ['2']


def test_save_failure_is_one_line(tmp_path, monkeypatch):
    checkpoints = save(tmp_path, 1, 3)

    def fail(*args, **kwargs):
        raise ValueError('pages\nof ' + 1000 * 'noise ')

    monkeypatch.setattr(ocp.CheckpointManager, 'save', fail)
    for step, words in ((2, 'the newest checkpoint is step 1'), (0, 'there is no earlier checkpoint')):
        with pytest.raises(CheckpointError) as error:
            checkpoints.save(step, {}, CONFIG)
        text = one_line(error)
        assert f'step {step} could not be saved' in text and 'pages of noise' in text and words in text


def test_save_failure_removes_what_other_writers_still_write(tmp_path, monkeypatch):
    checkpoints = save(tmp_path, 1, 3)
    debris = checkpoints.folder / '2.orbax-checkpoint-tmp'
    now, late = [0.0], [0.05 * i for i in range(10)]

    def others_write(seconds):
        now[0] += seconds
        if late and now[0] >= late[0]:
            late.pop(0)
            debris.mkdir(exist_ok=True)
            (debris / 'file').write_text('late')

    def fail(*args, **kwargs):
        others_write(0.0)
        raise OSError('no space left')

    # A clock of its own: on a busy machine, threads come late by more than any wait.
    monkeypatch.setattr(manager, 'time', types.SimpleNamespace(monotonic=lambda: now[0], sleep=others_write))
    monkeypatch.setattr(ocp.CheckpointManager, 'save', fail)
    with pytest.raises(CheckpointError):
        checkpoints.save(2, {}, CONFIG)
    assert not late
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ['1', '3']


def test_opening_removes_what_a_killed_process_left(tmp_path):
    checkpoints = save(tmp_path, 1)
    debris = checkpoints.folder / '3.orbax-checkpoint-tmp'
    debris.mkdir()
    (debris / 'incomplete').write_text('array')
    assert Checkpoints(tmp_path, read_only=True).latest_step == 1
    save(tmp_path, 2)
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ['1', '2']


def test_save_never_overwrites_a_step(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(CheckpointError, match='step 1'):
        save(tmp_path, 1)
    assert restore_params(tmp_path).tolist() == [1, 1, 1]
