"""One process at a time trains in a work directory: two would delete each other's checkpoints.

The first process of a run holds WORKDIR/run.lock, created exclusively, which is atomic on NFS and in object storage as
well. It names the host and the process, and is rewritten every few seconds as long as that process lives. A lock is
stale if its process ended without removing it (SIGKILL, a host that was taken away): on the same machine the process is
checked; elsewhere the lock is watched until it is rewritten, or has not been for WATCH_S, since clocks of hosts may
differ. Object storage lets one of several processes take a stale lock over, and never a process that was suspended
write over the lock of its successor.
"""

import contextlib
import dataclasses
import datetime
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from fv_jax.checkpoints.errors import CheckpointError
from fv_jax.core.command_line import UsageError
from fv_jax.core.files import create_exclusive, make_folder, parse_json, remove_empty, update
from fv_jax.core.paths import StoragePath
from fv_jax.parallel import distributed

log = logging.getLogger(__name__)

LOCK = 'run.lock'
HEARTBEAT_S = 10.0
# More heartbeats than one, and longer than NFS clients may keep attributes (60 s).
WATCH_S = 65.0
SETTLE_S = 1.0  # longer than it takes to read a lock and to replace it
READS = 5
_POLL_S = 1.0
_LENGTH = 600  # bytes of a lock, so that one is overwritten by another as a whole


@contextlib.contextmanager
def lock_run(workdir: StoragePath) -> Iterator[Callable[[], None]]:
    """A context in which no other process trains in the work directory. All processes of the run enter it.

    It creates the work directory. At the end it removes the lock, and the folders that it created and that are empty: a
    start that fails leaves nothing.

    Yields:
      A function that raises CheckpointError where another process has taken the lock over. All processes call it.

    Raises:
      UsageError: another process holds the lock, or the work directory cannot be written to.
    """
    lock, error = None, None
    if jax.process_index() == 0:
        try:
            lock = RunLock(workdir)
        except OSError as problem:
            error = UsageError(f'--workdir={workdir}: cannot be written to ({problem.strerror or problem})')
        except UsageError as problem:
            error = problem
    if distributed.any_process(error is not None):
        raise error or UsageError(f'--workdir={workdir}: cannot be written to (by the first process)')

    def check() -> None:
        lost = lock is not None and lock.is_lost()
        if distributed.any_process(lost):
            raise CheckpointError(f'{workdir}: another process has taken {LOCK} over; this one stops without saving')

    try:
        yield check
    finally:
        if lock is not None:
            lock.release()


@dataclasses.dataclass(frozen=True)
class _Holder:
    """The content of a lock. token: unique. beats: how often it was rewritten."""

    host: str
    pid: int
    machine: str
    process_start: str
    since: str
    token: str
    beats: int = 0

    @classmethod
    def current(cls) -> '_Holder':
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
        pid = os.getpid()
        return cls(socket.gethostname(), pid, _machine(), _process_start(pid), now, secrets.token_hex(8))

    def is_dead(self) -> bool | None:
        """Whether the process has ended; None where it runs on another machine."""
        if self.machine != _machine():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # of another user: it exists
        return _process_start(self.pid) != self.process_start

    def __str__(self) -> str:
        return f'process {self.pid} on {self.host}, since {self.since}'


_UNKNOWN = _Holder('an unknown host', 0, '', '', 'an unknown time', '')


