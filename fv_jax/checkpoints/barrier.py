"""Cross-process barrier of the threads that write a checkpoint, one in each process; it can be aborted."""

import collections
import concurrent.futures
import contextlib
import threading
from collections.abc import Iterable

import jax
import orbax.checkpoint as ocp

POLL_S = 0.1
RELEASE_MS = 60_000  # more than processes need to come to a barrier one after another
# A barrier at which Orbax only synchronizes the value of `is_saving_in_progress`. It is skipped: a process whose write
# failed would wait there for the others, and could not report its failure before all had come.
SKIPPED_BARRIER = 'ThreadSaveMultiHostValueHolder'


class BarrierAbortedError(RuntimeError):
    """Raised in the threads that wait at a barrier when it is aborted: another process could not write."""


class Barrier:
    """Orbax's own barrier, over JAX's coordination service, with the addition that it can be aborted.

    A process that could not write never reaches the barrier at which the others wait before they commit. Orbax's own
    barrier waits there for the time-out of the save, which must be long enough for the slowest disk.
    """

    def __init__(self, name: str):
        """name: the same in all processes, and different for every barrier of a process."""
        self._name = name
        self._wait = ocp.multihost.get_barrier_sync_fn()
        self._aborted = threading.Event()
        self._generation = 0
        self._calls: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()
        self._waiting: dict[str, concurrent.futures.Future[None]] = {}  # of this generation, those that are over too

    def reset(self) -> None:
        """Prepares for the next save. All processes call it equally often, so that no two saves share a key."""
        self._generation += 1
        self._calls.clear()
        self._waiting.clear()
        self._aborted.clear()

    def abort(self) -> list[str]:
        """Makes every thread that waits now, or comes before the next `reset`, raise BarrierAbortedError.

        Returns the keys at which JAX still waits, for `release`.
        """
        with self._lock:
            self._aborted.set()
            return [key for key, reached in self._waiting.items() if not reached.done()]

    def release(self, keys: Iterable[str]) -> None:
        """Ends JAX's waiting after an abort. All processes call it, with the keys that `abort` returned in any of them.

        JAX's barrier cannot be interrupted, and a thread in which it waits when Python ends aborts the process. So each
        process comes to the keys at which others wait.
        """
        for key in keys:
            if key not in self._waiting:
                with contextlib.suppress(jax.errors.JaxRuntimeError):  # JAX's time-out: a process has ended meanwhile
                    self._wait(key=key, timeout_ms=RELEASE_MS)
        concurrent.futures.wait(self._waiting.values(), timeout=RELEASE_MS / 1000)

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        """Returns when all processes have called it with this key.

        Raises BarrierAbortedError, or JAX's own error after the time-out.
        """
        if jax.process_count() == 1 or SKIPPED_BARRIER in key:
            return
        reached: concurrent.futures.Future[None] = concurrent.futures.Future()
        with self._lock:
            self._raise_if_aborted()
            self._calls[key] += 1
            unique_key = f'{self._name}:{key}:{self._generation}.{self._calls[key]}'
            self._waiting[unique_key] = reached
        threading.Thread(
            target=self._wait_for_all, args=(reached, unique_key, timeout_ms), name='barrier', daemon=True
        ).start()
        while not reached.done():
            self._raise_if_aborted()
            concurrent.futures.wait([reached], timeout=POLL_S)
        reached.result()

    def _raise_if_aborted(self) -> None:
        if self._aborted.is_set():
            raise BarrierAbortedError('another process could not write its part')

    def _wait_for_all(self, reached: concurrent.futures.Future[None], key: str, timeout_ms: int) -> None:
        try:
            self._wait(key=key, timeout_ms=timeout_ms)
        except Exception as error:
            reached.set_exception(error)  # raised in the thread that waits for this one
        else:
            reached.set_result(None)
