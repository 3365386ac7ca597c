"""Preemption notices: SIGTERM in this process, or the notice that JAX's coordination service has from another host."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

from fv_jax.core.exit_codes import PreemptedError


class Preemption:
    """A context that handles SIGTERM.

    The first signal raises PreemptedError, or within `defer_sigterm` only sets a flag, which `is_requested` returns. A
    second signal ends the process at once.
    """

    def __init__(self):
        self._signalled = self._notified = self._deferred = False
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
        # The second signal gets the kernel's default action: no handler runs while Python waits for a device.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if not self._deferred:
            raise PreemptedError

    @contextlib.contextmanager
    def defer_sigterm(self) -> Iterator[None]:
        """A context within which SIGTERM does not raise: the training loop calls `is_requested` at every step."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def is_requested(self, step: int) -> bool:
        """Returns whether this process should end. Every process calls it at every step, with the same number."""
        if jax.process_count() > 1 and not self._notified:
            # It raises where the service is off (`jax_enable_preemption_service`); signals work without it.
            with contextlib.suppress(RuntimeError):
                self._notified = multihost_utils.reached_preemption_sync_point(step)
        return self._signalled or self._notified
