"""Errors of checkpoints, and those of Orbax and of storage that they are made of."""

import contextlib
from collections.abc import Callable, Iterator

from fv_jax.core.checks import one_line

SAVE_ERRORS = (OSError, ValueError, RuntimeError)  # raised by storage, Orbax and JAX
READ_ERRORS = (*SAVE_ERRORS, KeyError)


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read. The message is one line: where, why, what to do."""


class DamagedError(CheckpointError):
    """A checkpoint that was completed once, and cannot be read now."""


def summarize_error(error: BaseException) -> str:
    """Returns an error's message as one line of at most 300 characters."""
    return one_line(error, 300)


@contextlib.contextmanager
def convert_errors(convert: Callable[[str], CheckpointError]) -> Iterator[None]:
    """A context in which errors of Orbax and of storage become the error that `convert` makes of their reason."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        is_bare = type(error) is Exception  # Orbax's, for an array that cannot be read; its cause is the reason
        if not is_bare and not isinstance(error, READ_ERRORS):
            raise
        raise convert(summarize_error((is_bare and error.__cause__) or error)) from error
