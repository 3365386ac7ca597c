"""Parses the shell blocks of the guides, and their commands by the real parsers, without running them."""

import contextlib
import functools
import importlib
import io
import itertools
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn
from unittest import mock

from fv_jax import sample
from fv_jax.core import config as config_lib
from fv_jax.core import files, hub
from fv_jax.core.command_line import Override, Parser, UsageError, override, read_config
from fv_jax.core.config_files import load_config_file
from fv_jax.data.degradation.degradations import Degradation
from fv_jax.data.video.clips import ClipsConfig
from fv_jax.parallel.mesh import ParallelConfig
from fv_jax.sampling.settings import EnhanceSettings, PreviewSettings
from fv_jax.training.run.setup import TrainConfig
from tests.architecture.test_imports import COMMANDS

CONFIGS = {'train': TrainConfig, 'plan': TrainConfig, 'prepare': ClipsConfig, 'degrade': Degradation}
SETTINGS = {'stage1': PreviewSettings, 'stage2': EnhanceSettings, 'parallel': ParallelConfig}


class _ParsedError(Exception):
    """Ends a command as soon as its arguments are parsed."""

    def __init__(self, parser: Parser, arguments: object, overrides: dict[str, list[Override]]):
        super().__init__()
        self.parser, self.arguments, self.overrides = parser, arguments, overrides


def _main(name: str):
    return importlib.import_module(f'fv_jax.{name}').main


def check_command(name: str, argv: Sequence[str], root: Path) -> None:
    """Parses the arguments of `python -m fv_jax.NAME`, its config and the overrides of it.

    Raises:
      ValueError: what the command answers to them.
    """
    if name not in COMMANDS:
        raise ValueError(f'fv_jax.{name}: is not a command')
    parse = Parser.parse_with_overrides

    def stop(parser: Parser, argv: Sequence[str], groups: Sequence[str]) -> NoReturn:
        raise _ParsedError(parser, *parse(parser, argv, groups))

    output = io.StringIO()
    with (
        mock.patch.object(Parser, 'parse_with_overrides', stop),
        mock.patch.object(files, 'check_reachable'),
        mock.patch.object(hub, 'weights_path', Path),
        contextlib.redirect_stderr(output),
    ):
        try:
            code = _main(name)(argv)
        except _ParsedError as found:
            _check_overrides(name, found, root)
        except SystemExit:  # --help
            return
        else:
            raise ValueError(f'exit code {code}: {output.getvalue().strip()}')


def _check_overrides(name: str, found: _ParsedError, root: Path) -> None:
    config, overrides = getattr(found.arguments, 'config', None), dict(found.overrides)
    given = overrides.pop('config', [])
    try:
        if config:
            with contextlib.chdir(root):
                read_config(CONFIGS[name], config, given)
        elif given:
            raise UsageError(f'--config.{given[0][0]}: the command is given no --config')
        for group, fields in overrides.items():
            for path, text in fields:
                override(SETTINGS[group], config_lib.to_dict(SETTINGS[group]()), path, text, f'--{group}')
    except (config_lib.ConfigError, UsageError) as error:
        raise ValueError(str(error)) from None


@functools.cache
def flags(name: str) -> frozenset[str]:
    """The flags of a command."""
    found: set[str] = set()

    def collect(parser: Parser, argv: Sequence[str], groups: Sequence[str]) -> NoReturn:
        found.update(option for action in parser._actions for option in action.option_strings)
        raise _ParsedError(parser, None, {})

    with mock.patch.object(Parser, 'parse_with_overrides', collect):
        for argv in [[sub] for sub in sample._COMMANDS] if name == 'sample' else [[]]:
            with contextlib.suppress(_ParsedError):
                _main(name)(argv)
    return frozenset(found)


def config_fields() -> set[str]:
    """The dotted paths of all fields of the configurations, sections included, without `config.`."""
    configs = [
        (TrainConfig, 'stage1'),
        (TrainConfig, 'stage2'),
        (TrainConfig, 'stage2:tiny'),
        (TrainConfig, 'vae'),
        (ClipsConfig, 'prepare'),
        (Degradation, 'degradations'),
    ]
    return {path for cls, file in configs for path in _paths(config_lib.to_dict(read_config(cls, file, ())))}


def _paths(values: dict, prefix: str = '') -> Iterator[str]:
    for key, value in values.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _paths(value, f'{prefix}{key}.')


def check_config_file(argument: str) -> None:
    """Raises ValueError unless `argument`, 'stage2:tiny', is a shipped config with that variant."""
    with contextlib.chdir('/'):
        load_config_file(argument)


def shell_commands(code: str) -> list[list[str]]:
    """The words of each command of a shell block. Raises ValueError for what a shell cannot parse."""
    checked = subprocess.run(['bash', '-n'], input=code, capture_output=True, text=True)
    if checked.returncode or checked.stderr:
        raise ValueError(f'bash -n: {checked.stderr.strip()}')
    return [words for line in code.replace('\\\n', ' ').splitlines() if (words := shlex.split(line, comments=True))]


def check_shell(code: str, root: Path) -> None:
    """Parses a shell block: its syntax, the commands of fv_jax in it, the scripts, modules and extras that it names.

    Raises:
      ValueError: the first mistake.
    """
    extras = re.findall(r"^    '(\w+)': \[", (root / 'setup.py').read_text(encoding='utf-8'), re.MULTILINE)
    for words in shell_commands(code):
        for at, word in enumerate(words):
            module = words[at + 1] if word == '-m' and at + 1 < len(words) else ''
            if module.startswith('fv_jax.'):
                check_command(module.removeprefix('fv_jax.'), words[at + 2 :], root)
            elif module.startswith('tests') and not (root / f'{module.replace(".", "/")}.py').is_file():
                raise ValueError(f'{module}: does not exist')
            elif re.match(r'(launch|tests|configs|fv_jax)/', word):
                _check_file(word, words[at + 1 :], root)
            elif extra := re.fullmatch(r'\.\[([\w,]+)\]', word):
                for name in extra[1].split(','):
                    if name not in extras:
                        raise ValueError(f'{word}: setup.py has no extra {name}')


def _check_file(word: str, following: Sequence[str], root: Path) -> None:
    """Raises ValueError for a file that does not exist, or a flag that the help of a launch script does not have."""
    path = root / word.partition(':')[0]
    if not path.exists():
        raise ValueError(f'{word}: does not exist')
    for flag in itertools.takewhile(lambda flag: path.suffix == '.sh' and flag != '--', following):
        name = flag.partition('=')[0]
        if name.startswith('--') and not re.search(rf'{name}\b', path.read_text(encoding='utf-8')):
            raise ValueError(f'{word} has no {name}')
