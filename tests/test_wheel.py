"""The wheel: it holds the shipped configs and data, and works from a folder that is no clone."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from tests import runs

CONFIGS = ('common', 'degradations', 'prepare', 'stage1', 'stage2', 'vae')
SHOW = """
import fv_jax
from fv_jax.core.config_files import load_config_file
from fv_jax.core.report.blocks import Report
from fv_jax.core.report.page import to_html
from fv_jax.data import embedded
from fv_jax.weights.embedded import stages
print(fv_jax.__file__)
print(load_config_file('stage2:tiny')['stage']['kind'], load_config_file('mine.py:tiny')['stage']['kind'])
print(len(embedded.train_shards()), len(stages()))
print('<h1>a</h1>' in to_html(Report('a', [])))
"""


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """A folder in which the wheel of a copy of the sources is unpacked, as pip does."""
    folder = tmp_path_factory.mktemp('wheel')
    ignored = shutil.ignore_patterns('__pycache__')
    for name in ('fv_jax', 'configs'):
        shutil.copytree(runs.ROOT / name, folder / 'clone' / name, ignore=ignored)
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(runs.ROOT / name, folder / 'clone')
    build = "from setuptools import build_meta; print(build_meta.build_wheel('..'))"
    done = subprocess.run([sys.executable, '-c', build], cwd=folder / 'clone', capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob('*.whl')
    zipfile.ZipFile(wheel).extractall(folder / 'site')
    return folder / 'site'


def run(site, cwd, *arguments):
    environment = os.environ | {'PYTHONPATH': str(site), 'JAX_PLATFORMS': 'cpu'}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def test_wheel_holds_the_configs_within_the_package(site):
    assert {path.name for path in site.iterdir() if path.suffix != '.dist-info'} == {'fv_jax'}
    assert {path.stem for path in (site / 'fv_jax' / 'configs').glob('*.py')} == set(CONFIGS)


def test_wheel_finds_its_configs_from_another_folder(site, tmp_path):
    shutil.copy(site / 'fv_jax' / 'configs' / 'stage1.py', tmp_path / 'mine.py')
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs' / '__init__.py').touch()  # another project's
    done = run(site, tmp_path, '-c', SHOW)
    assert done.stdout.splitlines() == [f'{site}/fv_jax/__init__.py', 'superres lowres', '1 2', 'True'], done.stderr
    done = run(site, tmp_path, '-m', 'fv_jax.train', '--config=configs/stage2.py:smoke', '--workdir=run')
    assert done.returncode == 2 and done.stderr == (
        'train: --config=configs/stage2.py:smoke: file configs/stage2.py does not exist; the shipped one is '
        '--config=stage2:smoke\n'
    )
    assert not (tmp_path / 'run').exists()
