"""Checks of the `--output` of a command before any work begins."""

import re
from collections.abc import Callable

from fv_jax.core import files
from fv_jax.core.checks import require
from fv_jax.core.command_line import UsageError, format_error
from fv_jax.core.paths import StoragePath, absolute, holds_checkpoints, is_url


def check_output_file(output: StoragePath, suffix: str, overwrite: bool, flag: str = '--output=') -> None:
    """Raises UsageError unless a file with this suffix may be written to `output`.

    Args:
      output: the file; its folder must exist.
      suffix: in lower case, with the dot.
      overwrite: whether the file may exist already.
      flag: precedes the path in messages.
    """
    require(output.suffix.lower() == suffix, f'{flag}{output}: must end in {suffix}', UsageError)
    folder = absolute(output).parent
    require(files.folder_exists(folder), f'{flag}{output}: folder {output.parent} does not exist', UsageError)
    require(not output.is_dir(), f'{flag}{output}: is a folder', UsageError)
    if output.exists() and not overwrite:
        raise UsageError(f'{flag}{output}: already exists; choose another name or pass --overwrite')
    _check_writable(folder, f'{flag}{output}')


def check_output_folder(
    output: StoragePath,
    overwrite: bool,
    flag: str = '--output=',
    continues: Callable[[StoragePath], bool] = lambda path: False,
) -> None:
    """Raises UsageError unless a folder may be written to `output`.

    Args:
      output: the folder; the folder that it is in must exist.
      overwrite: whether the folder may hold files already.
      flag: precedes the path in messages.
      continues: whether a path in the folder may exist because the command continues with it.
    """
    require(not output.exists() or output.is_dir(), f'{flag}{output}: is a file; name a folder', UsageError)
    others = sorted(path.name for path in files.list_folder(output) if not continues(path))
    if others and not overwrite:
        raise UsageError(f'{flag}{output}: is not empty ({others[0]}); choose another folder or pass --overwrite')
    folder = output if files.folder_exists(output) else absolute(output).parent
    require(files.folder_exists(folder), f'{flag}{output}: folder {output.parent} does not exist', UsageError)
    _check_writable(folder, f'{flag}{output}')


def check_output(output: StoragePath, source: StoragePath, overwrite: bool, what: str) -> None:
    """Raises UsageError unless a file or a folder that is made of `source` may be written to `output`.

    Args:
      output: its folder must exist.
      source: what is read; it may not be replaced.
      overwrite: whether `output` may exist already.
      what: names `source` in messages.
    """
    folder = absolute(output).parent
    require(files.folder_exists(folder), f'--output={output}: folder {folder} does not exist', UsageError)
    require(not files.is_same(output, source), f'--output={output}: is the {what}', UsageError)
    free = overwrite or not output.exists()
    require(free, f'--output={output}: already exists; choose another name or pass --overwrite', UsageError)
    _check_writable(output if not output.suffix and files.folder_exists(output) else folder, f'--output={output}')


def check_checkpoint_folder(folder: StoragePath, flag: str = '--output=') -> None:
    """Raises UsageError if no checkpoint can be saved in a folder, because of its storage or a name in its path.

    Orbax writes to local folders and gs:// alone. It lists its files by `glob` with the whole path as pattern, and
    takes gs:/ for the scheme of a bucket. Tensorstore takes \\ for /.

    Args:
      folder: need not exist.
      flag: precedes the path in messages.
    """
    where = 'Orbax writes to local folders and gs:// alone; name one of them (a file of `export` can be in s3://)'
    require(holds_checkpoints(folder), f'{flag}{folder}: no checkpoint can be saved there: {where}', UsageError)
    path = absolute(folder).as_posix()
    if not is_url(path) and (found := re.search(r'[*?\[\\]|gs:/', f'{path}/')):
        raise UsageError(
            f'{flag}{folder}: no checkpoint can be saved in {path} because of {found.group()!r}; choose a path without '
            '*, ?, [, \\ and folders whose names end in gs:'
        )


def _check_writable(folder: StoragePath, what: str) -> None:
    try:
        files.check_writable(folder)
    except OSError as error:
        raise UsageError(f'{what}: cannot be written ({error.strerror or format_error(error)})') from None
