"""Where the threads that write a checkpoint, one in each process, wait for each other."""

import collections
import concurrent.futures
import threading

import jax
import orbax.checkpoint as ocp

POLL_S = 0.1
# Where Orbax only agrees on what `is_saving_in_progress` says. A process that could not write comes there, too, and its
# failure would be known to nobody, itself among them, until the others had come.
NEEDLESS = 'ThreadSaveMultiHostValueHolder'


class GivenUpError(RuntimeError):
    """There is nothing to wait for: another process could not write."""


class Barrier:
    """Orbax's own, over JAX's coordination service, but for one thing: it can be given up.

    A process that could not write never comes to the barrier that the others wait at before they commit. Orbax's waits
    until the save's time is out, which has to be long enough for the slowest disk.
    """

    def __init__(self, name: str):
        """name: the same in all processes; no two barriers of a process may have it."""
        self._name = name
        self._wait = ocp.multihost.get_barrier_sync_fn()
        self._given_up = threading.Event()
        self._saves = 0
        self._times: collections.Counter[str] = collections.Counter()

    def renew(self) -> None:
        """For another save. All processes call it the same number of times: no two saves meet."""
        self._saves += 1
        self._times.clear()
        self._given_up.clear()

    def give_up(self) -> None:
        """Lets every thread go that waits or will wait, until `renew`."""
        self._given_up.set()

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        """Returns when all processes have come here. Raises GivenUpError, or JAX's own error when the time is out."""
        if jax.process_count() == 1 or NEEDLESS in key:
            return
        self._go_on()
        self._times[key] += 1
        place = f'{self._name}:{key}:{self._saves}.{self._times[key]}'
        met: concurrent.futures.Future[None] = concurrent.futures.Future()
        # It cannot be interrupted: where it is given up, it stays behind until the time is out.
        threading.Thread(target=self._meet, args=(met, place, timeout_ms), name='barrier', daemon=True).start()
        while not met.done():
            self._go_on()
            concurrent.futures.wait([met], timeout=POLL_S)
        met.result()

    def _go_on(self) -> None:
        if self._given_up.is_set():
            raise GivenUpError('another process could not write its part')

    def _meet(self, met: concurrent.futures.Future[None], place: str, timeout_ms: int) -> None:
        try:
            self._wait(key=place, timeout_ms=timeout_ms)
        except Exception as error:
            met.set_exception(error)  # raised by the thread that waits for it
        else:
            met.set_result(None)