class RunLock:
    """The lock of a work directory, held by this process until `release`."""

    def __init__(self, workdir: StoragePath):
        """Takes the lock. Raises UsageError when another process holds it, and OSError."""
        self._path, self._mine = workdir / LOCK, _Holder.current()
        self._made = make_folder(workdir)
        try:
            while not (create_exclusive(self._path, _encode(self._mine)) or self._take_over_stale(workdir)):
                pass
        except BaseException:
            remove_empty(self._made)
            raise
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name='run lock', daemon=True)
        self._thread.start()

    def is_lost(self) -> bool:
        """Returns whether another process holds the lock now, as far as it can be read."""
        try:
            holder = _read(self._path)
        except OSError as error:
            log.warning(f'{self._path}: cannot be read ({error})')
            return False
        return holder is not None and holder.token != self._mine.token

    def release(self) -> None:
        """Removes the lock if it is still this process's."""
        self._stop.set()
        self._thread.join()
        if not self.is_lost():
            try:
                self._path.unlink(missing_ok=True)
            except OSError as error:
                log.warning(f'{self._path}: cannot be removed ({error})')
        remove_empty(self._made)

    def _beat(self) -> None:
        """Rewrites the lock as long as it is this process's."""
        beats = 0
        while not self._stop.wait(HEARTBEAT_S):
            beats += 1
            beat = _encode(dataclasses.replace(self._mine, beats=beats))
            with contextlib.suppress(OSError):  # a beat that is missed is no reason to stop
                update(self._path, lambda lock, beat=beat: beat if _decode(lock).token == self._mine.token else None)

    def _take_over_stale(self, workdir: Path) -> bool:
        """Replaces the lock if its process has ended; returns whether this process holds it now.

        Raises UsageError if its process lives.
        """
        holder = _read(self._path)
        if holder is None:
            return False
        dead = holder.is_dead()
        if dead is None:
            log.info(f'{self._path}: held by {holder}; waiting {WATCH_S:.0f} s for a sign of life')
            holder, dead = _watch(self._path, holder)
        if not dead:
            raise UsageError(
                f'--workdir={workdir}: another run trains there ({holder}); wait for its end or stop it, or choose '
                'another --workdir'
            )
        with contextlib.suppress(FileNotFoundError):  # another process has taken it over, and ended
            if update(self._path, lambda lock: _encode(self._mine) if _decode(lock) == holder else None):
                # Others may have found the same lock stale at the same moment: of local ones the last one has it.
                time.sleep(SETTLE_S)
        if taken := not self.is_lost() and self._path.exists():
            log.info(f'{self._path}: taken over; its process ({holder}) has ended')
        return taken


def _watch(path: StoragePath, before: _Holder) -> tuple[_Holder, bool]:
    """Returns the holder of a lock, and whether the lock has not changed for WATCH_S."""
    deadline = time.monotonic() + WATCH_S
    while time.monotonic() < deadline:
        time.sleep(_POLL_S)
        holder = _read(path)
        if holder != before:
            return holder or before, holder is None
    return before, True


def _read(path: StoragePath) -> _Holder | None:
    """Returns the holder of a lock; None if there is no lock."""
    for _ in range(READS):
        try:
            holder = _decode(path.read_bytes())
        except FileNotFoundError:
            return None
        if holder != _UNKNOWN:
            break
        time.sleep(SETTLE_S / READS)  # it may have been created a moment ago
    return holder


def _encode(holder: _Holder) -> bytes:
    return json.dumps(dataclasses.asdict(holder)).encode().ljust(_LENGTH) + b'\n'


def _decode(lock: bytes) -> _Holder:
    """Returns the holder of a lock; a file that is no lock has a holder of no machine."""
    try:
        return _Holder(**parse_json(lock))
    except (ValueError, TypeError):
        return _UNKNOWN


def _machine() -> str:
    """Returns what identifies this machine, since its last start, and the processes of this container."""
    found = [socket.gethostname()]
    with contextlib.suppress(OSError):
        found.append(Path('/proc/sys/kernel/random/boot_id').read_text().strip())
        found.append(os.readlink('/proc/self/ns/pid'))
    return ' '.join(found)


def _process_start(pid: int) -> str:
    """Returns when a process started, in clock ticks since the machine's start: a process id is used again.

    '' for a process that has ended, also one that its parent has not waited for, and where there is no /proc.
    """
    try:
        state, *fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    except OSError:
        return ''
    return '' if state == 'Z' else fields[18]
