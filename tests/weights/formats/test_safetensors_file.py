"""Safetensors files tensor by tensor: what the package writes is read, what is written the package reads."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fv_jax.weights.formats import safetensors_file
from fv_jax.weights.formats.torch_zip import TensorSpec


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    arrays = {
        key: rng.standard_normal(shape).astype(np.float32) for key, shape in (('b', (3, 4)), ('a', (5,)), ('c', ()))
    }
    return arrays | {
        'half': rng.standard_normal((2, 3)).astype(np.float16),
        'bf': rng.standard_normal((2, 2)).astype(ml_dtypes.bfloat16),
        'empty': np.zeros((0, 3), np.float32),
        'whole': np.arange(3),
    }


def assert_same(found, tensors):
    assert found.keys() == tensors.keys()
    for key, array in tensors.items():
        value = found[key] if isinstance(found[key], np.ndarray) else found[key].numpy()
        assert (value.shape, value.dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(value, array)


def test_safetensors_written_by_the_library_is_read(tmp_path, tensors):
    save_file(tensors, tmp_path / 'x.safetensors', {'vae': 'null'})
    found, metadata = safetensors_file.read(tmp_path / 'x.safetensors')
    assert metadata == {'vae': 'null'}
    assert_same(found, tensors)
    assert not found['b'].storage.values.flags.owndata


def test_safetensors_is_read_by_the_library(tmp_path, tensors):
    specs = {key: TensorSpec(x.shape, x.dtype) for key, x in tensors.items()}
    backwards = [(key, tensors[key]) for key in reversed(list(tensors))]
    path = tmp_path / 'x.safetensors'
    safetensors_file.write(path, {'layout': 'official'}, specs, backwards)
    # The package would have large types first; readers do not mind.
    assert_same(load_file(path), tensors)
    assert_same(safetensors_file.read(path)[0], tensors)


@pytest.mark.parametrize(('max_bytes', 'files'), [(10**9, 1), (60, 3), (1, 7)])
def test_safetensors_in_a_folder_are_divided_with_an_index(tmp_path, tensors, max_bytes, files):
    specs = {key: TensorSpec(x.shape, x.dtype) for key, x in tensors.items()}
    safetensors_file.write_folder(tmp_path, 'model', {'format': 'np'}, specs, iter(tensors.items()), max_bytes)
    assert_same(safetensors_file.read_folder(tmp_path), tensors)
    names = sorted(path.name for path in tmp_path.glob('*.safetensors'))
    index = tmp_path / 'model.safetensors.index.json'
    if files == 1:
        assert names == ['model.safetensors'] and not index.exists()
        return
    assert names == [f'model-{i:05d}-of-{files:05d}.safetensors' for i in range(1, files + 1)]
    parts = [load_file(tmp_path / name) for name in names]
    assert all(len(part) == 1 or sum(x.nbytes for x in part.values()) <= max_bytes for part in parts)
    described = json.loads(index.read_text())
    assert described['metadata'] == {'total_size': sum(x.nbytes for x in tensors.values())}
    assert described['weight_map'] == {key: name for name, part in zip(names, parts, strict=True) for key in part}


@pytest.mark.parametrize('kept', [0, 5, 60, 0.6, 0.99])
def test_safetensors_truncated_file_is_refused(tmp_path, tensors, kept):
    path = tmp_path / 'x.safetensors'
    save_file(tensors, path)
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(ValueError, match=r'x.safetensors: .*(not a safetensors file|truncated)'):
        safetensors_file.read(path)


def test_safetensors_other_files_are_refused(tmp_path):
    (tmp_path / 'x.safetensors').write_text('these are no weights at all')
    with pytest.raises(ValueError, match='not a safetensors file'):
        safetensors_file.read(tmp_path / 'x.safetensors')
    with pytest.raises(FileNotFoundError, match='y'):
        safetensors_file.read(tmp_path / 'y.safetensors')


def test_safetensors_folder_of_several_files_requires_an_index(tmp_path, tensors):
    names = [f'model-{i}-of-2.safetensors' for i in (1, 2)]
    halves = [dict(list(tensors.items())[i::2]) for i in (0, 1)]
    for name, half in zip(names, halves, strict=True):
        save_file(half, tmp_path / name)
    with pytest.raises(ValueError, match='keep the files of one variant'):
        safetensors_file.read_folder(tmp_path)
    weight_map = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    (tmp_path / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': weight_map}))
    assert_same(safetensors_file.read_folder(tmp_path), tensors)
    (tmp_path / names[1]).unlink()
    with pytest.raises(FileNotFoundError, match=names[1]):
        safetensors_file.read_folder(tmp_path)


def shards(folder, tensors, change=lambda weight_map: None):
    """Two files and their index, changed."""
    keys = sorted(tensors)
    halves = {f'model-{i}-of-2.safetensors': {key: tensors[key] for key in keys[i - 1 :: 2]} for i in (1, 2)}
    for name, half in halves.items():
        save_file(half, folder / name)
    weight_map = {key: name for name, half in halves.items() for key in half}
    change(weight_map)
    (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': weight_map}))


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (
            lambda m: m.update(more='model-1-of-2.safetensors'),
            'match model-1-of-2.safetensors: more is not in it .1 d',
        ),
        (lambda m: m.pop('a'), 'match model-1-of-2.safetensors: a is in it, and not by the index .1 differences'),
        (lambda m: m.update(a='model-2-of-2.safetensors'), 'match model-1.*: a is in it, .* .2 differences'),
        (lambda m: m.update(a='../x.safetensors'), "names the file '../x.safetensors'; files must be in the same"),
        (lambda m: m.update(a=3), 'names the file 3'),
    ],
)
def test_safetensors_index_that_does_not_match_is_refused(tmp_path, tensors, change, words):
    shards(tmp_path, tensors, change)
    with pytest.raises(ValueError, match=words) as error:
        safetensors_file.read_folder(tmp_path)
    assert 'model.safetensors.index.json' in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('text', ['', '[]', '{}', '{"weight_map": 3}', '{"weight_map": {"a": []}}'])
def test_safetensors_invalid_index_is_refused(tmp_path, tensors, text):
    shards(tmp_path, tensors)
    (tmp_path / 'model.safetensors.index.json').write_text(text)
    with pytest.raises(ValueError, match=r'index.json: not an index'):
        safetensors_file.read_folder(tmp_path)


def test_safetensors_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'holds no .safetensors file'):
        safetensors_file.read_folder(tmp_path)
