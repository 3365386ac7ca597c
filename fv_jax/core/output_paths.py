"""Checks of the `--output` of a command before any work begins."""

import tempfile
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


def check_output_folder(output: Path, overwrite: bool, flag: str = '--output=') -> None:
    """Raises UsageError unless a folder may be written to `output`.

    Args:
      output: the folder; the folder that it is in must exist.
      overwrite: whether the folder may hold files already.
      flag: precedes the path in messages.
    """
    if output.exists() and not output.is_dir():
        raise UsageError(f'{flag}{output}: is a file; name a folder')
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise UsageError(f'{flag}{output}: is not empty; choose another folder or pass --overwrite')
    folder = output if output.is_dir() else output.absolute().parent
    require(folder.is_dir(), f'{flag}{output}: folder {output.parent} does not exist', UsageError)
    _check_writable(folder, f'{flag}{output}')


def _check_writable(folder: Path, what: str) -> None:
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UsageError(f'{what}: cannot be written ({error.strerror})') from None
