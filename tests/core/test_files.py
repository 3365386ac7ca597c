"""Files and folders written whole or not at all."""

import pytest

from fv_jax.core.files import replacing


def test_a_file_and_a_folder_are_replaced(tmp_path):
    for path in (tmp_path / 'file', tmp_path / 'folder'):
        for text in ('first', 'second'):
            with replacing(path) as partial:
                inside = partial if path.name == 'file' else partial / 'inside'
                inside.parent.mkdir(exist_ok=True)
                inside.write_text(text)
            assert (path if path.name == 'file' else path / 'inside').read_text() == text
    assert sorted(p.name for p in tmp_path.iterdir()) == ['file', 'folder']


def test_what_fails_leaves_what_was_there(tmp_path):
    (tmp_path / 'file').write_text('precious')
    with pytest.raises(RuntimeError), replacing(tmp_path / 'file') as partial:
        partial.write_text('half')
        raise RuntimeError
    assert [p.read_text() for p in tmp_path.iterdir()] == ['precious']
