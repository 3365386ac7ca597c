"""Networks of an evaluation: the items of --compare, names, and settings."""

import dataclasses
from pathlib import Path

import pytest

from fv_jax.checkpoints.errors import CheckpointError
from fv_jax.core.command_line import UsageError
from fv_jax.evaluation import networks
from fv_jax.evaluation.networks import Comparand, make_methods, parse_comparand
from fv_jax.sampling.sampling_mesh import SamplingMesh
from tests.sampling import tiny


@pytest.fixture(scope='module')
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')
    tiny.save_vae(folder / 'vae.safetensors')
    tiny.save_run(folder / 'run', tiny.stage_config(folder / 'vae.safetensors'))
    return networks.open_networks([folder / 'run'], SamplingMesh.create())


def test_items_of_compare(tmp_path):
    (tmp_path / 'run,a=b').mkdir()
    assert parse_comparand(f'{tmp_path}') == Comparand(tmp_path, {})
    assert parse_comparand(f'{tmp_path}/run,a=b') == Comparand(tmp_path / 'run,a=b', {})
    assert parse_comparand('sampler=heun,overlap=5') == Comparand(None, {'sampler': 'heun', 'overlap': '5'})
    both = parse_comparand(f'{tmp_path},num_steps=2')
    assert both == Comparand(tmp_path, {'num_steps': '2'}) and str(both) == f'{tmp_path},num_steps=2'
    for text, message in (
        ('nowhere', '--compare nowhere: nowhere does not exist'),
        ('sampler=heun,5', "'5'; give FIELD=VALUE"),
        ('num_step=2', "unknown field 'num_step'; did you mean 'num_steps'"),
        ('guidance_scale=2', "unknown field 'guidance_scale'"),
    ):
        with pytest.raises(UsageError) as caught:
            parse_comparand(text)
        assert message in str(caught.value)


def test_methods_of_one_checkpoint(opened):
    (network,) = opened
    own = network.own_steps
    compared = [Comparand(None, {'shift': '1.5', 'overlap': '1'}), Comparand(None, {'num_steps': '1'})]
    found = make_methods(opened, (), compared)
    assert [method.kind for method in found] == ['ceiling'] + ['network'] * (len(found) - 1)
    assert [method.name for method in found[1:]] == [
        f'{own} steps', '1 step', f'{2 * own} steps', f'{own} steps, shift=1.5 overlap=1'
    ]  # fmt: skip
    assert found[1].details['settings']['shift'] == network.run.stage.config.shift
    last = found[-1].details
    assert (last['num_steps'], last['nfe'], last['step']) == (own, own, 7)
    assert (last['settings']['shift'], last['settings']['overlap']) == (1.5, 1)
    assert [m.name for m in make_methods(opened, (3, own), [])[1:]] == [f'{own} steps', '3 steps']
    assert make_methods([], (), []) == []


def test_labels_tell_checkpoints_apart(opened):
    (network,) = opened
    other = dataclasses.replace(network, label='b', path=Path('b'))
    main = dataclasses.replace(network, label='a')
    found = make_methods([main, other], (2,), [Comparand(Path('b'), {})])
    assert [method.name for method in found[1:]] == ['a, 2 steps', 'b, 2 steps']


def test_embedded_is_the_small_stage_of_the_package():
    assert parse_comparand('embedded,num_steps=2') == Comparand(Path('embedded'), {'num_steps': '2'})
    (network,) = networks.open_networks([Path('embedded')], SamplingMesh.create())
    assert network.run.step > 0 and network.run.vae is not None and network.own_steps == 4


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'num_steps': '0'}, 'num_steps'),
        ({'num_steps': 'many'}, 'num_steps'),
        ({'sampler': 'dpm'}, 'sampler'),
        ({'overlap': '4'}, 'overlap=4'),
        ({'overlap': 'x'}, 'overlap'),
        ({'noise_augmentation_timestep': '2000'}, 'noise_augmentation_timestep'),
    ],
)
def test_settings_that_cannot_be(opened, settings, message):
    with pytest.raises((UsageError, ValueError), match=message) as caught:
        opened[0].method(settings)
    assert '\n' not in str(caught.value)


def test_checkpoints_that_cannot_be_evaluated(tmp_path):
    with pytest.raises(CheckpointError, match='nowhere: does not exist'):
        networks.open_networks([tmp_path / 'nowhere'], SamplingMesh.create())
