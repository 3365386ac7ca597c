"""Streaming writes and reads the same checkpoints, with few arrays in memory."""

import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fv_jax.checkpoints import streaming
from fv_jax.checkpoints.errors import CheckpointError
from fv_jax.checkpoints.manager import Checkpoints

CONFIG = {'stage': {'kind': 'toy'}}


class Tracked(np.ndarray):
    """An array that weak references can point to."""


class Lazy:
    """Appends to `counts` how many of the arrays that share it exist at the same time."""

    def __init__(self, value, alive=None, counts=None):
        self.value, self.shape, self.dtype = value, value.shape, value.dtype
        self.alive, self.counts = [] if alive is None else alive, [] if counts is None else counts

    def numpy(self):
        made = np.array(self.value).view(Tracked)
        self.alive.append(weakref.ref(made))
        self.counts.append(sum(reference() is not None for reference in self.alive))
        return made


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    return {
        'trainable': {'lora': rng.standard_normal((3, 4)).astype(np.float32)},
        'frozen': {
            'blocks': {
                0: {'kernel': rng.standard_normal((2, 5)).astype(jnp.bfloat16)},
                1: {'kernel': rng.standard_normal(7).astype(np.float32)},
            }
        },
    }


@pytest.fixture
def run(tmp_path, params):
    streaming.save(tmp_path / 'run', 3, jax.tree.map(Lazy, params), CONFIG)
    return tmp_path / 'run'


def test_streaming_save_is_read_by_checkpoints(run, params):
    checkpoints = Checkpoints(run, read_only=True)
    assert checkpoints.meta() == {'step': 3, 'data_position': 3, 'config': CONFIG}
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    restored = checkpoints.restore({'params': abstract})['params']
    assert jax.tree.structure(restored) == jax.tree.structure(params)
    for mine, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(params), strict=True):
        assert isinstance(mine, jax.Array) and mine.dtype == wanted.dtype
        np.testing.assert_array_equal(mine, wanted)


@pytest.mark.parametrize('small', [0, 2**25])
@pytest.mark.parametrize('writer', ['streamed', 'manager'])
def test_streaming_reader_reads_checkpoints_of_both_writers(tmp_path, run, params, writer, small, monkeypatch):
    monkeypatch.setattr(streaming, 'SMALL_BYTES', small)
    if writer == 'manager':
        run = tmp_path / 'other'
        arrays = {'params': jax.tree.map(jnp.asarray, params), 'state': {'step': jnp.asarray(3)}}
        Checkpoints(run).save(3, arrays, CONFIG)
    stored = streaming.CheckpointReader(run)
    assert stored.meta['step'] == 3
    arrays = stored.arrays()
    assert arrays.keys() == {'lora', 'blocks.0.kernel', 'blocks.1.kernel'}
    wanted = {'lora': params['trainable']['lora']}
    wanted |= {f'blocks.{i}.kernel': params['frozen']['blocks'][i]['kernel'] for i in range(2)}
    for name, array in arrays.items():
        assert (array.shape, array.dtype) == (wanted[name].shape, wanted[name].dtype)
        found = array.numpy()
        assert isinstance(found, np.ndarray) and found.dtype == array.dtype
        np.testing.assert_array_equal(found, wanted[name])


def test_streaming_save_has_one_large_array_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, 'BATCH_BYTES', 4 * 1000)
    alive, counts = [], []
    tree = {f'x{i}': Lazy(np.full(1000, i, np.float32), alive, counts) for i in range(6)}
    tree |= {f'small{i}': Lazy(np.full(300, i, np.float32), alive, counts) for i in range(6)}
    streaming.save(tmp_path / 'run', 0, {'frozen': tree}, CONFIG)
    assert sorted(counts) == [1] * 6 + [1, 1, 2, 2, 3, 3]  # three small ones are one batch
    np.testing.assert_array_equal(streaming.CheckpointReader(tmp_path / 'run').arrays()['x4'].numpy(), np.full(1000, 4))


def test_streaming_errors_are_one_line(tmp_path, run):
    (tmp_path / 'file').write_text('')
    with pytest.raises(CheckpointError) as error:
        streaming.save(tmp_path / 'file', 0, {'frozen': {'x': Lazy(np.zeros(3))}}, CONFIG)
    assert 'step 0 could not be saved' in str(error.value) and '\n' not in str(error.value)
    with pytest.raises(CheckpointError, match='has no step 4; it has 3'):
        streaming.CheckpointReader(run, 4)
    (run / 'checkpoints' / '3' / 'params' / '_METADATA').write_text('{}')
    with pytest.raises(CheckpointError, match='cannot be read'):
        streaming.CheckpointReader(run)
