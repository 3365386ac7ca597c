"""Config files: Python with a function `get_config(variant: str) -> ConfigDict`, chosen as FILE:VARIANT.

FILE is the path of a file, configs/stage2.py, or the bare name of one that comes with the package, stage2. A variant is
a name, then fields: `:tiny`, `:phase1,tiny=true`.

Within a config file the package `configs` is the folder of that name that the file is in (else the file's own folder)
and the shipped configs: `from configs.common import parse_variant` works wherever the file is.
"""

import contextlib
import importlib.util
import re
import sys
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from fv_jax.core.checks import error_context, require
from fv_jax.core.config import ConfigError, did_you_mean
from fv_jax.core.paths import expand_path, is_url

PACKAGE = 'configs'
_VARIANT = re.compile(r':[^:/\\.]*$')  # at the end of an argument whose file does not exist


def load_config_file(argument: str, flag: str = '--config') -> dict[str, Any]:
    """Executes a config file and returns its values as nested dicts.

    Args:
      argument: FILE:VARIANT, as the module describes.
      flag: the flag that gave it, for messages.

    Raises:
      ConfigError: the file or the variant does not exist, or the file fails or returns no ConfigDict.
    """
    with error_context(f'{flag}={argument}: ', error=ConfigError):
        path, variant = _split(argument, flag)
        return _run(path, variant).to_dict()


def shipped_folder() -> Path:
    """Returns the folder of the shipped configs: in the installed package, or beside it in a clone."""
    package = Path(__file__).parents[1]
    installed = package / PACKAGE
    return installed if installed.is_dir() else package.parent / PACKAGE


def _split(argument: str, flag: str) -> tuple[Path, str]:
    """Splits FILE:VARIANT at the last colon before which a file is named: both may hold colons. Raises ValueError."""
    head = argument
    require(not is_url(argument), f'{argument}: a config file must be local; copy it first')
    while head:
        if (path := _find(head)) is not None:
            return path, argument[len(head) + 1 :]
        head = head.rpartition(':')[0]
    name = _VARIANT.sub('', argument)
    path, shipped = Path(expand_path(name)), _shipped()
    if path.name == name and not path.suffix:
        raise ValueError(f'no shipped config has the name {name!r}; {did_you_mean(name, shipped)}')
    instead = f'; the shipped one is {flag}={path.stem}{argument[len(name) :]}' if path.stem in shipped else ''
    raise ValueError(f'file {path} does not exist{instead}')


def _find(name: str) -> Path | None:
    """Returns the config file of this path or bare name, if it exists. Raises ValueError for a URL."""
    path = Path(expand_path(name))
    return path if path.is_file() else _shipped().get(name)


def _shipped() -> dict[str, Path]:
    return {file.stem: file for file in shipped_folder().glob('*.py')}


def _run(path: Path, variant: str) -> ConfigDict:
    spec = importlib.util.spec_from_file_location(f'_config_{path.stem}', path)
    require(spec is not None and spec.loader is not None, f'{path} is not a Python file')
    module = importlib.util.module_from_spec(spec)
    try:
        with _configs_package(path.resolve()):
            spec.loader.exec_module(module)
            config = module.get_config(variant) if hasattr(module, 'get_config') else None
    except ConfigError:
        raise
    except Exception as error:  # the user's own code can raise anything
        raise ValueError(_failure(error, path)) from error
    require(isinstance(config, ConfigDict), f'{path} has no function get_config that returns a ConfigDict')
    return config


@contextlib.contextmanager
def _configs_package(path: Path) -> Iterator[None]:
    """Makes the package `configs` of a config file importable, in place of any other of that name."""
    folder = next((parent for parent in path.parents if parent.name == PACKAGE), path.parent)
    package = types.ModuleType(PACKAGE)
    package.__path__ = [str(folder), str(shipped_folder())]
    others = {name: module for name, module in sys.modules.items() if name.partition('.')[0] == PACKAGE}
    try:
        _unload_configs()
        sys.modules[PACKAGE] = package
        yield
    finally:
        _unload_configs()
        sys.modules.update(others)


def _unload_configs() -> None:
    for name in [name for name in sys.modules if name.partition('.')[0] == PACKAGE]:
        del sys.modules[name]


def _failure(error: Exception, program: Path) -> str:
    """Formats an exception that a config file raised, with its line."""
    places = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == program]
    at = f', line {places[-1]}' if places else ''
    return f'{program}{at} fails with {type(error).__name__}: {error}'
