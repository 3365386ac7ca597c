"""Starts of the training command that fail: one line, and nothing left behind; and a second start."""

import os

import pytest

from fv_jax import train
from fv_jax.data.shards.record_writer import RecordWriter
from fv_jax.training.run.run_lock import lock_run
from tests import runs


@pytest.fixture(scope='module')
def damaged_clips(tmp_path_factory):
    """Shards whose only clip is no video."""
    folder = tmp_path_factory.mktemp('data') / 'clips'
    with RecordWriter(folder, 'clips') as writer:
        writer.write({'video': b'no video', 'fps': 24.0, 'frames': 9, 'height': 32, 'width': 48})
    return folder


def start(workdir, vae_file, capsys, *more):
    """Returns the line of the error of a run that fails."""
    code = train.main(runs.superres(workdir, vae_file, *more))
    (line,) = capsys.readouterr().err.splitlines()
    assert code in (1, 2) and line.startswith('train: ')
    return line


@pytest.mark.parametrize('folder', ['run', 'a/b/run'])
@pytest.mark.parametrize(
    ('field', 'word'),
    [
        ('data.train', 'data'),  # found when the latents are encoded
        ('data.heldout', 'data'),  # found when the held-out clips are loaded
        ('init_from', 'nowhere.pt'),
        ('data.loader.batch_size', 'config.data.loader.batch_size=0'),
    ],
)
def test_start_that_fails_leaves_no_folder(vae_file, damaged_clips, tmp_path, capsys, folder, field, word):
    values = {'data.train': damaged_clips, 'data.heldout': damaged_clips, 'init_from': tmp_path / 'nowhere.pt'}
    before = set(tmp_path.iterdir())
    line = start(tmp_path / folder, vae_file, capsys, f'--config.{field}={values.get(field, 0)}')
    assert word in line and set(tmp_path.iterdir()) == before


def test_corrected_command_is_not_refused_as_another_run(vae_file, damaged_clips, tmp_path, capsys):
    start(tmp_path / 'run', vae_file, capsys, f'--config.data.heldout={damaged_clips}')
    assert (
        train.main(runs.superres(tmp_path / 'run', vae_file, '--config.loop.num_steps=1', '--config.loop.eval_every=0'))
        == 0
    )


def test_second_run_in_a_work_directory_is_refused(vae_file, tmp_path, capsys):
    with lock_run(tmp_path / 'run'):
        before = sorted(path.name for path in (tmp_path / 'run').iterdir())
        line = start(tmp_path / 'run', vae_file, capsys)
        assert f'another run trains there (process {os.getpid()} on ' in line
        assert sorted(path.name for path in (tmp_path / 'run').iterdir()) == before
