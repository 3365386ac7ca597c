"""The scheduling policy that tests run under.

FFmpeg's encoder of AV1, SVT-AV1, gives the thread that opens it a real-time policy where it may, as root. Whatever that
thread starts later inherits it: the threads of JAX and servers, which then keep all other processes from running.
"""

import contextlib
import os
from collections.abc import Iterator

LINUX = hasattr(os, 'sched_getscheduler')


def get_policy() -> int:
    """Returns the policy of this thread, such as `os.SCHED_OTHER`; elsewhere than on Linux 0."""
    return os.sched_getscheduler(0) if LINUX else 0


@contextlib.contextmanager
def restored_policy() -> Iterator[None]:
    """Restores the policy of this thread, and its priority, at the end of the block."""
    policy, priority = get_policy(), os.sched_getparam(0) if LINUX else None
    try:
        yield
    finally:
        if LINUX:
            os.sched_setscheduler(0, policy, priority)
