"""What readers of odd files raise, as one kind of error."""

import contextlib
from collections.abc import Iterator

import av

from fv_jax.core.checks import one_line
from fv_jax.core.paths import StoragePath


@contextlib.contextmanager
def read_errors(path: StoragePath | str) -> Iterator[None]:
    """A context in which every error becomes a ValueError with one line that starts with the name of the file.

    For code that does nothing but read one file: PyAV, Pillow and NumPy raise errors of many types for odd files, which
    must not end a job over many.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(f'{path}: '):
            raise
        reason = one_line(getattr(error, 'strerror', None) or error)
        if not isinstance(error, (OSError, ValueError, av.FFmpegError)) and reason != type(error).__name__:
            reason = f'{type(error).__name__}: {reason}'
        raise ValueError(f'{path}: {reason}') from error
