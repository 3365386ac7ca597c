"""Flags, config files and overrides: how they are parsed, and errors."""

import dataclasses
from pathlib import Path
from typing import Literal

import pytest

from fv_jax.core import command_line
from fv_jax.core.command_line import (
    OVERRIDES,
    Parser,
    UsageError,
    format_error,
    override,
    path_flag,
    path_or_name_flag,
    read_config,
)
from fv_jax.core.config import ConfigError, to_dict
from fv_jax.core.paths import PathText, PathTextOrEmpty

PROGRAM = """
from ml_collections import ConfigDict

def get_config(variant=''):
    return ConfigDict({'part': {'size': 1 if variant else 7}, 'label': 'from the program'})
"""


@dataclasses.dataclass(frozen=True)
class Part:
    size: int = 3
    rate: float = 0.5
    kind: Literal['a', 'b'] = 'a'


@dataclasses.dataclass(frozen=True)
class Whole:
    part: Part = dataclasses.field(default_factory=Part)
    label: str = 'none yet'
    flag: bool = False
    sizes: tuple[int, ...] | None = None
    other: Part | None = None
    mode: Literal['none', 'all'] | None = 'all'
    start: PathText | None = None
    vae: PathText = 'vae.pt'
    encoder: PathTextOrEmpty = ''


@pytest.fixture
def program(tmp_path):
    path = tmp_path / 'small.py'
    path.write_text(PROGRAM)
    return path


def parser():
    made = Parser('python -m test', 'Tests.', OVERRIDES)
    made.add_argument('--input', required=True)
    made.add_argument('--count', type=int, default=1)
    return made


# Flags.


def test_parser_separates_flags_from_overrides():
    arguments, overrides = parser().parse(['--input=a', '--config.part.size=3', '--count', '2', '--config.label=x=y'])
    assert (arguments.input, arguments.count) == ('a', 2)
    assert overrides == [('part.size', '3'), ('label', 'x=y')]


@pytest.mark.parametrize(
    ('argv', 'words'),
    [
        (['--inptu=a', '--input=b'], '--inptu: unknown flag; did you mean --input?'),
        (['--inptu', 'a'], '--inptu: unknown flag; did you mean --input?'),
        (['--config.part.size=3'], 'required: --input'),
        (['--input=a', '--zzz'], '--zzz: unknown flag; --count, --help, --input'),
        (['--input=a', '--cou=2'], '--cou: unknown flag'),
        (['--input=a', 'stray'], 'stray: unknown flag'),
        (['--input=a', '--count=many'], 'argument --count: invalid int value'),
        ([], 'required: --input'),
        (['--input=a', '--config.part.size'], '--config.part.size: needs a value, as in --config.part.size=VALUE'),
    ],
)
def test_parser_names_the_nearest_flag(argv, words):
    with pytest.raises(UsageError) as error:
        parser().parse(argv)
    assert words in str(error.value) and '\n' not in str(error.value)


def test_parser_accepts_spaces_in_the_value_of_an_override():
    made = parser()
    made.add_argument('folder', nargs='?')
    arguments, overrides = made.parse(['--input=a', '--config.part.crop=(16, 30)'])
    assert (arguments.folder, overrides) == (None, [('part.crop', '(16, 30)')])


def test_parser_without_config_refuses_overrides():
    assert parser().parse_flags(['--input=a']).input == 'a'
    with pytest.raises(UsageError, match='takes no config'):
        parser().parse_flags(['--input=a', '--config.seed=1'])


# Configs.


def test_read_config_applies_overrides_to_the_file(program):
    config = read_config(Whole, f'{program}:small', [('part.rate', '1'), ('flag', 'true'), ('sizes', '(1, 2)')])
    assert config == Whole(part=Part(size=1, rate=1.0), label='from the program', flag=True, sizes=(1, 2))
    assert read_config(Whole, str(program), []).part.size == 7


def test_read_config_without_a_file_has_the_defaults():
    assert read_config(Whole, None, [('part.kind', 'b')]) == Whole(part=Part(kind='b'))


