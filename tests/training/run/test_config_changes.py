"""Reports of a changed configuration before a run is resumed with it."""

import re

import pytest

from fv_jax.core.command_line import UsageError
from fv_jax.training.run.workdir import check_folder, write_run_config
from tests.training.run.test_workdir import config


@pytest.fixture
def folder(tmp_path):
    """The folder of a run with a cosine schedule over 1000 steps, saved at step 800."""
    write_run_config(tmp_path, config(loop__num_steps=1000, optim__warmup_steps=0))
    (tmp_path / 'checkpoints' / '800').mkdir(parents=True)
    return tmp_path


def change_config(**fields):
    return config(**({'loop__num_steps': 1000, 'optim__warmup_steps': 0} | fields))


@pytest.mark.parametrize(
    ('fields', 'field', 'effect'),
    [
        # cosine from 1 to 0.05 at 800 of 1000 steps: 0.140; of 2000: 0.672
        ({'loop__num_steps': 2000}, 'loop.num_steps', 'becomes 0.000672 in place of 0.000141, 4.8 times'),
        ({'optim__learning_rate': 2e-3}, 'optim.learning_rate', 'becomes 0.000281 in place of 0.000141, 2 times'),
        ({'data__loader__batch_size': 2}, 'data.loader.batch_size', '800 clips .* at clip 1600: 800 clips are skipped'),
        ({'data__loader__seed': 1}, 'data.loader.seed', 'clips come in another order'),
        ({'seed': 1}, 'seed', 'the noise and times of all steps after 800 are others'),
    ],
)  # fmt: skip
def test_config_change_that_affects_training_is_refused_unless_allowed(folder, fields, field, effect):
    error = re.escape(field) + rf' is .* there and .* here \(.*{effect}.*\).*--allow-config-change={field}$'
    with pytest.raises(UsageError, match=error):
        check_folder(folder, change_config(**fields))
    (change,) = check_folder(folder, change_config(**fields), [field])
    assert re.search(rf'config.{field} from .* to .*: .*{effect}', str(change))


@pytest.mark.parametrize('fields', [{'optim__algorithm': 'muon'}, {'optim__ema_decay': 0.0}])
def test_config_change_of_the_optimizer_is_refused_always(folder, fields):
    (field,) = (name.replace('__', '.') for name in fields)
    error = (
        f'cannot be resumed with config.{field} from .*: the checkpoint holds no state for it; start another --workd'
    )
    with pytest.raises(UsageError, match=error):
        check_folder(folder, change_config(**fields), ['optim'])


def test_config_change_of_the_length_with_a_constant_rate_is_safe(tmp_path):
    write_run_config(tmp_path, change_config(optim__lr_schedule='constant'))
    (tmp_path / 'checkpoints' / '800').mkdir(parents=True)
    (change,) = check_folder(tmp_path, change_config(optim__lr_schedule='constant', loop__num_steps=2000))
    assert str(change) == 'config.loop.num_steps from 1000 to 2000'


def test_config_change_before_the_first_checkpoint_is_allowed(folder):
    (folder / 'checkpoints' / '800').rmdir()
    (change,) = check_folder(folder, change_config(loop__num_steps=2000))
    assert change.effect == ''
    assert len(check_folder(folder, change_config(optim__algorithm='muon'), ['optim'])) == 1
