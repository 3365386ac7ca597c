"""Makes the shards of a plan in this process, or in several of this machine.

The processes are spawned and read the plan from its folder. Each has a pipe, by which it is given the numbers of shards
and sends its log records and progress. They end when the process that has started them ends, also where that is killed.
"""

import collections
import contextlib
import dataclasses
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Protocol

from fv_jax.core.console import send_logs, show_record
from fv_jax.data.preparation.make_shard import Encoders
from fv_jax.data.preparation.plan import Plan
from fv_jax.data.preparation.units import Unit
from fv_jax.data.shards.shard_files import expanded_path

_REPORT_S = 0.2  # between two reports of a process


@dataclasses.dataclass
class Advance:
    """How far a process has come since its last report. source: the video that it reads."""

    source: str = ''
    bytes: float = 0.0
    frames: int = 0
    clips: int = 0


class Display(Protocol):
    """Shows progress."""

    def advance(self, by: Advance) -> None: ...


class UnitProgress:
    """Measures the progress of a shard in bytes of files, as the frames of a file are known when it is opened."""

    def __init__(self, display: Display):
        self._display, self._by, self._reported = display, Advance(), 0.0
        # Of the current unit: its bytes, those that were counted, and bytes per frame.
        self._size, self._counted, self._share = 0, 0.0, 0.0

    def start(self, unit: Unit) -> None:
        self._by.source = unit.source
        self._size, self._counted, self._share = unit.bytes, 0.0, 0.0
        self._report()

    def expect(self, frames: int) -> None:
        self._share = self._size / frames if frames else 0.0

    def frame(self) -> None:
        self._by.frames += 1
        self._count(min(self._share, self._size - self._counted))
        if time.monotonic() - self._reported > _REPORT_S:
            self._report()

    def clip(self) -> None:
        self._by.clips += 1

    def finish(self) -> None:
        self._count(self._size - self._counted)
        self._report()

    def _count(self, size: float) -> None:
        self._counted += size
        self._by.bytes += size

    def _report(self) -> None:
        self._reported = time.monotonic()
        self._display.advance(self._by)
        self._by = Advance(self._by.source)


def make_shards(plan: Plan, numbers: Sequence[int], workers: int, encoders: Encoders | None, display: Display) -> None:
    """Makes shards of a plan.

    Args:
      plan: the plan.
      numbers: of the shards.
      workers: how many processes; with 1, or one shard, all is done in this one.
      encoders: of embeddings and latents, which are in this process alone; None stores videos.
      display: shows progress.

    Raises:
      OSError: a shard cannot be written, object storage does not answer, or a process was killed.
    """
    if workers == 1 or len(numbers) <= 1 or encoders is not None:
        for number in numbers:
            plan.make(number, encoders, UnitProgress(display))
        return
    waiting = collections.deque(numbers)
    with _start_workers(str(plan.folder), min(workers, len(numbers))) as running:
        reading = dict.fromkeys(running, '')  # the video that each process reads
        while running:
            for pipe in wait(list(running)):
                try:
                    report = pipe.recv()
                except EOFError:
                    process = running.pop(pipe)
                    process.join()
                    raise OSError(_describe_end(process.exitcode, reading[pipe])) from None
                if isinstance(report, Advance):
                    reading[pipe] = report.source
                    display.advance(report)
                elif isinstance(report, logging.LogRecord):
                    show_record(report)
                elif isinstance(report, BaseException):
                    raise report
                elif waiting:
                    pipe.send(waiting.popleft())
                else:
                    pipe.send(None)
                    running.pop(pipe).join()


def _describe_end(code: int | None, source: str) -> str:
    return (
        f'a process ended with {code} when it read {source or "the plan"}: killed for lack of memory, or by '
        'a decoder that fails; use fewer --workers, or remove the file'
    )


@contextlib.contextmanager
def _start_workers(folder: str, count: int) -> Iterator[dict[Connection, BaseProcess]]:
    """A context with processes that wait for numbers of shards, by their pipes. Those that still run then are ended."""
    context, running = multiprocessing.get_context('spawn'), {}
    try:
        for _ in range(count):
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(folder, there), daemon=True)
            process.start()
            there.close()
            running[here] = process
        yield running
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()


@dataclasses.dataclass(frozen=True)
class _PipeDisplay:
    """Sends progress by a pipe."""

    pipe: Connection

    def advance(self, by: Advance) -> None:
        self.pipe.send(by)


def _work(folder: str, pipe: Connection) -> None:
    """Makes the shards whose numbers come by a pipe, until None comes; the main function of a process."""
    threading.Thread(target=_end_with_parent, name='parent', daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the first one ends them
    send_logs(pipe.send)
    try:
        plan = Plan(expanded_path(folder))
        pipe.send(None)
        while (number := pipe.recv()) is not None:
            plan.make(number, None, UnitProgress(_PipeDisplay(pipe)))
            pipe.send(None)
    except (OSError, ValueError, MemoryError) as error:
        pipe.send(error)


def _end_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
