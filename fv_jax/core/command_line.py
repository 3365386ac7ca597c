"""What the command lines of all commands share: flags, config files, `--config.FIELD=VALUE`, and one-line errors.

Not absl.flags with ml_collections.config_flags: those flags are global to the process, and their errors are not one
line that names the nearest flag or field.
"""

import argparse
import ast
import dataclasses
import difflib
import re
import typing
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, TypeVar

from fv_jax.core import files, hub
from fv_jax.core.checks import one_line, require
from fv_jax.core.config import ConfigError, build, did_you_mean, field_types, split_optional, to_dict
from fv_jax.core.config_files import load_config_file
from fv_jax.core.paths import PathText, PathTextOrEmpty, StoragePath, as_path, expand_path, is_hub, is_url

T = TypeVar('T')

MAX_LINE = 500  # characters of an error; the message of an allocator can have pages
OVERRIDES = (
    '--config.FIELD=VALUE sets a field of the config, for example --config.optim.learning_rate=3e-4; none is no value.'
)
Override = tuple[str, str]  # the field's path with dots, the text of its value


class UsageError(Exception):
    """Raised for wrong usage, before anything was done. The message is one line: value, limit and fix."""


def format_error(error: object) -> str:
    """Formats the message of an error as one line of at most `MAX_LINE` characters."""
    return one_line(error, MAX_LINE)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are UsageErrors that name the nearest flag."""

    def __init__(self, prog: str, description: str, epilog: str | None = None):
        super().__init__(prog=prog, description=description, epilog=epilog, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raises UsageError instead of ending the process."""
        raise UsageError(f'{message}; see --help')

    def parse_flags(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parses the arguments of a command that takes no config. Raises UsageError."""
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
        prefixes = tuple(f'--{group}.' for group in groups)
        overrides: dict[str, list[Override]] = {group: [] for group in groups}
        flags = []  # without overrides: argparse takes an unknown flag with a space in its value for a positional
        for text in argv:
            if not text.startswith(prefixes):
                flags.append(text)
                continue
            flag, equals, value = text.partition('=')
            require(equals, f'{flag}: needs a value, as in {flag}=VALUE', UsageError)
            group, field = flag.removeprefix('--').split('.', 1)
            overrides[group].append((field, value))
        try:
            arguments, rest = self.parse_known_args(flags)
        except UsageError:
            self._check_known(flags)  # a misspelt flag is why a required one is missing
            raise
        if rest:
            self._raise_unknown(rest[0].partition('=')[0])
        self._check_reachable(arguments)
        return arguments, overrides

    def _check_reachable(self, arguments: argparse.Namespace) -> None:
        """Raises UsageError for the URL of a bucket that cannot be reached."""
        for action in self._actions:
            if action.type in (path_flag, weights_flag, path_or_name_flag):
                given = getattr(arguments, action.dest)
                for value in given if isinstance(given, list) else [given]:
                    check_reachable(value, f'{(action.option_strings or [action.dest])[0]}={value}')

    def _check_known(self, argv: Sequence[str]) -> None:
        """Raises UsageError for a flag that does not exist."""
        for text in argv:
            flag = text.partition('=')[0]
            if flag.startswith('--') and flag not in self._option_string_actions:
                self._raise_unknown(flag)

    def _raise_unknown(self, flag: str) -> NoReturn:
        known = sorted(option for action in self._actions for option in action.option_strings)
        close = difflib.get_close_matches(flag, known, n=1)
        raise UsageError(f'{flag}: unknown flag; {f"did you mean {close[0]}?" if close else ", ".join(known)}')


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


def path_flag(text: str) -> StoragePath:
    """Parses the value of a flag that is a path, local or in object storage: the `type` of `add_argument`."""
    try:
        return as_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def weights_flag(text: str) -> StoragePath:
    """Parses the value of a flag that is the path of weights, which may be on the Hub: hf://USER/NAME.

    They are downloaded now.
    """
    try:
        return hub.weights_path(text)
    except (ValueError, OSError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def path_or_name_flag(text: str) -> str:
    """Parses the value of a flag that is a path or a name such as embedded, which ./embedded is not."""
    try:
        return expand_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def check_reachable(path: StoragePath | str | None, what: str) -> None:
    """Raises UsageError where a path is the URL of a bucket that cannot be reached; `what` precedes the reason."""
    if path is None or not is_url(str(path)):
        return
    try:
        if isinstance(path, str) and is_hub(path):
            hub.weights_path(path)  # downloads them
        else:
            files.check_reachable(as_path(path))
    except OSError as error:
        raise UsageError(f'{what}: cannot be reached: {error}') from None


def read_config(cls: type[T], program: str | None, overrides: Sequence[Override], flag: str = '--config') -> T:
    """Loads a config file, applies overrides and builds the dataclass `cls`.

    Args:
      cls: the class of the configuration.
      program: FILE:VARIANT as in `--config` (`config_files`); None is the defaults of `cls`.
      overrides: (field, value) of `--config.FIELD=VALUE`, applied in order.
      flag: the flag that gave `program`, for messages.

    Raises:
      ConfigError: a file, a variant or a field that does not exist (the nearest is named), or an invalid value.
      UsageError: a field is the URL of a bucket that cannot be reached.
    """
    config = cls() if program is None else build(cls, load_config_file(program, flag))
    values = to_dict(config)  # with every default, so that any field can be set
    for path, text in overrides:
        override(cls, values, path, text)
    config = build(cls, values)
    for path, value in _paths(config):
        check_reachable(value, f'config.{path}={value}')
    return config


def _paths(config: Any, path: str = '') -> Iterator[tuple[str, str]]:
    """Yields (path of the field with dots, value) of all fields of a dataclass that are paths."""
    hints = field_types(type(config), config.__dict__)
    for name, value in config.__dict__.items():
        hint, where = split_optional(hints[name])[0], f'{path}.{name}' if path else name
        if hint in (PathText, PathTextOrEmpty) and value:
            yield where, value
        elif dataclasses.is_dataclass(value):
            yield from _paths(value, where)


def override_settings(settings: T, group: str, overrides: Sequence[Override]) -> T:
    """Returns settings with the fields that `--GROUP.FIELD=VALUE` set. Raises ConfigError as `override`."""
    values = to_dict(settings)
    for path, text in overrides:
        override(type(settings), values, path, text, f'--{group}')
    return build(type(settings), values, f'--{group}')


def override(cls: type, values: dict[str, Any], path: str, text: str, root: str = 'config') -> None:
    """Sets a field of nested dicts in place.

    Args:
      cls: the dataclass whose fields they are.
      values: the configuration.
      path: of the field, 'optim.learning_rate'.
      text: its new value: none or null, where the field may be (and is not a choice of that name); for a field that is
        a text, the text; for any other a Python literal, true or false.
      root: name of the configuration in messages.

    Raises:
      ConfigError: the field does not exist, or is a section.
    """
    group, hint, keys = values, cls, path.split('.')
    for depth, key in enumerate(keys):
        where = '.'.join([root, *keys[:depth]])
        if not isinstance(group, dict) or key not in group:
            known = group if isinstance(group, dict) else ()
            fix = did_you_mean(key, known) if known else 'it has no fields here'
            elsewhere = [found for found in _field_paths(values) if found.rpartition('.')[2] == keys[-1]]
            if known and elsewhere and not difflib.get_close_matches(key, known):
                fix = f'did you mean {" or ".join(f"{root}.{found}" for found in elsewhere[:3])}?'
            raise ConfigError(f'{where}.{key}: unknown key; {fix}')
        hint, optional = split_optional(field_types(hint, group, where)[key])
        parent, group = group, group[key]
    value = _parse(hint, text)
    if isinstance(group, dict) and not (optional and value is None):
        none = ', or none' if optional else ''
        raise ConfigError(f'{root}.{path}: is a section; set one of its fields ({", ".join(group)}){none}')
    parent[keys[-1]] = value


def _field_paths(values: Any, path: str = '') -> list[str]:
    """Returns the paths of all fields of nested dicts, with dots."""
    if not isinstance(values, dict):
        return [path]
    return [found for key, value in values.items() for found in _field_paths(value, f'{path}.{key}' if path else key)]


def _parse(hint: Any, text: str) -> Any:
    """Parses the text of a value for a field of this type."""
    choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
    if text.lower() in ('none', 'null') and text not in choices:
        return None
    return text if choices or hint in (str, PathText, PathTextOrEmpty) else _literal(text)


def _literal(text: str) -> Any:
    if text.lower() in ('true', 'false'):
        return text.lower() == 'true'
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
