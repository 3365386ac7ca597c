"""Every shipped configuration on the slices of the recipe: it starts, or the error names a change that works."""

import json
import re
import subprocess
import sys

import pytest

from fv_jax.planning import slices
from tests import runs

SLICES = ('v5e-8', 'v5e-16', 'v6e-8', 'v5p-32', 'h100-8')
FULL = (
    *(
        'stage1.py',
        'stage1.py:full_ft',
        'vae.py',
        'stage2.py',
        'stage2.py:head128',
        'stage2.py:lora',
        'stage2.py:distil',
    ),
    *(f'stage2.py:phase{i}' for i in (1, 2, 3)),
)
SMALL = (
    *(f'{name}:smoke' for name in ('stage1.py', 'stage2.py', 'vae.py')),
    'stage1.py:tiny',
    'stage2.py:tiny',
    'stage2.py:tiny_mixed',
    'stage2.py:tiny_captions',
    'stage2.py:distil,tiny=true',
    'stage2.py:phase2,tiny=true',
    'stage2.py:tiny,pairs=like_previews',
)
# Nothing is allocated: the training state's shapes and shardings are made, as at the start of a run and of a plan.
SCRIPT = """
import json, sys
import jax
from fv_jax.core.command_line import read_config
from fv_jax.core.config import ConfigError
from fv_jax.parallel.mesh import make_mesh
from fv_jax.planning import planner
from fv_jax.training.run.setup import TrainConfig, make_partitioner, make_train_setup

found = {}
for name, num_devices in json.loads(sys.argv[1]):
    config = read_config(TrainConfig, f'configs/{name}', ())
    spec = planner.latent_spec(config)
    try:
        partitioner = make_partitioner(config, make_mesh(config.parallel, jax.devices()[:num_devices]), spec)
        make_train_setup(config, partitioner, spec)
        found[f'{name} {num_devices}'] = None
    except ConfigError as error:
        found[f'{name} {num_devices}'] = str(error)
print(json.dumps(found))
"""


@pytest.fixture(scope='module')
def errors():
    """(config, devices) -> the error of a start, or None."""
    asked = [(name, n) for name in FULL + SMALL for n in (1, 3, 6, 8, 16)]
    command = [sys.executable, '-c', SCRIPT, json.dumps(asked)]
    done = subprocess.run(command, env=runs.environment(devices=16), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return {tuple(key.rsplit(' ', 1)): error for key, error in json.loads(done.stdout).items()}


@pytest.mark.parametrize('where', SLICES)
@pytest.mark.parametrize('name', FULL)
def test_full_size_configs_start_on_every_slice(errors, name, where):
    assert errors[name, str(slices.parse(where).devices)] is None


@pytest.mark.parametrize('name', FULL + SMALL)
def test_configs_start_on_one_device(errors, name):
    assert errors[name, '1'] is None


@pytest.mark.parametrize('devices', ['3', '6', '8', '16'])
@pytest.mark.parametrize('name', FULL + SMALL)
def test_invalid_mesh_is_an_error_that_names_the_field_and_its_limit(errors, name, devices):
    error = errors[name, devices]
    if error is not None:
        assert re.search(r'config\.\S+=\d+: .* use (at most )?\d+|config\.parallel: .*; (choose|use) ', error), error
