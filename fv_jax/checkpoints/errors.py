"""Errors of checkpoints, and those of Orbax and of storage that they are made of."""

SAVE_ERRORS = (OSError, ValueError, RuntimeError)  # raised by storage, Orbax and JAX
READ_ERRORS = (*SAVE_ERRORS, KeyError)


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read. The message is one line: where, why, what to do."""


class DamagedError(CheckpointError):
    """A checkpoint that was completed once, and cannot be read now."""


def summarize_error(error: BaseException) -> str:
    """Returns an error's message as one line of at most 300 characters."""
    return ' '.join(str(error).split())[:300] or type(error).__name__
