"""Checksums of a checkpoint detect and name every damage of its files."""

import json

import numpy as np
import pytest

from fv_jax.checkpoints import checksums
from tests.fuzz.damage import damage


@pytest.fixture
def folder(tmp_path):
    for name, size in (('state/d/0', 5000), ('params/manifest', 100), ('empty', 0)):
        path = tmp_path / 'checkpoint' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(np.random.default_rng(size).bytes(size))
    checksums.write_checksums(tmp_path / 'checkpoint')
    return tmp_path / 'checkpoint'


def test_checksums_verify_and_are_not_required(folder, tmp_path):
    assert checksums.verify_checksums(folder) is None
    assert set(json.loads((folder / checksums.CHECKSUMS).read_text())) == {'state/d/0', 'params/manifest', 'empty'}
    assert checksums.verify_checksums(tmp_path) is None


def test_checksums_detect_any_damage_of_a_file(folder):
    path = folder / 'state' / 'd' / '0'
    good = path.read_bytes()
    for case in range(200):
        path.write_bytes(damage(good, np.random.default_rng(case)))
        assert 'state/d/0' in checksums.verify_checksums(folder)
    flipped = bytearray(good)
    flipped[1234] ^= 1
    path.write_bytes(flipped)
    assert checksums.verify_checksums(folder) == 'state/d/0 differs from what was written (CRC-32)'
    path.unlink()
    assert checksums.verify_checksums(folder) == 'state/d/0 is missing'


@pytest.mark.parametrize('text', ['', '{', '[]', '{"a": 1}', '{"empty": ["x", 0]}'])
def test_checksums_that_are_damaged_themselves_are_reported(folder, text):
    (folder / checksums.CHECKSUMS).write_text(text)
    assert checksums.verify_checksums(folder)


def test_checksums_of_another_kind_are_of_a_copy(folder):
    """A checkpoint that was copied to a bucket has the checksums of a disk, and the other way round."""
    path = folder / checksums.CHECKSUMS
    path.write_text(json.dumps({name: [size, 'crc32c:x'] for name, (size, _) in json.loads(path.read_text()).items()}))
    assert checksums.verify_checksums(folder) is None
    (folder / 'empty').write_text('x')
    assert checksums.verify_checksums(folder) == 'empty has 1 bytes instead of 0'
