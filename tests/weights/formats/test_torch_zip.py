"""Torch's zip files: every dtype and layout, nothing that runs code, nothing that is damaged; written and read again.

That torch reads what is written is in tests/parity/test_stage1.py.
"""

import pickle
import pickletools
import zipfile

import ml_dtypes
import numpy as np
import pytest

from fv_jax.weights.formats import torch_zip


def random(*shape, dtype='float32'):
    return (10 * np.random.default_rng(0).standard_normal(shape)).astype(dtype)


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16', 'int64'])
def test_torch_zip_dtypes(torch_files, dtype):
    array = random(3, 4, dtype=ml_dtypes.bfloat16 if dtype == 'bfloat16' else dtype)
    tensor = torch_zip.read(torch_files.save('module', {'a': array}))['module']['a']
    assert (tensor.shape, str(tensor.dtype)) == ((3, 4), dtype)
    np.testing.assert_array_equal(tensor.numpy(), array)


def test_torch_zip_views_of_a_storage(torch_files):
    flat = random(24)
    view = torch_files.View
    tensors = torch_zip.read(
        torch_files.save(
            'module',
            {
                'rows': view(flat, (2, 3), (3, 1), offset=6),
                'transposed': view(flat, (3, 2), (1, 3), offset=6),
                'every_other': view(flat, (5,), (2,), offset=1),
                'repeated': view(flat, (4, 3), (0, 1)),
                'scalar': view(flat, (), (), offset=7),
                'empty': view(flat, (0, 3), (3, 1), offset=24),
            },
        )
    )['module']
    np.testing.assert_array_equal(tensors['rows'].numpy(), flat[6:12].reshape(2, 3))
    np.testing.assert_array_equal(tensors['transposed'].numpy(), flat[6:12].reshape(2, 3).T)
    np.testing.assert_array_equal(tensors['every_other'].numpy(), flat[1:10:2])
    np.testing.assert_array_equal(tensors['repeated'].numpy(), np.tile(flat[:3], (4, 1)))
    assert tensors['scalar'].numpy() == flat[7]
    assert tensors['empty'].numpy().shape == (0, 3)


def test_torch_zip_values_are_memory_mapped_and_dropped(torch_files):
    tensor = torch_zip.read(torch_files.save('module', {'a': random(5), 'b': random(99_999)}))['module']['b']
    before = tensor.numpy().copy()
    tensor.drop_pages()
    np.testing.assert_array_equal(tensor.numpy(), before)
    assert not tensor.storage.values.flags.owndata
    with pytest.raises(ValueError, match='read-only'):
        tensor.numpy()[0] = 0


@pytest.mark.parametrize(
    ('offset', 'shape', 'strides'),
    [(0, (5,), (1,)), (2, (3,), (1,)), (0, (2, 2), (3, 1)), (-1, (2,), (1,)), (3, (2,), (-1,))],
)
def test_torch_zip_tensor_outside_of_its_storage_is_refused(torch_files, offset, shape, strides):
    path = torch_files.save('module', {'a': torch_files.View(random(4), shape, strides, offset)})
    with pytest.raises(ValueError, match='does not fit its storage of 4 values'):
        torch_zip.read(path)


@pytest.mark.parametrize(
    ('module', 'name'), [('os', 'system'), ('builtins', 'eval'), ('numpy', 'array'), ('torch', 'load')]
)
def test_torch_zip_refuses_every_other_name(torch_files, tmp_path, module, name):
    pickled = torch_files.Assembler()
    pickled.name(module, name)
    pickled.out.write(pickle.MARK)
    pickled.text(f'touch {tmp_path}/harm')
    pickled.out.write(pickle.TUPLE + pickle.REDUCE)
    path = torch_files.archive({'weights/data.pkl': pickled.finish()})
    with pytest.raises(ValueError, match=rf'refusing to load {module}\.{name}'):
        torch_zip.read(path)
    assert not (tmp_path / 'harm').exists()


