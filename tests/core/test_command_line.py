"""Flags, config programs and overrides: what is read, and what is said when it cannot be."""

import dataclasses
from typing import Literal

import pytest

from fv_jax.core import command_line
from fv_jax.core.command_line import OVERRIDES, Parser, UsageError, format_error, override, read_config
from fv_jax.core.config import ConfigError

PROGRAM = """
from ml_collections import ConfigDict
from configs.common import parse_variant

def get_config(variant=''):
    name, _ = parse_variant(variant, ('small',))
    return ConfigDict({'part': {'size': 1 if name else 7}, 'label': 'from the program'})
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


@pytest.fixture
def program(tmp_path):
    (tmp_path / 'configs').mkdir()
    path = tmp_path / 'configs' / 'small.py'
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
    assert read_config(Whole, '', [('part.kind', 'b')]) == Whole(part=Part(kind='b'))


@pytest.mark.parametrize(
    ('path', 'text', 'value'),
    [
        ('part.rate', '2e-5', 2e-5),
        ('part.size', '12', 12),
        ('label', '12', '12'),
        ('label', 'none', 'none'),
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
    values = {'part': {'size': 3, 'rate': 0.5}, 'label': 'x', 'flag': False, 'sizes': None}
    override(values, path, text)
    for key in path.split('.'):
        values = values[key]
    assert values == value and type(values) is type(value)


@pytest.mark.parametrize(
    ('path', 'text', 'words'),
    [
        ('part.sise', '1', "config.part.sise: unknown key; did you mean 'size'?"),
        ('prt.size', '1', "config.prt: unknown key; did you mean 'part'?"),
        ('other.size', '1', 'config.other.size: unknown key; it has no fields here'),
        ('label.size', '1', 'config.label.size: unknown key'),
        ('part', '1', 'config.part: is a section; set one of its fields (size, rate, kind)'),
        ('part.size', '1.5', 'config.part.size: expected int, got 1.5'),
        ('part.kind', 'c', "config.part.kind: 'c' is not a choice"),
    ],
)
def test_override_error_names_the_field(path, text, words):
    with pytest.raises(ConfigError) as error:
        read_config(Whole, '', [(path, text)])
    assert words in str(error.value) and '\n' not in str(error.value)


def test_config_file_error_is_one_line(program, tmp_path):
    (tmp_path / 'empty.py').write_text('')
    (tmp_path / 'text.txt').write_text('')
    (tmp_path / 'raises.py').write_text('def get_config(variant):\n    return {}[variant]')
    (tmp_path / 'number.py').write_text('def get_config(variant):\n    return 3')
    for argument, error, words in (
        ('none.py:small', UsageError, 'file none.py does not exist'),
        (f'{tmp_path}/empty.py', UsageError, 'has no function get_config'),
        (f'{tmp_path}/text.txt', UsageError, 'is not a Python file'),
        (f'{tmp_path}/raises.py:a', UsageError, "raises.py, line 2 fails with KeyError: 'a'"),
        (f'{tmp_path}/number.py', UsageError, 'has no function get_config that returns a ConfigDict'),
        (f'{program}:smal', ConfigError, "smal: unknown variant; did you mean 'small'?"),
    ):
        with pytest.raises(error, match='--config=') as found:
            read_config(Whole, argument, [])
        assert words in str(found.value)


def test_config_file_leaves_sys_path_unchanged(program):
    before = list(command_line.sys.path)
    read_config(Whole, str(program), [])
    assert command_line.sys.path == before


# What a terminal shows.


def test_format_error_is_one_line_of_bounded_length():
    assert format_error(ValueError('a\n  b\n')) == 'a b'
    assert format_error(ValueError()) == 'ValueError'
    assert len(format_error('x' * 10_000)) == command_line.MAX_LINE
