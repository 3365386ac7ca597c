"""Stall watchdog: ends a run that makes no progress, because of its data source, device, a peer process or a disk."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

from fv_jax.core.exit_codes import STALLED
from fv_jax.training.monitoring.goodput import Cause, Goodput

MEANING: dict[Cause, str] = {
    'data': 'waiting for data',
    'step': 'waiting for a step (the device or a peer process does not respond)',
    'checkpoint': 'saving or restoring a checkpoint',
    'compile': 'compiling',
    'evaluation': 'evaluating',
    'start': 'starting',
}

# How many times the time-out a cause may take. XLA reports no progress while it compiles.
TIMEOUT_FACTOR: dict[Cause, int] = {'compile': 10}


class Watchdog:
    """A context within which a thread checks that the run makes progress.

    After `seconds` without progress, times the `TIMEOUT_FACTOR` of the current cause, it prints the stacks of all
    threads and ends the process with the exit code STALLED. An asynchronous save has the same time-out.
    """

    def __init__(
        self,
        goodput: Goodput,
        seconds: float,
        end: Callable[[int], None] = os._exit,
        stream: TextIO | None = None,
        saving_since: Callable[[], float | None] = lambda: None,
    ):
        """Prepares the thread; entering the context starts it.

        Args:
          goodput: knows the current cause and when the last progress was made.
          seconds: the time-out; 0 disables the watchdog.
          end: ends the process. `sys.exit` would only end the thread.
          stream: where the stacks go, an open file with a descriptor; None is the standard error.
          saving_since: returns when the save in progress began, by the monotonic clock, or None.
        """
        self._goodput, self._seconds, self._end, self._saving_since = goodput, seconds, end, saving_since
        self._stream = sys.__stderr__ if stream is None else stream
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name='watchdog', daemon=True)

    def __enter__(self) -> 'Watchdog':
        self._goodput.heartbeat()
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._over.set()
        if self._seconds:
            self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(min(self._seconds / 10, 1.0)):
            if what := self.overdue():
                self._stop(what)
                return

    def overdue(self) -> str | None:
        """Returns what has made no progress for longer than its time-out, in words, or None."""
        saving = self._saving_since()
        # Checked before the cause: the next save waits for this one, and the message would name the wrong one.
        if saving is not None and time.monotonic() - saving > self._seconds:
            return f'an asynchronous save has not ended for {self._seconds:.0f} s'
        cause, seconds = self._goodput.idle_time()
        limit = self._seconds * TIMEOUT_FACTOR.get(cause, 1)
        if seconds > limit:
            return f'no progress for {limit:.0f} s while {MEANING[cause]}'
        return None

    def _stop(self, what: str) -> None:
        message = (
            f'STALLED: {what} (config.loop.stall_timeout_minutes). Checkpoints are kept; the same command resumes from '
            'the newest one. Stacks of all threads:'
        )
        # Writing blocks on a full pipe: the process must end all the same.
        timer = threading.Timer(10.0, self._end, [STALLED])
        timer.start()
        self._stream.write(message + '\n')
        self._stream.flush()
        faulthandler.dump_traceback(file=self._stream, all_threads=True)
        timer.cancel()
        self._end(STALLED)
