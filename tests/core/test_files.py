"""Atomic writes of files and folders."""

import json
import shutil

import pytest

from fv_jax.core import files
from fv_jax.core.files import (
    atomic_write,
    is_inside,
    is_same,
    make_folder,
    remove_empty,
    remove_partial,
    write_folder,
    write_json,
    write_text,
)
from fv_jax.core.paths import as_path


def test_atomic_write_replaces_a_file_and_a_folder(tmp_path):
    for path in (tmp_path / 'file', tmp_path / 'folder'):
        for text in ('first', 'second'):
            with atomic_write(path) as partial:
                inside = partial if path.name == 'file' else partial / 'inside'
                inside.parent.mkdir(exist_ok=True)
                inside.write_text(text)
            assert (path if path.name == 'file' else path / 'inside').read_text() == text
    assert sorted(p.name for p in tmp_path.iterdir()) == ['file', 'folder']


def test_atomic_write_of_a_name_as_long_as_the_file_system_allows(tmp_path):
    for name in ('x' * 251 + '.mp4', '\U0001f41e' * 62 + '.mp4'):
        with atomic_write(tmp_path / name) as partial:
            partial.write_text('text')
        assert (tmp_path / name).read_text() == 'text'


def test_atomic_write_failure_leaves_the_old_content(tmp_path):
    (tmp_path / 'file').write_text('precious')
    with pytest.raises(RuntimeError), atomic_write(tmp_path / 'file') as partial:
        partial.write_text('half')
        raise RuntimeError
    assert [p.read_text() for p in tmp_path.iterdir()] == ['precious']


def test_write_folder_replaces_a_folder_if_nothing_raises(tmp_path):
    for name in ('first', 'second'):
        with write_folder(tmp_path / 'out', marker='') as folder:
            (folder / name).write_text(name)
        assert [path.name for path in (tmp_path / 'out').iterdir()] == [name]
    with pytest.raises(RuntimeError), write_folder(tmp_path / 'out', marker='') as folder:
        (folder / 'third').write_text('half')
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ['out'] and (tmp_path / 'out' / 'second').exists()


def test_is_same_and_is_inside_follow_links(tmp_path):
    (tmp_path / 'a' / 'b').mkdir(parents=True)
    (tmp_path / 'link').symlink_to(tmp_path / 'a')
    assert is_same(tmp_path / 'a', tmp_path / 'link') and not is_same(tmp_path / 'a', tmp_path)
    assert is_inside(tmp_path / 'link' / 'b' / 'c', tmp_path / 'a') and not is_inside(tmp_path / 'a', tmp_path / 'a')
    url = as_path('gs://bucket/a')
    assert is_same(url, as_path('gs://bucket/a/')) and not is_same(tmp_path, url) and not is_same(url, tmp_path)
    assert is_inside(url / 'b' / 'c', url) and not is_inside(url, url) and not is_inside(tmp_path, url)


def test_remove_partial_removes_what_a_killed_write_left(tmp_path, tmp_path_factory):
    paths = tmp_path / 'a.b.mp4', tmp_path / ('x' * 200 + '.mp4'), tmp_path / 'folder', tmp_path / 'none' / 'c'
    copies = tmp_path_factory.mktemp('copies')
    for path in paths[:3]:
        write = atomic_write(path)
        partial = write.__enter__()
        partial.write_text('half')
        shutil.copytree(partial.parent, copies / partial.parent.name)
        write.__exit__(None, None, None)
        shutil.copytree(copies / partial.parent.name, partial.parent)  # as if it had been killed
    others = '.a.mp4.abcd_123', '.other.abcd_123', '.a.b', '.cache'
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / '.folder.abcdefgh').write_text('a file')
    remove_partial(paths)
    left = {*others, '.folder.abcdefgh', *(path.name for path in paths[:3])}
    assert {path.name for path in tmp_path.iterdir()} == left


def test_write_text_and_json_replace_a_file(tmp_path):
    for text in ('first', 'zwei \u00fc'):
        write_text(tmp_path / 'a.txt', text)
        write_json(tmp_path / 'a.json', {'text': text})
        assert (tmp_path / 'a.txt').read_bytes() == text.encode()
        assert json.loads((tmp_path / 'a.json').read_text()) == {'text': text}
    with pytest.raises(TypeError):
        write_json(tmp_path / 'a.json', {'text': object()})
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.json', 'a.txt']
    assert json.loads((tmp_path / 'a.json').read_text()) == {'text': text}


def test_made_folders_are_removed_if_empty(tmp_path):
    made = make_folder(tmp_path / 'a' / 'b' / 'c')
    assert made == [tmp_path / 'a' / 'b' / 'c', tmp_path / 'a' / 'b', tmp_path / 'a']
    (tmp_path / 'a' / 'file').write_text('')
    remove_empty(made)
    assert [path.name for path in (tmp_path / 'a').iterdir()] == ['file'] and make_folder(tmp_path) == []


def test_update_writes_in_place_unless_there_is_nothing_to_change(tmp_path):
    path = tmp_path / 'lock'
    path.write_bytes(b'before')
    node = path.stat().st_ino
    assert files.update(path, lambda content: content[:2]) and path.read_bytes() == b'be'
    assert not files.update(path, lambda content: None) and path.stat().st_ino == node
    with pytest.raises(FileNotFoundError):
        files.update(tmp_path / 'none', lambda content: b'')