def test_torch_zip_refuses_a_compressed_file(torch_files):
    path = torch_files.save('module', {'a': random(5)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match='is compressed; re-save'):
        torch_zip.read(path)


@pytest.mark.parametrize('kept', [0.0, 0.3, 0.9, 0.999])
def test_torch_zip_refuses_a_truncated_file(torch_files, kept):
    path = torch_files.save('module', {'a': random(1000)})
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match='truncated'):
        torch_zip.read(path)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'weights/data/0': None}, 'weights/data/0 is missing'),
        ({'weights/data/0': b'1234'}, 'storage 0 has 4 bytes where 5 values of float32 need 20'),
        ({'weights/byteorder': b'big'}, 'big-endian'),
        ({'weights/data.pkl': None}, 'not one that torch.save wrote'),
        ({'weights/data.pkl': b'\x80\x02}'}, 'its pickle cannot be read'),
        ({'weights/data.pkl': b'not a pickle'}, 'its pickle cannot be read'),
    ],
)
def test_torch_zip_refuses_a_damaged_file(torch_files, changes, message):
    members = torch_files.members('module', {'a': random(5)}) | changes
    path = torch_files.archive({name: content for name, content in members.items() if content is not None})
    with pytest.raises(ValueError, match=message):
        torch_zip.read(path)


def test_torch_zip_refuses_other_files(tmp_path):
    path = tmp_path / 'weights.pt'
    path.write_bytes(pickle.dumps({'module': {}}))
    with pytest.raises(ValueError, match='not a torch zip file'):
        torch_zip.read(path)
    with pytest.raises(FileNotFoundError):
        torch_zip.read(tmp_path / 'nothing.pt')


# Writing.


def make_specs(tensors):
    return {key: torch_zip.TensorSpec(x.shape, x.dtype) for key, x in tensors.items()}


def write_file(path, tensors, order=None):
    torch_zip.write(path, 'module', make_specs(tensors), [(key, tensors[key]) for key in order or tensors])
    return torch_zip.read(path)


@pytest.fixture
def tensors():
    arrays = {
        'b': random(3, 4),
        'a.weight': random(2, 3, 5, dtype='float16'),
        'scalar': random(),
        'empty': random(0, 3),
    }
    return arrays | {'sixteen': random(7, dtype=ml_dtypes.bfloat16), 'whole': np.arange(4), 'yes': np.array([True])}


def test_torch_zip_round_trip(tmp_path, tensors):
    back = write_file(tmp_path / 'weights.pt', tensors)
    assert list(back) == ['module'] and list(back['module']) == list(tensors)
    for key, tensor in back['module'].items():
        assert (tensor.shape, tensor.dtype) == (tensors[key].shape, tensors[key].dtype)
        np.testing.assert_array_equal(tensor.numpy(), tensors[key])


def test_torch_zip_does_not_depend_on_the_order_of_tensors(tmp_path, tensors):
    first, other = (tmp_path / f'{name}.pt' for name in ('first', 'other'))
    back = write_file(first, tensors), write_file(other, tensors, reversed(list(tensors)))
    assert list(back[0]['module']) == list(back[1]['module'])
    for key in tensors:
        np.testing.assert_array_equal(*(contents['module'][key].numpy() for contents in back))


def test_torch_zip_storages_are_aligned(tmp_path, tensors):
    for tensor in write_file(tmp_path / 'weights.pt', tensors)['module'].values():
        assert tensor.storage.start % 64 == 0


def test_torch_zip_archive_is_valid(tmp_path, tensors):
    write_file(tmp_path / 'weights.pt', tensors)
    with zipfile.ZipFile(tmp_path / 'weights.pt') as archive:
        assert archive.testzip() is None
        assert archive.read('weights/byteorder') == b'little'
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


def test_torch_zip_counts_beyond_31_bits():
    spec = {'large': torch_zip.TensorSpec((3, 2**31), np.dtype(np.float32))}
    pickled = torch_zip._pickle_specs('module', spec)
    numbers = [value for _, value, _ in pickletools.genops(pickled) if isinstance(value, int)]
    assert numbers == [2, 3 * 2**31, 0, 3, 2**31, 2**31, 1]
