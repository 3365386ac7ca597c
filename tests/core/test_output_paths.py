"""Where commands may write: found before any work begins."""

from pathlib import Path

import numpy as np
import pytest

from fv_jax.checkpoints.errors import CheckpointError
from fv_jax.checkpoints.manager import Checkpoints
from fv_jax.core.command_line import UsageError
from fv_jax.core.output_paths import check_checkpoint_folder

SAVABLE = ('a]b', '{a}', 'a:b', 'gs', 'gs:a', 's3:', 'a b', "a'b", 'a#b', 'a%20b', 'données', '~a', '.a', '$a', 'a|b')
NOT_SAVABLE = ('exp[1]', 'exp[1]/deeper', 'a\\b', 'gs:', 'xgs:')


@pytest.mark.parametrize('name', [*NOT_SAVABLE, 'a[b', 'a*', 'a?'])
def test_check_checkpoint_folder_names_the_folder_and_the_character(name, tmp_path):
    with pytest.raises(UsageError) as error:
        check_checkpoint_folder(tmp_path / name, '--workdir=')
    line = str(error.value)
    assert line.startswith(f'--workdir={tmp_path / name}: no checkpoint can be saved') and '\n' not in line
    assert not list(tmp_path.iterdir())


def test_check_checkpoint_folder_sees_the_folders_above(tmp_path, monkeypatch):
    (tmp_path / 'exp[1]').mkdir()
    monkeypatch.chdir(tmp_path / 'exp[1]')
    with pytest.raises(UsageError, match=r'^--output=run: no checkpoint can be saved in .*exp\[1\]/run because of'):
        check_checkpoint_folder(Path('run'))


def save(folder: Path) -> None:
    Checkpoints(folder).save(1, {'params': {'a': np.ones(3)}}, {}, {})
    checkpoints = Checkpoints(folder, read_only=True)
    restored = checkpoints.restore({'params': {'a': np.zeros(3)}})['params']['a']
    assert checkpoints.steps == [1] and restored.tolist() == [1, 1, 1]


def test_check_checkpoint_folder_takes_what_orbax_takes(tmp_path):
    for name in SAVABLE:
        check_checkpoint_folder(tmp_path / name)
        save(tmp_path / name)


@pytest.mark.parametrize('name', NOT_SAVABLE)
def test_check_checkpoint_folder_is_needed(name, tmp_path):
    """A release of Orbax that takes the name fails here: the check can go then."""
    with pytest.raises((CheckpointError, KeyError)):
        save(tmp_path / name)
