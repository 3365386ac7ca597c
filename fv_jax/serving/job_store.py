"""Jobs in an SQLite file: queue, history and measured times survive the process.

A job is queued, then in progress, then completed, failed or cancelled. Every change is one transaction. A job that was
in progress when the process ended is queued again, at its old place, unless its result exists: the folder of a result
appears by one rename, so that no job is executed to completion twice.
"""

import contextlib
import dataclasses
import itertools
import json
import secrets
import sqlite3
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from fv_jax.core.paths import StoragePath
from fv_jax.serving.requests import JobRequest
from fv_jax.serving.runner import Work

Status = Literal['queued', 'in_progress', 'completed', 'failed', 'cancelled']
ACTIVE: tuple[Status, ...] = ('queued', 'in_progress')
MAX_ATTEMPTS = 3  # after which a job is taken for the cause of the ends of the process
_TIMINGS = 9  # measured times of a shape, of which the median counts

_TABLES = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    user TEXT NOT NULL,
    status TEXT NOT NULL,
    request TEXT NOT NULL,
    source TEXT,
    work TEXT NOT NULL,
    next_work TEXT,
    remixed_from TEXT,
    created REAL NOT NULL,
    started REAL,
    finished REAL,
    attempts INTEGER NOT NULL DEFAULT 0,
    error TEXT,
    deleted INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS jobs_of_users ON jobs (user, number);
