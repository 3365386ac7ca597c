"""Paths that users name: expanded, or refused in words before anything is made of them."""

import importlib.util
import os
import pathlib

import pytest

from fv_jax.core import paths
from fv_jax.core.paths import as_path, expand_path


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
        ('gcs://b', 'gcs://b: the scheme gcs:// is not supported; use a local path, or gs:// and s3://'),
        ('S3://b', 'the scheme S3:// is not supported'),
        ('https://host/run', 'the scheme https:// is not supported'),
        ('file:///run', 'the scheme file:// is not supported'),
        ('gs:/bucket/run', 'gs:/bucket/run: write gs://BUCKET/NAME, or ./gs:/bucket/run for a local path'),
        ('gs://', 'gs://: expected gs://BUCKET/NAME'),
        ('gs:///run', 'expected gs://BUCKET/NAME'),
        ('s3://b?/run', 'expected s3://BUCKET/NAME'),
        ('gs://b/run*', "gs://b/run*: a name in object storage must not hold '*'"),
        ('gs://b/../run', "a name in object storage must not hold '/../'"),
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


def test_as_path_keeps_local_paths_and_urls_apart():
    assert as_path('a/b') == pathlib.Path('a/b') and isinstance(as_path('./gs:/b'), pathlib.Path)
    for text, expected in (('gs://b/run/', 'gs://b/run'), ('s3://b//a/c', 's3://b/a/c'), ('gs://b', 'gs://b')):
        path = as_path(text)
        assert str(path) == expected and not isinstance(path, pathlib.Path)
        assert str(path / 'x') == f'{expected}/x'


def test_as_path_takes_paths_of_files_that_users_cannot_name():
    path = as_path('gs://b/run') / 'what is this?.mp4'
    assert as_path(path) == path


def test_absolute_and_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paths.absolute(as_path('a')) == tmp_path / 'a'
    assert str(paths.absolute(as_path('gs://b/a'))) == 'gs://b/a'
    for root in ('x', 'gs://b'):
        assert paths.relative_path(as_path(f'{root}/c/d.png'), as_path(f'{root}/c/e')) == '../d.png'


def test_url_names_the_extra_that_is_missing(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == 'gcsfs' else find(name))
    with pytest.raises(ValueError, match=r"gs://b/run: gs:// needs gcsfs; install it: pip install 'fv_jax\[gcs\]'"):
        as_path('gs://b/run')


def test_is_url():
    assert paths.is_url('gs://a') and not any(map(paths.is_url, ('gs:/a', 'a/gs://b', '//a', '1s://a')))
