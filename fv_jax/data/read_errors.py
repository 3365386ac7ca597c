"""What readers of odd files raise, as one kind of error."""

import contextlib
from collections.abc import Iterator

import av

from fv_jax.core.checks import one_line
from fv_jax.core.paths import StoragePath, is_url


@contextlib.contextmanager
def read_errors(path: StoragePath | str) -> Iterator[None]:
    """A context in which every error becomes a ValueError with one line that starts with the name of the file.

    For code that does nothing but read one file: PyAV, Pillow and NumPy raise errors of many types for odd files, which
    must not end a job over many. Errors of object storage stay what they are, unless they are about the file: what
    comes after the requests were repeated in vain would be raised for the next file too.
    """
    try:
        yield
    except Exception as error:
        is_named = isinstance(error, ValueError) and str(error).startswith(f'{path}: ')
        is_of_file = isinstance(error, (av.FFmpegError, FileNotFoundError, PermissionError))
        if is_named or (isinstance(error, OSError) and is_url(str(path)) and not is_of_file):
            raise
        reason = one_line(getattr(error, 'strerror', None) or error).removeprefix(f'{path}: ')
        if not isinstance(error, (OSError, ValueError, av.FFmpegError)) and reason != type(error).__name__:
            reason = f'{type(error).__name__}: {reason}'
        raise ValueError(f'{path}: {reason}') from error