CREATE INDEX IF NOT EXISTS jobs_by_status ON jobs (status, number);
CREATE TABLE IF NOT EXISTS timings (
    setup TEXT NOT NULL, kind TEXT NOT NULL, shape TEXT NOT NULL, flops REAL NOT NULL, seconds REAL NOT NULL,
    first INTEGER NOT NULL, finished REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS timings_of_shapes ON timings (setup, shape, finished);
CREATE TABLE IF NOT EXISTS secrets (name TEXT PRIMARY KEY, value BLOB NOT NULL);
"""


@dataclasses.dataclass(frozen=True)
class Job:
    """A job. Times are seconds since the epoch.

    Attributes:
      number: its place in the queue; the queue is in the order of the numbers.
      id: its name for users.
      user: whose it is.
      status: its state.
      request: what it makes.
      work: what it computes.
      next_work: of the enhancement of a preview.
      remixed_from: the id of the job that it repeats, maybe with another prompt or seed.
      created, started, finished: when; None for what has not happened.
      attempts: how often it was started.
      error: why it failed.
      deleted: whether it is removed once it does not run any more.
    """

    number: int
    id: str
    user: str
    status: Status
    request: JobRequest
    work: Work
    next_work: Work | None
    remixed_from: str | None
    created: float
    started: float | None
    finished: float | None
    attempts: int
    error: str | None
    deleted: bool

    @property
    def is_active(self) -> bool:
        return self.status in ACTIVE


class JobStore:
    """The jobs of all users. Its methods may be called from any thread."""

    def __init__(self, path: StoragePath):
        """Opens the file, or creates it. path: local."""
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(str(path), check_same_thread=False, isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        # A job that was acknowledged is on the disk.
        self._connection.executescript('PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;' + _TABLES)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute('BEGIN IMMEDIATE')
            try:
                yield self._connection
            except BaseException:
                self._connection.execute('ROLLBACK')
                raise
            self._connection.execute('COMMIT')

    def _select(self, where: str, values: Sequence[Any] = ()) -> list[Job]:
        with self._lock:
            rows = self._connection.execute(f'SELECT * FROM jobs WHERE {where}', values).fetchall()
        return [_to_job(row) for row in rows]

    def read_secret(self, name: str) -> bytes:
        """Returns 32 random bytes that are the same at every call, in every process."""
        with self._transaction() as connection:
            connection.execute('INSERT OR IGNORE INTO secrets VALUES (?, ?)', (name, secrets.token_bytes(32)))
            return connection.execute('SELECT value FROM secrets WHERE name = ?', (name,)).fetchone()[0]

    # --- queue ---

    def add(
        self,
        user: str,
        request: JobRequest,
        work: Work,
        next_work: Work | None = None,
        remixed_from: str | None = None,
        limit: int | None = None,
    ) -> Job | None:
        """Adds a job at the end of the queue.

        Args:
          user, request, work, next_work, remixed_from: as in `Job`.
          limit: of the user's jobs that are queued or in progress.

        Returns:
          The job; None if the user has as many as `limit`.
        """
        identifier = f'video_{secrets.token_hex(12)}'
        columns = 'id, user, status, request, source, work, next_work, remixed_from, created'
        text = request.to_json()
        values = identifier, user, 'queued', text, request.source, _dump(work), _dump(next_work), remixed_from
        with self._transaction() as connection:
            count = 'SELECT COUNT(*) FROM jobs WHERE user = ? AND status IN (?, ?)'
            if limit is not None and connection.execute(count, (user, *ACTIVE)).fetchone()[0] >= limit:
                return None
            marks = ', '.join('?' * (len(values) + 1))
            connection.execute(f'INSERT INTO jobs ({columns}) VALUES ({marks})', (*values, time.time()))
        return self.find(user, identifier)

    def start_next(self) -> Job | None:
        """Takes the first job of the queue and marks it as in progress; None if the queue is empty."""
        with self._transaction() as connection:
            row = connection.execute("SELECT * FROM jobs WHERE status = 'queued' ORDER BY number LIMIT 1").fetchone()
            if row is None:
                return None
            change = "UPDATE jobs SET status = 'in_progress', started = ?, attempts = attempts + 1 WHERE number = ?"
            connection.execute(change, (time.time(), row['number']))
            row = connection.execute('SELECT * FROM jobs WHERE number = ?', (row['number'],)).fetchone()
        return _to_job(row)

    def finish(self, job: Job, status: Status, error: str | None = None) -> None:
        """Ends a job that is in progress."""
        change = "UPDATE jobs SET status = ?, error = ?, finished = ? WHERE number = ? AND status = 'in_progress'"
        with self._transaction() as connection:
            connection.execute(change, (status, error, time.time(), job.number))

    def requeue(self, job: Job) -> None:
        """Returns a job that is in progress to its place in the queue; the start does not count as an attempt."""
        change = "UPDATE jobs SET status = 'queued', started = NULL, attempts = attempts - 1 WHERE number = ?"
        with self._transaction() as connection:
            connection.execute(f"{change} AND status = 'in_progress'", (job.number,))

    def recover(self, is_complete: Callable[[Job], bool]) -> list[Job]:
        """Settles the jobs that were in progress when the process ended; returns them.

        Args:
          is_complete: whether the result of a job exists.
        """
        interrupted = self._select("status = 'in_progress'")
        for job in interrupted:
            if is_complete(job):
                self.finish(job, 'completed')
            elif job.attempts >= MAX_ATTEMPTS:
                self.finish(job, 'failed', f'the server ended {job.attempts} times while it ran this job')
            else:
                with self._transaction() as connection:
                    connection.execute("UPDATE jobs SET status = 'queued' WHERE number = ?", (job.number,))
        return interrupted

    def cancel_queued(self, job: Job) -> bool:
        """Cancels a job if it is queued; returns whether it was."""
        change = "UPDATE jobs SET status = 'cancelled', finished = ? WHERE number = ? AND status = 'queued'"
        with self._transaction() as connection:
            return connection.execute(change, (time.time(), job.number)).rowcount == 1

    # --- jobs of users ---

    def find(self, user: str, identifier: str) -> Job | None:
        """Returns the job of a user with this id; None if the user has none."""
        return next(iter(self._select('id = ? AND user = ? AND deleted = 0', (identifier, user))), None)

    def list_jobs(self, user: str, limit: int, after: str | None = None, *, newest_first: bool = True) -> list[Job]:
        """Returns jobs of a user in the order in which they were created.

        Args:
          user: the user.
          limit: at most so many.
          after: the id of the job before the first one, in this order.
          newest_first: the order.
        """
        sign, order = ('<', 'DESC') if newest_first else ('>', 'ASC')
        values: list[Any] = [user]
        where = 'user = ? AND deleted = 0'
        if after is not None:
            where += f' AND number {sign} (SELECT number FROM jobs WHERE id = ? AND user = ?)'
            values += [after, user]
        return self._select(f'{where} ORDER BY number {order} LIMIT ?', (*values, limit))

    def list_active(self) -> list[Job]:
        """Returns the jobs of all users that are in progress or queued, in the order in which they run."""
        return self._select("status IN (?, ?) ORDER BY status = 'queued', number", ACTIVE)

    def list_using(self, source: str) -> list[Job]:
        """Returns the jobs whose source is this preview or upload."""
        return self._select('source = ? AND deleted = 0', (source,))

    def mark_deleted(self, job: Job) -> None:
        """Hides a job from its user, and cancels it if it is queued."""
        self.cancel_queued(job)
        with self._transaction() as connection:
            connection.execute('UPDATE jobs SET deleted = 1 WHERE number = ?', (job.number,))

    def list_deleted(self) -> list[Job]:
        """Returns the deleted jobs that do not run any more, whose files can be removed."""
        return self._select('deleted = 1 AND status NOT IN (?, ?)', ACTIVE)

    def remove(self, job: Job) -> None:
        """Removes a job from the file."""
        with self._transaction() as connection:
            connection.execute('DELETE FROM jobs WHERE number = ?', (job.number,))

    # --- measured times ---

    def add_timing(self, setup: str, work: Work, seconds: float, *, first: bool = False) -> None:
        """Records the seconds of a job without compilation.

        Args:
          setup: as in `Runner`.
          work: of the job.
          seconds: that it took.
          first: whether it was the first of its shape in this process, which also traces the programs.
        """
        with self._transaction() as connection:
            values = setup, work.kind, work.shape, work.flops, seconds, first, time.time()
            connection.execute('INSERT INTO timings VALUES (?, ?, ?, ?, ?, ?, ?)', values)

    def median_seconds(self, setup: str, shape: str) -> float | None:
        """Returns the median of the latest times of a shape, of first ones if there are no others; None for none."""
        query = 'SELECT seconds FROM timings WHERE setup = ? AND shape = ? AND first = ? ORDER BY finished DESC LIMIT ?'
        with self._lock:
            for first in (False, True):
                rows = self._connection.execute(query, (setup, shape, first, _TIMINGS)).fetchall()
                if rows:
                    return statistics.median(row['seconds'] for row in rows)
        return None

    def measured_rate(self, setup: str, kind: str) -> float | None:
        """Returns the FLOP/s over the latest jobs of a kind, or of all kinds if it has none; None if there are none."""
        where = 'setup = ? AND kind LIKE ? AND first = ? ORDER BY finished DESC LIMIT ?'
        query = f'SELECT SUM(flops) AS flops, SUM(seconds) AS seconds FROM (SELECT * FROM timings WHERE {where})'
        with self._lock:
            for pattern, first in itertools.product((kind, '%'), (False, True)):
                row = self._connection.execute(query, (setup, pattern, first, _TIMINGS)).fetchone()
                if row['seconds']:
                    return row['flops'] / row['seconds']
        return None


def _dump(work: Work | None) -> str | None:
    return None if work is None else json.dumps(dataclasses.asdict(work))


def _to_job(row: sqlite3.Row) -> Job:
    values = dict(row)
    del values['source']  # of the request
    work, next_work = (None if text is None else Work(**json.loads(text)) for text in (row['work'], row['next_work']))
    parsed = {'request': JobRequest.from_json(row['request']), 'work': work, 'next_work': next_work}
    return Job(**(values | parsed | {'deleted': bool(row['deleted'])}))
