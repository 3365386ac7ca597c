"""Weights on the Hub: names, a cache in huggingface_hub's layout that is read offline, and errors of one line."""

import pathlib

import pytest

huggingface_hub = pytest.importorskip('huggingface_hub')
constants = pytest.importorskip('huggingface_hub.constants')

from fv_jax.core import files, hub, paths  # noqa: E402
from fv_jax.core.command_line import Parser, UsageError, path_flag, weights_flag  # noqa: E402
from tests.hub_cache import COMMIT, make_cache  # noqa: E402


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A function that adds a model to the cache; the Hub is out of reach."""
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    return lambda repo, contents, **refs: make_cache(tmp_path / 'cache', repo, contents, **refs)


@pytest.mark.parametrize(
    ('url', 'parsed'),
    [
        ('hf://user/model', hub.HubPath('user/model')),
        ('hf://user/model/', hub.HubPath('user/model')),
        ('hf://user/model@v1.0', hub.HubPath('user/model', 'v1.0')),
        ('hf://user/model@refs%2Fpr%2F1', hub.HubPath('user/model', 'refs/pr/1')),
        ('hf://user/model@main/vae/x.safetensors', hub.HubPath('user/model', 'main', 'vae/x.safetensors')),
        ('hf://user/a.b-c_d/vae', hub.HubPath('user/a.b-c_d', None, 'vae')),
    ],
)
def test_hub_name(url, parsed):
    assert hub.parse(url) == parsed


@pytest.mark.parametrize(
    'url',
    ['hf://', 'hf://user', 'hf://user/', 'hf://user/model@', 'hf://user/model/../x', 'hf://user/mod*l', 'hf:/u/m'],
)
def test_hub_name_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match=r'hf:/.*: (expected hf://USER/NAME|write hf://)'):
        paths.expand_path(url)


def test_hub_name_is_no_path_of_a_file():
    """Only what reads weights takes it: nothing is ever written into the cache of another library."""
    for take in (paths.as_path, files.resolve_path):
        with pytest.raises(ValueError, match='hf:// names weights, which are read'):
            take('hf://user/model')
    parser = Parser('x', 'x')
    parser.add_argument('--output', type=path_flag)
    with pytest.raises(UsageError, match='--output: hf://user/model: hf:// names weights'):
        parser.parse_flags(['--output', 'hf://user/model'])


def test_cache_is_read_offline(cached):
    folder = cached('user/model', {'config.json': '{}', 'vae/config.json': '[]'}, main=COMMIT, v1='b' * 40)
    assert hub.weights_path('hf://user/model') == folder
    assert hub.weights_path(f'hf://user/model@{COMMIT}') == folder
    assert hub.weights_path('hf://user/model/vae').joinpath('config.json').read_text() == '[]'
    assert hub.weights_path('hf://user/model@main/vae/config.json').read_text() == '[]'
    assert files.resolve_weights('hf://user/model').is_dir()


def test_other_names_are_paths(tmp_path):
    assert hub.weights_path(str(tmp_path)) == tmp_path
    assert hub.weights_path(tmp_path) == tmp_path


@pytest.mark.parametrize('name', ['hf://user/other', 'hf://user/model@v2', 'hf://user/model/missing'])
def test_what_the_cache_does_not_have_is_an_error_of_one_line(cached, name):
    cached('user/model', {'config.json': '{}'}, main=COMMIT)
    with pytest.raises(FileNotFoundError) as error:
        hub.weights_path(name)
    message = str(error.value)
    assert message.startswith(f'{name}: ') and '\n' not in message
    assert 'HF_HUB_OFFLINE is set' in message or message.endswith('has no missing')
    parser = Parser('x', 'x')
    parser.add_argument('--checkpoint', type=weights_flag)
    with pytest.raises(UsageError, match=f'--checkpoint: {name}: '):
        parser.parse_flags(['--checkpoint', name])


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(hub.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(
        ValueError, match=r"hf://user/model: needs huggingface_hub; install it: pip install 'fv_jax\[hub\]'"
    ):
        hub.weights_path('hf://user/model')


def test_pickles_and_weights_of_other_libraries_are_not_downloaded(monkeypatch):
    asked = []

    def download(repo, **options):
        asked.append((repo, options))
        return str(pathlib.Path(__file__).parent)

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
    hub.weights_path('hf://user/model@v1')
    hub.weights_path(f'hf://user/model/{pathlib.Path(__file__).name}')
    (repo, first), (_, second) = asked
    assert (repo, first['revision'], first['allow_patterns']) == ('user/model', 'v1', None)
    assert {'*.bin', '*.ckpt', '*.h5'} <= set(first['ignore_patterns']) and '*.pt' not in first['ignore_patterns']
    assert second['allow_patterns'] == ['test_hub.py', 'test_hub.py/*']
