"""The thread that runs jobs, one after the other, in the order of the queue. It owns the devices."""

import dataclasses
import logging
import threading
import time
from collections.abc import Callable

import jax

from fv_jax.core.command_line import format_error
from fv_jax.core.files import remove_folder
from fv_jax.core.paths import StoragePath
from fv_jax.serving.job_store import Job, JobStore
from fv_jax.serving.runner import Runner

log = logging.getLogger(__name__)

# What a job can fail of while the server continues. Anything else is a bug, which is logged with its traceback.
ERRORS = (ValueError, OSError, jax.errors.JaxRuntimeError)


class CancelledError(Exception):
    """Raised by a step of a job that was cancelled."""


class StoppedError(Exception):
    """Raised by a step of the job in progress when the server ends."""


@dataclasses.dataclass
class _Running:
    """The job in progress: steps done and in all, and whether it is to be cancelled."""

    job: Job
    done: int = 0
    total: int = 0
    cancelled: bool = False


class Worker:
    """Runs the jobs of a store.

    Cancelling takes effect at the next step of the sampler. When the server ends, the job in progress returns to the
    queue at the next step.
    """

    def __init__(
        self,
        store: JobStore,
        runner: Runner,
        find_source: Callable[[Job], StoragePath | None],
        find_result: Callable[[Job], StoragePath],
        on_end: Callable[[], None],
    ):
        """Makes the worker, which `start` starts.

        Args:
          store: the jobs.
          runner: makes their results.
          find_source: returns the source of a job.
          find_result: returns the folder of its result.
          on_end: called after every job, in the thread of the worker.
        """
        self._store, self._runner = store, runner
        self._find_source, self._find_result, self._on_end = find_source, find_result, on_end
        self._lock, self._wake, self._stopping = threading.Lock(), threading.Event(), threading.Event()
        self._running: _Running | None = None
        self._shapes: set[str] = set()  # of the jobs of this process
        self._thread = threading.Thread(target=self._run_jobs, name='worker', daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self, timeout: float | None = None) -> bool:
        """Ends the thread at the next step; returns whether it ended within `timeout` seconds."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def wake(self) -> None:
        """Lets the thread look for jobs in the queue."""
        self._wake.set()

    def cancel(self, job: Job) -> bool:
        """Cancels a job if it is in progress; returns whether it was."""
        with self._lock:
            found = self._running is not None and self._running.job.number == job.number
            if found:
                self._running.cancelled = True
        return found

    def progress(self, job: Job) -> tuple[int, int]:
        """Returns the steps of a job that are done and those of all; (0, 0) if it is not in progress."""
        with self._lock:
            running = self._running
            return (running.done, running.total) if running and running.job.number == job.number else (0, 0)

    def compiles(self, job: Job) -> bool:
        """Returns whether a job is in progress, and the first of its shape in this process."""
        with self._lock:
            running = self._running is not None and self._running.job.number == job.number
        return running and job.work.shape not in self._shapes

    def _run_jobs(self) -> None:
        try:
            self._runner.load()
        except ERRORS as error:
            # Every job will fail with this error: its user is to see it.
            log.warning(f'the networks cannot be loaded: {format_error(error)}')
        while not self._stopping.is_set():
            self._wake.clear()
            with self._lock:  # so that a job is either queued or can be cancelled here
                job = self._store.start_next()
                self._running = None if job is None else _Running(job)
            if job is None:
                self._wake.wait()
                continue
            self._run(job, self._running)
            with self._lock:
                self._running = None
            self._on_end()

    def _run(self, job: Job, running: _Running) -> None:
        def on_step(done: int, total: int) -> None:
            with self._lock:
                running.done, running.total = done, total
                cancelled = running.cancelled
            if cancelled:
                raise CancelledError
            if self._stopping.is_set():
                raise StoppedError

        began, store = time.monotonic(), self._store
        try:
            on_step(0, 0)
            source, folder = self._find_source(job), self._find_result(job)
            compiling = self._runner.run(job.request, source, folder, on_step)
        except CancelledError:
            store.finish(job, 'cancelled')
        except StoppedError:
            store.requeue(job)
        except ERRORS as error:
            log.warning(f'{job.id}: failed: {format_error(error)}')
            store.finish(job, 'failed', format_error(error))
        except Exception as error:
            log.exception(f'{job.id}: failed')
            store.finish(job, 'failed', f'internal error: {format_error(error)}')
        else:
            if running.cancelled:  # after the last step
                remove_folder(folder)
                store.finish(job, 'cancelled')
                return
            seconds = time.monotonic() - began
            first = job.work.shape not in self._shapes
            self._shapes.add(job.work.shape)
            store.add_timing(self._runner.setup, job.work, max(seconds - compiling, 1e-3), first=first)
            store.finish(job, 'completed')
            log.info(f'{job.id}: {job.request.kind} in {seconds:.1f} s (compile time {compiling:.1f} s)')
