"""Ends a run that does not move: a source that gives nothing, a peer that is gone, a disk that does not answer."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

from fv_jax.core.exit_codes import STUCK
from fv_jax.training.monitoring.goodput import Cause, Goodput

MEANING: dict[Cause, str] = {
    'data': 'waiting for data',
    'step': 'waiting for a step: a stuck device, or a peer that is gone',
    'checkpoint': 'saving or restoring a checkpoint',
    'compile': 'compiling',
    'evaluation': 'evaluating',
    'start': 'starting',
}

PATIENCE: dict[Cause, int] = {'compile': 10}  # times as long: it moves, and nothing of it can be seen


class Watchdog:
    """Within it, a thread looks whether the run still moves. After `seconds` under one cause, times its `PATIENCE`, it
    prints every thread's stack and ends the process; 0 never does. A save beside the steps may take as long.
    """

    def __init__(
        self,
        goodput: Goodput,
        seconds: float,
        end: Callable[[int], None] = os._exit,
        stream: TextIO | None = None,
        saving_since: Callable[[], float | None] = lambda: None,
    ):
        """stream: a real file, where it says so; None is the standard error. saving_since: when the save that is under
        way began, by the monotonic clock.
        """
        self._goodput, self._seconds, self._end, self._saving_since = goodput, seconds, end, saving_since
        self._stream = sys.__stderr__ if stream is None else stream
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name='watchdog', daemon=True)

    def __enter__(self) -> 'Watchdog':
        self._goodput.moved()
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
        """What has not moved for longer than it may."""
        saving = self._saving_since()
        # Asked first: the next save waits for it, and would be blamed.
        if saving is not None and time.monotonic() - saving > self._seconds:
            return f'a save beside the steps has not ended for {self._seconds:.0f} s'
        cause, seconds = self._goodput.unmoved()
        limit = self._seconds * PATIENCE.get(cause, 1)
        if seconds > limit:
            return f'nothing has moved for {limit:.0f} s while {MEANING[cause]}'
        return None

    def _stop(self, what: str) -> None:
        said = (
            f'STUCK: {what} (config.loop.stuck_minutes). What was saved stays; the same command goes on from there. '
            'All threads:'
        )
        # A full pipe or a closed terminal must not keep the process.
        late = threading.Timer(10.0, self._end, [STUCK])
        late.start()
        self._stream.write(said + '\n')
        self._stream.flush()
        faulthandler.dump_traceback(file=self._stream, all_threads=True)
        late.cancel()
        self._end(STUCK)
