"""What may change between two starts of a run."""

import json

import pytest

from configs import stage2
from fv_jax.core.command_line import UsageError, override
from fv_jax.core.config import build, to_dict
from fv_jax.training.run.setup import TrainConfig
from fv_jax.training.run.workdir import CONFIG, check_folder, write_run_config


def config(**fields):
    values = to_dict(build(TrainConfig, stage2.get_config('smoke').to_dict()))
    for path, value in fields.items():
        override(TrainConfig, values, path.replace('__', '.'), str(value))
    return build(TrainConfig, values)


@pytest.fixture
def folder(tmp_path):
    write_run_config(tmp_path, config())
    return tmp_path


def test_config_change_none(folder, tmp_path):
    assert check_folder(folder, config()) == [] == check_folder(tmp_path / 'new', config())


def test_config_change_of_safe_fields_is_returned(folder):
    changes = check_folder(folder, config(loop__num_steps=9, parallel__fsdp=2, data__loader__num_threads=3))
    assert [(change.field, change.new) for change in changes] == [
        ('data.loader.num_threads', 3), ('loop.num_steps', 9), ('parallel.fsdp', 2),
    ]  # fmt: skip


HARMFUL = config(optim__learning_rate=0.5, data__loader__seed=1, stage__network__num_layers=3, loop__num_steps=9)


@pytest.mark.parametrize(
    ('allowed', 'refused'),
    [
        ([], 'data.loader.seed'),
        (['optim'], 'data.loader.seed'),
        (['optim', 'data.loader'], 'stage.network.num_layers'),
        (['optim.learning_rate', 'data.loader.seed', 'stage.network'], None),
        (['optim.learning_rate', 'data.loader.seed', 'stage', 'seed'], None),
    ],
)
def test_config_change_of_other_fields_must_be_allowed_by_name(folder, allowed, refused):
    if refused is None:
        assert len(check_folder(folder, HARMFUL, allowed)) == 4
        return
    with pytest.raises(UsageError) as error:
        check_folder(folder, HARMFUL, allowed)
    text = str(error.value)
    assert f'{refused} is ' in text and 'choose another --workdir' in text
    # What the message says is what to say.
    names = text.partition('--allow-config-change=')[2].split(',')
    assert len(check_folder(folder, HARMFUL, names)) == 4


def test_config_change_allows_whole_names_only(folder):
    with pytest.raises(UsageError, match=r'data\.loader\.seed is'):
        check_folder(folder, config(data__loader__seed=1), ['seed'])


@pytest.mark.parametrize('name', ['optimm', 'optim.learning_rat', 'optim.eps.more', 'optim.'])
def test_config_change_refuses_unknown_names(folder, name):
    with pytest.raises(UsageError, match=f'--allow-config-change={name}: no field'):
        check_folder(folder, config(), [name])


def test_workdir_config_that_cannot_be_read_is_refused(folder):
    for text in ('{', '[]', json.dumps({'stage': 1})):
        (folder / CONFIG).write_text(text)
        with pytest.raises(UsageError, match='cannot be read'):
            check_folder(folder, config())


def test_workdir_must_not_be_a_file(tmp_path):
    (tmp_path / 'file').write_text('')
    for workdir in (tmp_path / 'file', tmp_path / 'file' / 'run'):
        with pytest.raises(UsageError, match=r'--workdir=.*file is a file; give a folder'):
            check_folder(workdir, config())
