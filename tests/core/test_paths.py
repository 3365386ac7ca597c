"""Paths that users name: expanded, or refused in words before anything is made of them."""

import os
from pathlib import Path

import pytest

from fv_jax.core import paths
from fv_jax.core.paths import check_savable, expand_path


def test_expand_path_expands_the_home_folder_alone(monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    for text, expanded in (
        ('~/runs/a', '/home/me/runs/a'),
        ('~', '/home/me'),
        ('./~/a', './~/a'),
        ('a/~', 'a/~'),
        ('exp:1/a', 'exp:1/a'),
        ('c:/a', 'c:/a'),
        ('a/b://c', 'a/b://c'),
        ('données/映像', 'données/映像'),
        ('hash', 'hash'),
    ):
        assert expand_path(text) == expanded


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('', 'is empty (is a shell variable unset?)'),
        ('gs://bucket/run', 'gs://bucket/run: object storage and URLs are not supported here yet; give a local path'),
        ('gcs://b', 'not supported'),
        ('S3://b', 'not supported'),
        ('https://host/run', 'not supported'),
        ('file:///run', 'not supported'),
        ('~nobody_of_this_name/run', '~nobody_of_this_name has no home folder; write ./~nobody_of_this_name/run'),
        ('a\0b', "'a\\x00b': must not hold a null character"),
        ('a\udcffb', "'a\\udcffb': cannot be encoded as utf-8"),
    ],
)
def test_expand_path_refuses(text, words):
    with pytest.raises(ValueError) as error:
        expand_path(text)
    assert words in str(error.value) and '\n' not in str(error.value)


def test_expand_path_refuses_what_the_locale_cannot_encode(monkeypatch):
    monkeypatch.setattr(os, 'fsencode', lambda text: text.encode('latin-1'))
    assert expand_path('données') == 'données'
    with pytest.raises(ValueError, match=r"'\\u6620': cannot be encoded as latin-1; rename it"):
        expand_path('映')


@pytest.mark.parametrize('name', ['exp[1]', 'a[b', 'a*', 'a?', 'a\\b', 'gs:', 'xgs:', 'exp[1]/deeper'])
def test_check_savable_names_the_character(name, tmp_path):
    with pytest.raises(ValueError) as error:
        check_savable(tmp_path / name)
    assert f'{tmp_path / name}: no checkpoint can be saved' in str(error.value) and '\n' not in str(error.value)


def test_check_savable_sees_the_folder_above(tmp_path, monkeypatch):
    (tmp_path / 'exp[1]').mkdir()
    monkeypatch.chdir(tmp_path / 'exp[1]')
    with pytest.raises(ValueError, match=r'^run: no checkpoint can be saved in .*exp\[1\]/run, because of'):
        check_savable(Path('run'))


def test_check_savable_takes_other_names(tmp_path):
    for name in ('a]b', '{a}', 'a:b', 'gs', 'gs:a', 's3:', 'a b', "a'b", 'a#b', 'a%20b', 'données', '~a', '.a'):
        check_savable(tmp_path / name)
    assert not paths.is_url('gs:/a') and paths.is_url('gs://a')
