"""Paths that users name: expanded, or refused in words before anything is made of them."""

import os

import pytest

from fv_jax.core import paths
from fv_jax.core.paths import expand_path


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


def test_is_url():
    assert paths.is_url('gs://a') and not any(map(paths.is_url, ('gs:/a', 'a/gs://b', '//a', '1s://a')))
