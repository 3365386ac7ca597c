"""Backends that cannot be opened: one line in every command, before anything is made."""

import os
import subprocess
import sys

import jax
import pytest

from fv_jax import convert, evaluate, export, prepare, sample, train
from fv_jax.core import devices
from fv_jax.core.command_line import UsageError
from tests import runs
from tests.data import sample_videos

HINT = "install the backend (pip install 'fv_jax[tpu]' or 'fv_jax[cuda]'), or compute on the CPU with JAX_PLATFORMS=cpu"
IN_USE = "Unable to initialize backend 'tpu': UNAVAILABLE: TPU is in use"
UNKNOWN = "Unable to initialize backend 'cpuu': it is not in the list of known backends: ['cpu', 'tpu']"


@pytest.mark.parametrize(
    ('error', 'chosen', 'words'),
    [
        (RuntimeError(f"{UNKNOWN}. (set JAX_PLATFORMS='' to choose)"), 'cpuu', ('JAX_PLATFORMS=cpuu: ', UNKNOWN)),
        (AssertionError(), 'cuda', ('JAX_PLATFORMS=cuda: ', 'none is visible')),
        (RuntimeError(f'{IN_USE}\n(you may need to uninstall it)'), None, ('', IN_USE)),
    ],
)
def test_check_devices_is_one_line(error, chosen, words, monkeypatch):
    def fail():
        raise error

    monkeypatch.setattr(jax, 'devices', fail)
    before = jax.config.jax_platforms
    try:
        jax.config.update('jax_platforms', chosen)
        with pytest.raises(UsageError) as found:
            devices.check_devices()
    finally:
        jax.config.update('jax_platforms', before)
    assert str(found.value) == f'{words[0]}no device can be opened: {words[1]}; {HINT}'


@pytest.mark.parametrize('platforms', ['cuda', 'cpuu', 'tpu'])
def test_train_on_a_backend_that_cannot_be_opened(platforms, tmp_path):
    """In a process of its own, with JAX's own errors. libtpu writes lines of its own before ours."""
    environment = os.environ | {'JAX_PLATFORMS': platforms, 'PYTHONPATH': str(runs.ROOT)}
    command = [sys.executable, '-m', 'fv_jax.train', '--config=stage2:smoke', '--workdir=run']
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line]
    assert done.returncode == 2 and lines[-1].startswith(f'train: JAX_PLATFORMS={platforms}: no device can be opened: ')
    assert 'Traceback' not in done.stderr and (platforms == 'tpu' or len(lines) == 1) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'line',
    [
        (train, '--config=stage2:smoke', '--workdir=run'),
        (prepare, '--input=video.mp4', '--output=out', '--config=prepare:smoke', '--config.latents.vae=embedded'),
        (sample, 'preview', '--prompt=a bee', '--output=out'),
        (sample, 'clip', '--checkpoint=run', '--input=video.mp4', '--output=out.mp4'),
        (convert, '--input=stage2.pt', '--output=out'),
        (export, '--checkpoint=run', '--output=out'),
        (evaluate, '--checkpoint=run', '--output=out'),
    ],
    ids=lambda line: line[0].__name__,
)
def test_command_opens_the_devices_before_anything_else(line, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError('no backend')

    monkeypatch.chdir(tmp_path)
    for name in ('devices', 'local_devices', 'default_backend'):
        monkeypatch.setattr(jax, name, fail)
    sample_videos.write_two_shots(tmp_path / 'video.mp4', frames=2)
    (tmp_path / 'stage2.pt').touch()
    before = sorted(tmp_path.rglob('*'))
    command, *arguments = line
    assert command.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and 'no device can be opened: no backend' in error
    assert sorted(tmp_path.rglob('*')) == before
