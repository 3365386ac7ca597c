"""Checkpoints in a bucket: complete or ignored, verified by the store's checksums, never read back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fv_jax.checkpoints import streaming
from fv_jax.checkpoints.errors import CheckpointError, DamagedError
from fv_jax.checkpoints.manager import Checkpoints
from fv_jax.core.paths import as_path
from tests.storage.faults import Fault

CONFIG = {'stage': {'kind': 'toy'}}
SIZE = 100_000


@pytest.fixture
def run(gs_bucket):
    return as_path(f'{gs_bucket.url}/runs/a')


def save(run, *steps, max_to_keep=None):
    checkpoints = Checkpoints(run, max_to_keep=max_to_keep)
    for step in steps:
        items = {'state': {'step': jnp.asarray(step)}, 'params': {'w': random_array(step)}}
        checkpoints.save(step, items, CONFIG)
    return checkpoints


def random_array(step):
    return jnp.asarray(np.random.default_rng(step).standard_normal(SIZE, np.float32))


def restore(run, step=None):
    items = {'params': {'w': jax.ShapeDtypeStruct((SIZE,), jnp.float32)}}
    return np.asarray(Checkpoints(run, read_only=True).restore(items, step)['params']['w'])


def names_of_step(bucket, step):
    return sorted(name for name in bucket.sizes() if f'/checkpoints/{step}/' in name)


def largest(bucket, step):
    return max(names_of_step(bucket, step), key=bucket.sizes().__getitem__)


def test_checkpoints_in_a_bucket_are_bit_exact_and_not_read_back(run, gs_bucket):
    checkpoints = save(run, 1, 2, 3, max_to_keep=2)
    down = sum(request.down for request in gs_bucket.proxy.requests if request.call.kind == 'read')
    assert down < 3 * 4 * SIZE / 10
    assert checkpoints.steps == [2, 3] == Checkpoints(run, read_only=True).steps
    assert not names_of_step(gs_bucket, 1)
    for step in (2, 3):
        np.testing.assert_array_equal(restore(run, step), random_array(step))
    assert Checkpoints(run, read_only=True).meta() == {'step': 3, 'data_position': 3, 'config': CONFIG}


def test_unfinished_step_is_ignored_and_removed_when_a_run_opens_the_folder(run, gs_bucket):
    save(run, 1, 2)
    name = next(name for name in names_of_step(gs_bucket, 2) if name.endswith('/2/commit_success.txt'))
    (run.parent.parent / name).unlink()
    assert names_of_step(gs_bucket, 2)
    reader = Checkpoints(run, read_only=True)
    assert reader.steps == [1] and restore(run).tolist() == random_array(1).tolist()
    checkpoints = save(run, max_to_keep=3)
    assert not names_of_step(gs_bucket, 2) and checkpoints.steps == [1]
    save(run, 2)
    np.testing.assert_array_equal(restore(run), random_array(2))


def test_damaged_object_is_found_without_reading_it(run, gs_bucket):
    save(run, 1, 2)
    reader, name = Checkpoints(run, read_only=True), largest(gs_bucket, 2)
    gs_bucket.proxy.reset()
    assert reader.verify(2) is None
    assert sum(request.down for request in gs_bucket.proxy.requests if request.call.kind == 'read') < 10_000
    data = gs_bucket.read(name)
    gs_bucket.write(name, data[:-1] + bytes([data[-1] ^ 1]))
    file = name.partition('/checkpoints/2/')[2]
    assert reader.verify(2) == f'{file} differs from what was written (crc32c)'
    gs_bucket.write(name, data[:-1])
    assert reader.verify(2) == f'{file} has {len(data) - 1} bytes instead of {len(data)}'
    (run.parent.parent / name).unlink()
    assert reader.verify(2) == f'{file} is missing'
    with pytest.raises(DamagedError, match='checkpoints/2: cannot be read; other steps: 1'):
        restore(run)


def test_damaged_step_is_marked_and_removed_when_it_is_saved_again(run, gs_bucket):
    checkpoints = save(run, 1, 2)
    checkpoints.mark_damaged(2, 'a file differs')
    before = names_of_step(gs_bucket, 2)
    assert gs_bucket.read('runs/a/damaged/2.txt') == b'a file differs\n' and Checkpoints(run, read_only=True).steps == [
        1
    ]
    assert save(run, 2).steps == [1, 2]
    np.testing.assert_array_equal(restore(run), random_array(2))
    assert 'runs/a/damaged/2.txt' not in gs_bucket.sizes() and names_of_step(gs_bucket, 2) != before


def test_save_that_fails_leaves_the_earlier_checkpoints_alone(run, gs_bucket):
    checkpoints = save(run, 1)
    fault = Fault(status=403, kinds=('upload',), pattern='checkpoints/2/')
    message = r'step 2 could not be saved .*the newest checkpoint is step 1'
    with gs_bucket.proxy.inject(fault), pytest.raises(CheckpointError, match=message):
        checkpoints.save(2, {'params': {'w': random_array(2)}}, CONFIG)
    assert not names_of_step(gs_bucket, 2) and checkpoints.steps == [1]
    checkpoints.save(2, {'params': {'w': random_array(2)}}, CONFIG)
    assert checkpoints.steps == [1, 2]


def test_removal_that_is_interrupted_leaves_no_complete_checkpoint(run, gs_bucket):
    checkpoints = save(run, 1, 2, max_to_keep=2)
    with gs_bucket.proxy.inject(Fault(status=403, kinds=('delete', 'batch'), pattern='checkpoints/1/', skip=1)):
        items = {'state': {'step': jnp.asarray(3)}, 'params': {'w': random_array(3)}}
        checkpoints.save(3, items, CONFIG)
    assert names_of_step(gs_bucket, 1)
    assert Checkpoints(run, read_only=True).steps == [2, 3]
    assert save(run, 4, max_to_keep=2).steps == [3, 4] and not names_of_step(gs_bucket, 1)


def test_rights_on_objects_are_enough(run, gs_bucket):
    """Orbax itself would ask for the properties of the bucket, which the role Storage Object User may not see."""
    with gs_bucket.proxy.inject(Fault(status=403, kinds=('other',))) as fault:
        save(run, 1, 2, max_to_keep=1)
        gs_bucket.write('runs/a/checkpoints/3/state/unfinished', b'')
        assert save(run, 4).steps == [2, 4] and not names_of_step(gs_bucket, 3)
        np.testing.assert_array_equal(restore(run), random_array(4))
    assert fault.num_matched == 0


def test_streaming_reader_and_writer(run):
    class Values:
        shape, dtype = (SIZE,), np.dtype(np.float32)

        def numpy(self):
            return np.asarray(random_array(0))

    streaming.save(run, 7, {'trainable': {'w': Values()}, 'frozen': {}}, CONFIG)
    stored = streaming.CheckpointReader(run)
    assert stored.meta['step'] == 7
    np.testing.assert_array_equal(stored.arrays()['w'].numpy(), random_array(0))


def test_checkpoints_on_s3_are_refused():
    for use in (Checkpoints, streaming.CheckpointReader):
        with pytest.raises(
            CheckpointError, match=r's3://bucket/run: checkpoints can be in local folders and gs:// only'
        ):
            use(as_path('s3://bucket/run'))
