"""Checksums of a checkpoint's files: every damage that a disk or a person does is found and named."""

import json

import numpy as np
import pytest

from fv_jax.checkpoints import checksums
from tests.fuzz.damage import damaged


@pytest.fixture
def folder(tmp_path):
    for name, size in (('state/d/0', 5000), ('params/manifest', 100), ('empty', 0)):
        path = tmp_path / 'checkpoint' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(np.random.default_rng(size).bytes(size))
    checksums.seal(tmp_path / 'checkpoint')
    return tmp_path / 'checkpoint'


def test_what_was_sealed_is_whole_and_what_was_not_is_not_doubted(folder, tmp_path):
    assert checksums.damage(folder) is None
    assert set(json.loads((folder / checksums.SUMS).read_text())) == {'state/d/0', 'params/manifest', 'empty'}
    assert checksums.damage(tmp_path) is None


def test_any_damage_of_a_file_is_found(folder):
    path = folder / 'state' / 'd' / '0'
    good = path.read_bytes()
    for case in range(200):
        path.write_bytes(damaged(good, np.random.default_rng(case)))
        assert 'state/d/0' in checksums.damage(folder)
    flipped = bytearray(good)
    flipped[1234] ^= 1
    path.write_bytes(flipped)
    assert checksums.damage(folder) == 'state/d/0 is not what was written (CRC-32)'
    path.unlink()
    assert checksums.damage(folder) == 'state/d/0 is missing'


@pytest.mark.parametrize('text', ['', '{', '[]', '{"a": 1}', '{"empty": ["x", 0]}'])
def test_damaged_checksums_are_damage(folder, text):
    (folder / checksums.SUMS).write_text(text)
    assert checksums.damage(folder)
