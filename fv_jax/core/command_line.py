"""What the command lines of all commands share: flags, config files, `--config.FIELD=VALUE`, and one-line errors.

A config file is Python, with `get_config(variant: str) -> ConfigDict`, named as `path.py:variant`.

Not absl.flags with ml_collections.config_flags: those flags are global to the process, and their errors are not one
line that names the nearest flag or field.
"""

import argparse
import ast
import difflib
import importlib.util
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from ml_collections import ConfigDict

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError, build, did_you_mean, to_dict

T = TypeVar('T')

MAX_LINE = 500  # characters of an error; an allocator's complaint goes on for pages
OVERRIDES = '--config.FIELD=VALUE sets a field of the config, for example --config.optim.learning_rate=3e-4.'
Override = tuple[str, str]  # the field's path with dots, the text of its value


class UsageError(Exception):
    """Raised for wrong usage, before anything was done. The message is one line: value, limit and fix."""


def format_error(error: object) -> str:
    """Formats the message of an error as one line of at most `MAX_LINE` characters."""
    return ' '.join(str(error).split())[:MAX_LINE] or type(error).__name__


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are UsageErrors that name the nearest flag."""

    def __init__(self, prog: str, description: str, epilog: str | None = None):
        super().__init__(prog=prog, description=description, epilog=epilog, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f'{message}; see --help')

    def parse_flags(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parses the arguments of a command that takes no config."""
        arguments, overrides = self.parse(argv)
        if overrides:
            raise UsageError(f'--config.{overrides[0][0]}: this command takes no config')
        return arguments

    def parse(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[Override]]:
        """Parses the arguments; returns them and the overrides `--config.FIELD=VALUE` among them."""
        arguments, overrides = self.parse_with_overrides(argv, ('config',))
        return arguments, overrides['config']

    def parse_with_overrides(
        self, argv: Sequence[str], groups: Sequence[str]
    ) -> tuple[argparse.Namespace, dict[str, list[Override]]]:
        """Parses the arguments; returns them and, for each of `groups`, the overrides `--GROUP.FIELD=VALUE`."""
        arguments, rest = self.parse_known_args(argv)
        overrides: dict[str, list[Override]] = {group: [] for group in groups}
        for text in rest:
            flag, equals, value = text.partition('=')
            group, dot, field = flag.removeprefix('--').partition('.')
            if flag.startswith('--') and dot and group in overrides:
                require(equals, f'{flag}: needs a value, as in {flag}=VALUE', UsageError)
                overrides[group].append((field, value))
            else:
                known = sorted(option for action in self._actions for option in action.option_strings)
                close = difflib.get_close_matches(flag, known, n=1)
                raise UsageError(f'{flag}: unknown flag; {f"did you mean {close[0]}?" if close else ", ".join(known)}')
        return arguments, overrides


def add_process_flags(parser: Parser) -> None:
    """Adds the flags that name the processes of a run where they cannot be detected."""
    parser.add_argument('--coordinator', help='HOST:PORT of process 0, where neither a TPU nor Slurm provides it')
    parser.add_argument('--num-processes', type=int, help='number of processes')
    parser.add_argument('--process-id', type=int, help='index of this process, from 0')


def parse_size(flag: str, text: str) -> tuple[int, int]:
    """Parses '1072x1920' as (height, width). Raises UsageError for anything else."""
    match = re.fullmatch(r'(\d+)x(\d+)', text)
    require(match is not None, f'{flag}={text}: give HEIGHTxWIDTH, for example 1072x1920', UsageError)
    height, width = (int(side) for side in match.groups())
    return height, width


def read_config(cls: type[T], program: str, overrides: Sequence[Override]) -> T:
    """Loads a config file, applies overrides and builds the dataclass `cls`.

    Args:
      cls: the class of the configuration.
      program: 'path.py:variant' as in `--config`; '' is the defaults of `cls`.
      overrides: (field, value) of `--config.FIELD=VALUE`, applied in order.

    Raises:
      UsageError: no such file.
      ConfigError: a variant or a field that does not exist (the nearest is named), or an invalid value.
    """
    config = build(cls, load_config_file(program)) if program else cls()
    values = to_dict(config)  # with every default, so that any field can be set
    for path, text in overrides:
        override(values, path, text)
    return build(cls, values)


def override(values: dict[str, Any], path: str, text: str, root: str = 'config') -> None:
    """Sets a field of nested dicts in place.

    Args:
      values: the configuration.
      path: of the field, 'optim.learning_rate'.
      text: its new value: a Python literal, none, true or false; for a field that is a string, the string.
      root: name of the configuration in messages.

    Raises:
      ConfigError: the field does not exist, or is a section.
    """
    *groups, name = path.split('.')
    group = values
    for depth, key in enumerate([*groups, name]):
        if not isinstance(group, dict) or key not in group:
            where = '.'.join([root, *path.split('.')[:depth]])
            known = group if isinstance(group, dict) else ()
            hint = did_you_mean(key, known) if known else 'it has no fields here'
            raise ConfigError(f'{where}.{key}: unknown key; {hint}')
        if depth < len(groups):
            group = group[key]
    if isinstance(group[name], dict):
        raise ConfigError(f'{root}.{path}: is a section; set one of its fields ({", ".join(group[name])})')
    group[name] = text if isinstance(group[name], str) else _literal(text)


def _literal(text: str) -> Any:
    named = {'none': None, 'null': None, 'true': True, 'false': False}
    if text.lower() in named:
        return named[text.lower()]
    try:
        return ast.literal_eval(text)
    except (
        ValueError,
        SyntaxError,
        TypeError,
        MemoryError,
        RecursionError,
    ):  # the last three for malformed or very long texts
        return text


def load_config_file(argument: str) -> dict[str, Any]:
    """Executes a config file 'path.py:variant' and returns its values as nested dicts.

    Raises UsageError or ConfigError.
    """
    name, _, variant = argument.partition(':')
    path = Path(name)
    require(path.is_file(), f'--config={argument}: file {name} does not exist', UsageError)
    spec = importlib.util.spec_from_file_location(f'_config_{path.stem}', path)
    if spec is None or spec.loader is None:
        raise UsageError(f'--config={argument}: {name} is not a Python file')
    module = importlib.util.module_from_spec(spec)
    # Config files import what they share as `configs.common`.
    root = str(path.resolve().parent.parent)
    sys.path.insert(0, root)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(variant) if hasattr(module, 'get_config') else None
    except ConfigError as error:
        raise ConfigError(f'--config={argument}: {error}') from None
    except Exception as error:  # the user's own code can raise anything
        raise UsageError(f'--config={argument}: {_failure(error, path)}') from error
    finally:
        sys.path.remove(root)
    if not isinstance(config, ConfigDict):
        raise UsageError(f'--config={argument}: {name} has no function get_config that returns a ConfigDict')
    return config.to_dict()


def _failure(error: Exception, program: Path) -> str:
    """Formats an exception that a config file raised, with its line."""
    places = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == program]
    at = f', line {places[-1]}' if places else ''
    return f'{program}{at} fails with {type(error).__name__}: {format_error(error)}'
