"""Notice that a machine is about to be taken away: SIGTERM, or what JAX's coordination service knows of other hosts."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

from fv_jax.core.exit_codes import PreemptedError


class Preemption:
    """Within it, SIGTERM raises PreemptedError; within `after_the_step`, it is remembered until the step is done. A
    second one ends the process at once.
    """

    def __init__(self):
        self._signalled = self._reached = self._stepping = False
        self._before = signal.SIG_DFL

    def __enter__(self) -> 'Preemption':
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._notice)
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL if self._before is None else self._before)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True
        # The kernel's own action: it needs no Python that may be waiting for a device.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if not self._stepping:
            raise PreemptedError

    @contextlib.contextmanager
    def after_the_step(self) -> Iterator[None]:
        """Where somebody asks at every step."""
        self._stepping = True
        try:
            yield
        finally:
            self._stepping = False

    def noticed(self, step: int) -> bool:
        """Whether this process should end. To be called at every step, by every process, with the same number."""
        if jax.process_count() > 1 and not self._reached:
            # It raises where the service is off (`jax_enable_preemption_service`); signals still come.
            with contextlib.suppress(RuntimeError):
                self._reached = multihost_utils.reached_preemption_sync_point(step)
        return self._signalled or self._reached
