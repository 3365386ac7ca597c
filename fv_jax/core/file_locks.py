"""Locks on files between the processes of a host, and between threads (`flock`); released when their process dies."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


def acquire_lock(path: Path, *, shared: bool = False, wait: bool = True) -> int | None:
    """Locks a file, which is made with its folder if it does not exist.

    The holder of an exclusive lock may remove the file: those that wait for it then lock its successor.

    Args:
      path: the file.
      shared: whether others may hold a shared lock at the same time.
      wait: for other holders, however long they take.

    Returns:
      The descriptor of the file, for `release_lock`; None if others hold it and `wait` is false.
    """
    operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, operation)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the file was removed meanwhile


def release_lock(descriptor: int) -> None:
    """Releases a lock, also where a forked process has inherited the descriptor."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


@contextlib.contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """A context that holds the exclusive lock on a file, and waits for it."""
    descriptor = acquire_lock(path)
    try:
        yield
    finally:
        release_lock(descriptor)
