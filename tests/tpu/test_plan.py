"""The small configuration, compiled for a TPU that is not attached. Full size: `python -m tests.tpu.full_size`."""

import importlib.util
import json

import pytest

from fv_jax import plan

pytestmark = [
    pytest.mark.tpu,
    pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason="needs libtpu: pip install -e '.[plan]'"),
]


def test_plan_of_a_step_on_four_chips(capsys, tmp_path):
    file = tmp_path / 'plan.json'
    spread = '--config.parallel.context=1', '--config.parallel.fsdp=4', '--config.data.loader.batch_size=4'
    flags = '--config=configs/stage2.py:smoke', '--topology=v5e-4', '--only=train', f'--json={file}'
    assert plan.main([*flags, *spread]) == 0, capsys.readouterr().err
    found = json.loads(file.read_text())
    (step,) = found['phases'][0]['programs']
    compiled = step['compiled']
    assert compiled['temp_bytes'] > 0 and compiled['seconds'] > 0
    # A chip holds a quarter of the large weights, and gathers them.
    resident = found['phases'][0]['resident_bytes']
    assert abs(resident['optimizer'] - 2 * resident['parameters']) < 1000
    assert compiled['traffic']['sent_bytes'] and not compiled['traffic']['unknown_loops']
    assert compiled['argument_bytes'] > sum(resident.values())
    assert 'DOES NOT FIT' not in capsys.readouterr().out


def test_plan_of_sampling_on_four_chips(capsys, tmp_path):
    """The small stage 2, one example and no guidance: four chips divide its tokens and its columns."""
    file = tmp_path / 'plan.json'
    flags = '--config=configs/stage2.py:smoke', '--topology=v5e-4', '--only=sample', '--stage2.size=384,512'
    assert plan.main([*flags, f'--json={file}']) == 0, capsys.readouterr().err
    (phase,) = json.loads(file.read_text())['phases']
    programs = {each['name']: each for each in phase['programs']}
    names = {'resize', 'VAE encode, 9 frames', 'sampler step', 'VAE decode, 3 frames'}
    assert programs.keys() == names
    for name in names - {'resize'}:
        compiled = programs[name]['compiled']
        assert compiled['temp_bytes'] > 0 and compiled['traffic']['sent_bytes'], name
    # The sampler takes the resident weights, and a decode its half of the VAE.
    weights = phase['resident_bytes']['stage2']
    assert programs['sampler step']['compiled']['argument_bytes'] >= weights
    printed = capsys.readouterr().out
    assert 'in all' in printed and 'DOES NOT FIT' not in printed
