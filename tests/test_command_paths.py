"""The paths of every command: one rule for all of them, and nothing is written when a path is refused."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fv_jax import convert, degrade, evaluate, export, inspect, plan, prepare, sample, train
from fv_jax.core.storage import objects
from tests import runs

# Lines that are right but for the path that takes the place of PATH.
LINES = [
    (train, '--config=stage2:smoke', '--workdir=PATH'),
    (train, '--config=PATH', '--workdir=run'),
    (train, '--replay=PATH'),
    (train, '--config=stage2:smoke', '--workdir=run', '--config.stage.vae=PATH'),
    (train, '--config=stage2:smoke', '--workdir=run', '--config.init_from=PATH'),
    (plan, '--config=PATH', '--topology=h100-1'),
    (plan, '--config=stage2:smoke', '--topology=h100-1', '--json=PATH'),
    (prepare, '--input=PATH', '--output=out'),
    (prepare, '--input=.', '--output=PATH'),
    (prepare, '--input=.', '--output=out', '--config=PATH'),
    (prepare, '--input=.', '--output=out', '--dry-run=1', '--report=PATH'),
    (degrade, '--input=PATH', '--output=out.png'),
    (degrade, '--input=video.mp4', '--output=PATH'),
    (degrade, '--input=video.mp4', '--output=out.png', '--config=PATH'),
    (sample, 'preview', '--prompts=PATH', '--output=out'),
    (sample, 'preview', '--prompt=a bee', '--output=PATH'),
    (sample, 'preview', '--prompt=a bee', '--output=out', '--checkpoint', 'embedded', 'PATH'),
    (sample, 'preview', '--prompt=a bee', '--output=out', '--official=PATH'),
    (sample, 'preview', '--prompt=a bee', '--output=out', '--text=PATH'),
    (sample, 'enhance', 'PATH'),
    (sample, 'enhance', '0', '--output=PATH'),
    (sample, 'clip', '--checkpoint=PATH', '--input=video.mp4', '--output=out.mp4'),
    (sample, 'clip', '--checkpoint=run', '--input=PATH', '--output=out.mp4'),
    (sample, 'clip', '--checkpoint=run', '--input=video.mp4', '--output=PATH'),
    (sample, 'vbench', '--prompts=PATH', '--output=out'),
    (sample, 'vbench', '--prompts=x.txt', '--output=PATH'),
    (sample, 'reproduce', 'PATH', '--output=out.mp4'),
    (sample, 'reproduce', 'video.mp4', '--output=PATH'),
    (convert, '--input=PATH', '--output=out'),
    (convert, '--input=stage1.pt', '--output=PATH'),
    (convert, '--input=stage1.pt', '--output=out', '--vae=PATH'),
    (convert, '--input=stage1.pt', '--output=out', '--text=PATH'),
    (export, '--checkpoint=PATH', '--output=out'),
    (export, '--checkpoint=run', '--output=PATH'),
    (evaluate, '--checkpoint=PATH', '--output=out'),
    (evaluate, '--checkpoint=run', '--output=PATH'),
    (evaluate, '--checkpoint=run', '--output=out', '--degradation-config=PATH'),
    (evaluate, '--output=out', '--pairs=PATH'),
    (evaluate, '--output=out', '--videos=PATH'),
    (evaluate, '--output=out', '--ground-truth=PATH'),
    (evaluate, '--checkpoint=run', '--output=out', '--metrics-folder=PATH'),
    (evaluate, '--output=out', '--pairs=pairs', '--compare', 'PATH'),
    (inspect, 'PATH'),
]
ids = [' '.join([line[0].__name__.rpartition('.')[2], *line[1:]]) for line in LINES]
REFUSED = {
    '': 'is empty (is a shell variable unset?)',
    'gs://bucket/run': 'gs://bucket',
    'gcs://bucket/run.mp4': 'gcs://bucket/run.mp4: ',
    'a\udcff': 'cannot be encoded as utf-8',
    '~nobody_of_this_name/run': '~nobody_of_this_name has no home folder',
}


@pytest.mark.parametrize('line', LINES, ids=ids)
def test_path_is_refused_in_one_line_and_nothing_is_written(line, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('STORAGE_EMULATOR_HOST', 'http://127.0.0.1:9')  # where no server answers
    monkeypatch.setenv('FSSPEC_GCS_TOKEN', 'anon')
    monkeypatch.setattr(objects, 'REACH_S', 0.0)
    command, *arguments = line
    for text, words in REFUSED.items():
        assert command.main([argument.replace('PATH', text) for argument in arguments]) == 2
        error = capfd.readouterr().err
        name = command.__name__.rpartition('.')[2]
        assert error.startswith(f'{name}: ') and error.count('\n') == 1 and words in error, error
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'line',
    [
        (train, '--config=stage2:smoke', '--workdir=PATH'),
        (convert, '--input=stage1.pt', '--output=PATH'),
    ],
    ids=lambda line: line[0].__name__,
)
def test_folder_that_no_checkpoint_can_have_is_refused_at_once(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'stage1.pt').touch()
    command, *arguments = line
    for text in ('exp[1]', 'a\\b', 'a*'):
        assert command.main([argument.replace('PATH', text) for argument in arguments]) == 2
        error = capsys.readouterr().err
        assert error.count('\n') == 1 and f'={text}: no checkpoint can be saved in {tmp_path / text} because' in error
        assert [path.name for path in tmp_path.iterdir()] == ['stage1.pt']


def test_path_that_the_locale_cannot_encode_is_refused_at_once(tmp_path):
    environment = os.environ | {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0', 'JAX_PLATFORMS': 'cpu'}
    environment['PYTHONPATH'] = str(runs.ROOT)
    command = [sys.executable, '-m', 'fv_jax.train', '--config=stage2:smoke', '--workdir=données']
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ''
    assert (
        done.stderr.count('\n') == 1 and 'cannot be encoded as utf-8' in done.stderr and 'LC_ALL=C.UTF-8' in done.stderr
    )
    assert not list(tmp_path.iterdir())


def test_every_path_flag_is_in_the_list(monkeypatch):
    found = set()
    add = argparse.ArgumentParser.add_argument

    def note(self, *names, **options):
        if getattr(options.get('type'), '__name__', '') in ('path_flag', 'path_or_name_flag'):
            found.add(names[0] if names[0].startswith('--') else 'PATH')
        assert options.get('type') is not Path, names
        return add(self, *names, **options)

    monkeypatch.setattr(argparse.ArgumentParser, 'add_argument', note)
    for command in dict.fromkeys(line[0] for line in LINES):
        for subcommand in sample._COMMANDS if command is sample else ('',):
            command.main([subcommand, '--unknown'] if subcommand else ['--unknown'])
    listed = {argument.partition('=')[0] for line in LINES for argument in line[1:]}
    assert found <= listed, found - listed
