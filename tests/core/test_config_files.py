"""Config files: how they are named, found and run."""

import shutil
import sys
from pathlib import Path

import pytest

from fv_jax.core import config_files
from fv_jax.core.config import ConfigError
from fv_jax.core.config_files import load_config_file

PROGRAM = """
from ml_collections import ConfigDict
from configs.common import parse_variant
{more}
def get_config(variant=''):
    name, fields = parse_variant(variant, ('small',), {{'source': 'x'}})
    return ConfigDict({{'name': name, 'source': fields['source']}})
"""


def write(path: Path, more: str = '') -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(PROGRAM.format(more=more))
    return path


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty working directory that is not on sys.path, nor is the clone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [entry for entry in sys.path if not (Path(entry) / 'configs').is_dir()])
    return tmp_path


def test_config_file_is_split_from_its_variant_at_the_last_colon_after_a_file(elsewhere):
    path = write(elsewhere / 'exp:1' / 'bucket:' / 'small.py')
    for variant, values in (
        ('', {'name': '', 'source': 'x'}),
        (':', {'name': '', 'source': 'x'}),
        (':small', {'name': 'small', 'source': 'x'}),
        (':small,source=images:photos', {'name': 'small', 'source': 'images:photos'}),
        (':,source=a/b.c', {'name': '', 'source': 'a/b.c'}),
    ):
        assert load_config_file(f'{path}{variant}') == values
    write(elsewhere / 'C:\\small.py')
    assert load_config_file('C:\\small.py:small')['name'] == 'small'


def test_config_by_bare_name_is_the_shipped_one(elsewhere):
    assert load_config_file('stage2:smoke')['stage']['kind'] == 'superres'
    assert load_config_file('prepare')['frames'] == 49


def test_config_file_expands_the_home_folder(elsewhere, monkeypatch):
    monkeypatch.setenv('HOME', str(elsewhere))
    write(elsewhere / 'small.py')
    assert load_config_file('~/small.py:small')['name'] == 'small'


def test_config_copied_elsewhere_runs(elsewhere):
    """Also beside another package `configs`, with `__init__.py`, as many projects have one."""
    for folder in ('copies', 'configs', 'project/configs/deeper'):
        (elsewhere / folder).mkdir(parents=True)
        copy = shutil.copy(config_files.shipped_folder() / 'stage2.py', elsewhere / folder / 'mine.py')
        assert load_config_file(f'{copy}:smoke')['stage']['kind'] == 'superres'
    (elsewhere / 'configs' / '__init__.py').touch()
    assert load_config_file('configs/mine.py:smoke')['stage']['kind'] == 'superres'
    assert load_config_file('stage2:smoke')['stage']['kind'] == 'superres'


def test_config_file_imports_its_neighbours_first(elsewhere):
    (elsewhere / 'configs').mkdir()
    (elsewhere / 'configs' / 'mine.py').write_text('LABEL = 1')
    path = write(elsewhere / 'configs' / 'deeper' / 'small.py', 'from configs.mine import LABEL')
    assert load_config_file(str(path))['name'] == ''


def test_config_file_leaves_imports_unchanged(elsewhere):
    path = write(elsewhere / 'configs' / 'small.py')
    before, modules = list(sys.path), {name for name in sys.modules if name.startswith('configs')}
    load_config_file(str(path))
    assert sys.path == before and {name for name in sys.modules if name.startswith('configs')} == modules


def test_config_file_error_is_one_line(elsewhere):
    program = write(elsewhere / 'small.py')
    for name, text in {
        'empty.py': '',
        'text.txt': '',
        'raises.py': 'def get_config(variant):\n    return {}[variant]',
        'number.py': 'def get_config(variant):\n    return 3',
    }.items():
        (elsewhere / name).write_text(text)
    for argument, words in (
        ('', 'is empty'),
        (':tiny', 'is empty'),
        ('none.py:small', 'file none.py does not exist'),
        ('exp:1/none.py:small', 'file exp:1/none.py does not exist'),
        ('stag2:tiny', "no shipped config has the name 'stag2'; did you mean 'stage2'?"),
        ('configs/stage2.py:tiny', 'file configs/stage2.py does not exist; the shipped one is --config=stage2:tiny'),
        ('gs://bucket/stage2.py:tiny', 'a config file must be local; copy it first'),
        ('~nobody_of_this_name/x.py', '~nobody_of_this_name has no home folder'),
        (f'{elsewhere}/empty.py', 'has no function get_config'),
        (f'{elsewhere}/text.txt', 'is not a Python file'),
        (f'{elsewhere}/raises.py:a', "raises.py, line 2 fails with KeyError: 'a'"),
        (f'{elsewhere}/number.py', 'has no function get_config that returns a ConfigDict'),
        (f'{program}:smal', "smal: unknown variant; did you mean 'small'?"),
    ):
        with pytest.raises(ConfigError) as found:
            load_config_file(argument, '--config')
        line = str(found.value)
        assert line.startswith(f'--config={argument}: ') and words in line and '\n' not in line, line
