"""Checks of the `--output` of a command before any work begins."""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from fv_jax.core.checks import require
from fv_jax.core.command_line import UsageError


def check_output_file(output: Path, suffix: str, overwrite: bool, flag: str = '--output=') -> None:
    """Raises UsageError unless a file with this suffix may be written to `output`.

    Args:
      output: the file; its folder must exist.
      suffix: in lower case, with the dot.
      overwrite: whether the file may exist already.
      flag: precedes the path in messages.
    """
    require(output.suffix.lower() == suffix, f'{flag}{output}: must end in {suffix}', UsageError)
    require(output.absolute().parent.is_dir(), f'{flag}{output}: folder {output.parent} does not exist', UsageError)
    require(not output.is_dir(), f'{flag}{output}: is a folder', UsageError)
    if output.exists() and not overwrite:
        raise UsageError(f'{flag}{output}: already exists; choose another name or pass --overwrite')
    _check_writable(output.absolute().parent, f'{flag}{output}')


def check_output_folder(
    output: Path, overwrite: bool, flag: str = '--output=', continues: Callable[[Path], bool] = lambda path: False
) -> None:
    """Raises UsageError unless a folder may be written to `output`.

    Args:
      output: the folder; the folder that it is in must exist.
      overwrite: whether the folder may hold files already.
      flag: precedes the path in messages.
      continues: whether a path in the folder may exist because the command continues with it.
    """
    require(not output.exists() or output.is_dir(), f'{flag}{output}: is a file; name a folder', UsageError)
    others = sorted(path.name for path in output.iterdir() if not continues(path)) if output.is_dir() else []
    if others and not overwrite:
        raise UsageError(f'{flag}{output}: is not empty ({others[0]}); choose another folder or pass --overwrite')
    folder = output if output.is_dir() else output.absolute().parent
    require(folder.is_dir(), f'{flag}{output}: folder {output.parent} does not exist', UsageError)
    _check_writable(folder, f'{flag}{output}')


def check_output(output: Path, source: Path, overwrite: bool, what: str) -> None:
    """Raises UsageError unless a file or a folder that is made of `source` may be written to `output`.

    Args:
      output: its folder must exist.
      source: what is read; it may not be replaced.
      overwrite: whether `output` may exist already.
      what: names `source` in messages.
    """
    folder = output.absolute().parent
    require(folder.is_dir(), f'--output={output}: folder {folder} does not exist', UsageError)
    require(output.resolve() != source.resolve(), f'--output={output}: is the {what}', UsageError)
    free = overwrite or not output.exists()
    require(free, f'--output={output}: already exists; choose another name or pass --overwrite', UsageError)


def check_checkpoint_folder(folder: Path, flag: str = '--output=') -> None:
    """Raises UsageError if no checkpoint can be saved in a folder because of a name in its path.

    Orbax lists its files by `glob` with the whole path as pattern, and takes gs:/ for the scheme of a bucket.
    Tensorstore takes \\ for /.

    Args:
      folder: need not exist.
      flag: precedes the path in messages.
    """
    path = folder.absolute().as_posix()
    if found := re.search(r'[*?\[\\]|gs:/', f'{path}/'):
        raise UsageError(
            f'{flag}{folder}: no checkpoint can be saved in {path} because of {found.group()!r}; choose a path without '
            '*, ?, [, \\ and folders whose names end in gs:'
        )


def _check_writable(folder: Path, what: str) -> None:
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UsageError(f'{what}: cannot be written ({error.strerror})') from None