@pytest.mark.parametrize(
    ('path', 'text', 'value'),
    [
        ('part.rate', '2e-5', 2e-5),
        ('part.size', '12', 12),
        ('label', '12', '12'),
        ('label', 'None of these', 'None of these'),
        ('mode', 'none', 'none'),
        ('mode', 'null', None),
        ('other', 'none', None),
        ('start', 'None', None),
        ('start', '1e5', '1e5'),
        ('start', './none', './none'),
        ('flag', 'True', True),
        ('flag', 'false', False),
        ('sizes', 'none', None),
        ('sizes', '(4,)', (4,)),
        ('sizes', 'a/path', 'a/path'),
        ('sizes', '{[]: 1}', '{[]: 1}'),
        ('sizes', '(' * 500, '(' * 500),
    ],
)
def test_override_parses_values(path, text, value):
    values = to_dict(Whole(other=Part(), start='run', sizes=(1,)))
    override(Whole, values, path, text)
    for key in path.split('.'):
        values = values[key]
    assert values == value and type(values) is type(value)


@pytest.mark.parametrize(
    ('path', 'text', 'words'),
    [
        ('part.sise', '1', "config.part.sise: unknown key; did you mean 'size'?"),
        ('prt.size', '1', "config.prt: unknown key; did you mean 'part'?"),
        ('rate', '1', 'config.rate: unknown key; did you mean config.part.rate?'),
        ('other.size', '1', 'config.other.size: unknown key; it has no fields here'),
        ('label.size', '1', 'config.label.size: unknown key'),
        ('part', '1', 'config.part: is a section; set one of its fields (size, rate, kind)'),
        ('part', 'none', 'config.part: is a section; set one of its fields (size, rate, kind)'),
        ('label', 'none', "config.label: must not be none; expected str; '' is an empty one"),
        ('flag', 'none', 'config.flag: must not be none; expected bool'),
        ('part.size', 'null', 'config.part.size: must not be none; expected int'),
        ('vae', 'none', 'config.vae: must not be none; expected a path'),
        ('vae', '', 'config.vae: must be the path of a file or folder, and is empty'),
        ('start', 'gcs://bucket/run', 'config.start: gcs://bucket/run: the scheme gcs:// is not supported'),
        ('encoder', 'none', "config.encoder: must not be none; expected a path; '' is an empty one"),
        ('part.size', '1.5', 'config.part.size: expected int, got 1.5'),
        ('part.kind', 'c', "config.part.kind: 'c' is not a choice"),
    ],
)
def test_override_error_names_the_field(path, text, words):
    with pytest.raises(ConfigError) as error:
        read_config(Whole, None, [(path, text)])
    assert words in str(error.value) and '\n' not in str(error.value)


def test_override_of_an_optional_group_by_a_value_names_its_fields_and_none():
    values = to_dict(Whole(other=Part()))
    with pytest.raises(ConfigError, match=r'config.other: is a section; set one of its fields \(size.*\), or none$'):
        override(Whole, values, 'other', '3')


def test_read_config_expands_paths(monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    config = read_config(Whole, None, [('start', '~/run'), ('vae', '~/vae.pt'), ('encoder', '~/t5'), ('label', '~/x')])
    assert (config.start, config.vae, config.encoder) == ('/home/me/run', '/home/me/vae.pt', '/home/me/t5')
    assert config.label == '~/x'


# Paths.


def test_path_flag_expands_and_keeps_what_a_name_stands_for(monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    assert path_flag('~/run') == Path('/home/me/run')
    assert path_or_name_flag('./embedded') == './embedded' and path_or_name_flag('embedded') == 'embedded'


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('', 'argument --input: must be the path of a file or folder, and is empty'),
        ('ftp://host/x', 'argument --input: ftp://host/x: the scheme ftp:// is not supported'),
    ],
)
def test_path_flag_error_names_the_flag(text, words):
    made = Parser('python -m test', 'Tests.')
    made.add_argument('--input', type=path_flag)
    with pytest.raises(UsageError) as error:
        made.parse([f'--input={text}'])
    assert words in str(error.value) and '\n' not in str(error.value)


# What a terminal shows.


def test_format_error_is_one_line_of_bounded_length():
    assert format_error(ValueError('a\n  b\n')) == 'a b'
    assert format_error(ValueError()) == 'ValueError'
    assert len(format_error('x' * 10_000)) == command_line.MAX_LINE
