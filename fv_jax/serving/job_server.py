"""The job server: what users may do with jobs, whatever the protocol. `http_api` and `page` call it.

The folder of a server:

    jobs.sqlite3     queue, history, measured times, the secret of the keys
    lock             is held by the one process that works on the folder
    uploads/         files that users uploaded, one for each
    results/ID/      of every completed job
"""

import contextlib
import dataclasses
import logging
import os
import secrets
from collections.abc import Mapping
from typing import Any, BinaryIO

from fv_jax.core import files
from fv_jax.core.checks import require
from fv_jax.core.file_locks import acquire_lock, release_lock
from fv_jax.core.paths import StoragePath, as_path
from fv_jax.data.images import IMAGE_SUFFIXES
from fv_jax.data.video.containers import VIDEO_SUFFIXES
from fv_jax.sampling.prompts import check_prompt, check_seed
from fv_jax.serving.estimates import Cost, Estimator
from fv_jax.serving.job_store import Job, JobStore
from fv_jax.serving.requests import (
    ConflictError,
    JobRequest,
    Limits,
    NotFoundError,
    TooLargeError,
    TooManyError,
    UnsupportedTypeError,
)
from fv_jax.serving.runner import Runner, Work
from fv_jax.serving.worker import Worker

log = logging.getLogger(__name__)

_BLOCK_BYTES = 2**20
_STOP_SECONDS = 60  # that a step of the sampler, or compilation, may take until the server ends without it


@dataclasses.dataclass(frozen=True)
class JobState:
    """What a user sees of a job.

    Attributes:
      job: the job.
      steps_done, num_steps: of the sampler; zeros while it does not run.
      position: of a queued job, the number of jobs before it; None for others.
      seconds_left: until it is done; None for jobs that do not wait, and where it is not known.
      compiles: whether it is in progress, and the first of its shape since the server started: its programs are
        compiled, or at least loaded, which `seconds_left` does not count.
      cost: of the job.
      next_cost: of the enhancement of a completed preview.
    """

    job: Job
    steps_done: int
    num_steps: int
    position: int | None
    seconds_left: float | None
    compiles: bool
    cost: Cost | None
    next_cost: Cost | None


class JobServer:
    """Queues and runs the jobs of users."""

    def __init__(self, folder: StoragePath, runner: Runner, limits: Limits | None = None):
        """Opens the folder, and settles what an earlier process left in progress.

        Args:
          folder: local; created if missing, for this user of the system alone.
          runner: makes the videos.
          limits: None for the defaults.

        Raises:
          ValueError: the folder is not local, or another process works on it.
          OSError: it cannot be written.
        """
        require(not files.is_remote(folder), f'{folder}: the folder of jobs must be local')
        self.folder, self.runner, self.limits = folder, runner, limits or Limits()
        self._uploads, self._results = folder / 'uploads', folder / 'results'
        for made in (folder, self._uploads, self._results):
            files.make_folder(made)
        os.chmod(folder, 0o700)
        self._lock = acquire_lock(folder / 'lock', wait=False)
        require(self._lock is not None, f'{folder}: another server works on this folder; end it, or choose another')
        self.store = JobStore(folder / 'jobs.sqlite3')
        self._estimator = Estimator(self.store, runner.setup, runner.num_devices)
        self._worker = Worker(self.store, runner, self._find_source, self.result_folder, self._remove_deleted)
        interrupted = self.store.recover(lambda job: self.result_folder(job).is_dir())
        files.remove_partial(map(self.result_folder, interrupted))
        self._remove_deleted()
        if waiting := len(self.store.list_active()):
            log.info(f'{folder}: {waiting} job(s) wait, of which {len(interrupted)} were interrupted')

    def start(self) -> None:
        """Starts the worker."""
        self._worker.start()

    def stop(self) -> None:
        """Returns the job in progress to the queue at its next step, and closes the folder."""
        if not self._worker.stop(_STOP_SECONDS):
            log.warning(f'the job in progress did not reach a step within {_STOP_SECONDS} s; it will run again')
            return
        self.store.close()
        release_lock(self._lock)

    # --- new jobs ---

    def create_preview(
        self,
        user: str,
        prompt: str,
        seed: int = 0,
        size: tuple[int, int] | None = None,
        frames: int | None = None,
        num_steps: int | None = None,
    ) -> Job:
        """Queues a preview; the arguments are those of `JobRequest`. Raises ValueError, TooManyError."""
        return self._add(user, JobRequest('preview', self._check_prompt(prompt), seed, size, frames, None, num_steps))

    def create_enhancement(self, user: str, preview: str, seed: int | None = None, num_steps: int | None = None) -> Job:
        """Queues the enhancement of a completed preview.

        Args:
          user: the user.
          preview: the id of the preview.
          seed: of the noise; None for that of the preview.
          num_steps: of the sampler; None for the default.

        Raises:
          NotFoundError, ConflictError, TooManyError, ValueError: see the classes.
        """
        made = self._find_preview(user, preview)
        seed = made.seed if seed is None else seed
        request = JobRequest('enhance', made.prompt, seed, num_steps=num_steps, source=preview)
        return self._add(user, request, made)

    def create_clip(
        self,
        user: str,
        name: str,
        file: BinaryIO,
        seed: int = 0,
        size: tuple[int, int] | None = None,
        num_steps: int | None = None,
    ) -> Job:
        """Stores an upload and queues its enhancement.

        Args:
          user: the user.
          name: of the user's file; its suffix says what it is.
          file: its content, read to its end.
          seed, size, num_steps: as in `JobRequest`; without a size it is enlarged as far as the limits allow, at most
            by the factor of the settings.

        Raises:
          TooLargeError, UnsupportedTypeError, TooManyError, ValueError: see the classes; the upload is not kept.
        """
        name = as_path(name.replace('\\', '/') or 'upload').name
        suffix = as_path(name).suffix.lower()
        known = (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)
        fix = f'upload one of {", ".join((*VIDEO_SUFFIXES[:6], *IMAGE_SUFFIXES[:4]))}'
        require(suffix in known, f'{name}: is no video or image that can be read; {fix}', UnsupportedTypeError)
        path = self._uploads / f'{secrets.token_hex(12)}{suffix}'
        try:
            self._store_upload(path, name, file)
            request = JobRequest('clip', seed=seed, size=size, num_steps=num_steps, source=path.name, source_name=name)
            return self._add(user, request, path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def remix(self, user: str, identifier: str, prompt: str | None = None, seed: int | None = None) -> Job:
        """Queues a job again, maybe with another prompt or seed.

        Raises:
          NotFoundError, ConflictError, TooManyError, ValueError: see the classes.
        """
        job = self.find(user, identifier)
        changes: dict[str, Any] = {} if seed is None else {'seed': seed}
        if prompt is not None:
            only = f'prompt={prompt!r}: only a preview has a prompt of its own; remix the preview'
            require(job.request.kind == 'preview', only)
            changes['prompt'] = self._check_prompt(prompt)
        request, source = dataclasses.replace(job.request, **changes), None
        if request.kind == 'enhance':
            source = self._find_preview(user, request.source)
        elif request.kind == 'clip':
            source = self.source(user, identifier)
        return self._add(user, request, source, identifier)

    def _add(
        self,
        user: str,
        request: JobRequest,
        source: JobRequest | StoragePath | None = None,
        remixed_from: str | None = None,
    ) -> Job:
        check_seed(request.seed)
        most = self.limits.num_steps
        if request.num_steps is not None:
            require(1 <= request.num_steps <= most, f'num_steps={request.num_steps}: must be from 1 to {most}')
        request = self.runner.complete(request, source)
        work, next_work = self.runner.work(request), None
        if request.kind == 'preview' and 'enhance' in self.runner.describe():
            next_work = self.runner.work(self.runner.complete(JobRequest('enhance'), request))
        job = self.store.add(user, request, work, next_work, remixed_from, self.limits.waiting_jobs)
        limit = f'{self.limits.waiting_jobs} jobs wait, which is the limit; wait, or cancel some'
        require(job is not None, limit, TooManyError)
        self._worker.wake()
        return job

    def _find_preview(self, user: str, identifier: str) -> JobRequest:
        """Returns the request of a completed preview."""
        job = self.find(user, identifier)
        kind = f'{identifier}: is of kind {job.request.kind}; only a preview can be enhanced'
        require(job.request.kind == 'preview', kind)
        require(job.status == 'completed', f'{identifier}: is {job.status}; enhance it once completed', ConflictError)
        return job.request

    def _check_prompt(self, prompt: str) -> str:
        most = self.limits.prompt_characters
        prompt = check_prompt(prompt)
        require(len(prompt) <= most, f'prompt: has {len(prompt)} characters; use at most {most}')
        return prompt

    def _store_upload(self, path: StoragePath, name: str, file: BinaryIO) -> None:
        size, most = 0, self.limits.upload_bytes
        with path.open('wb') as stored:
            while block := file.read(_BLOCK_BYTES):
                size += len(block)
                limit = f'{name}: has more than {files.format_bytes(most)}, which is the limit; upload a smaller file'
                require(size <= most, limit, TooLargeError)
                stored.write(block)
        require(size, f'{name}: is empty', UnsupportedTypeError)

    # --- jobs of a user ---

    def find(self, user: str, identifier: str) -> Job:
        """Returns a job of a user. Raises NotFoundError."""
        job = self.store.find(user, identifier)
        require(job is not None, f'{identifier}: no such video; list yours with GET /v1/videos', NotFoundError)
        return job

    def states(self, *jobs: Job) -> list[JobState]:
        """Returns what users see of jobs now."""
        active = self.store.list_active()
        running = active[0] if active and active[0].status == 'in_progress' else None
        done, total = self._worker.progress(running) if running else (0, 0)
        left = self._estimator.seconds_left(active, done / total if total else 0.0)
        positions = {job.id: i for i, job in enumerate(active)}
        costs: dict[Work | None, Cost | None] = {None: None}
        for work in {each for job in jobs for each in (job.work, job.next_work) if each is not None}:
            costs[work] = self._estimator.cost(work)
        found = []
        for job in jobs:
            steps = (done, total) if running and running.id == job.id else (0, 0)
            position = positions.get(job.id) if job.status == 'queued' else None
            next_work = job.next_work if job.status == 'completed' else None
            waiting = position, left.get(job.id), self._worker.compiles(job)
            found.append(JobState(job, *steps, *waiting, costs[job.work], costs[next_work]))
        return found

    def cancel(self, user: str, identifier: str) -> Job:
        """Cancels a job, which stops at the next step of the sampler if it is in progress.

        Raises:
          NotFoundError, ConflictError: no such job; it is not queued or in progress.
        """
        job = self.find(user, identifier)
        cancelled = self.store.cancel_queued(job) or self._worker.cancel(job)
        job = self.find(user, identifier)
        done = f'{identifier}: is {job.status} already'
        require(cancelled or job.status == 'cancelled', done, ConflictError)
        return job

    def delete(self, user: str, identifier: str) -> None:
        """Removes a job and its files; cancels it if it is queued or in progress.

        Raises:
          NotFoundError, ConflictError: no such job; a job that is queued or in progress enhances it.
        """
        job = self.find(user, identifier)
        waiting = [each for each in self.store.list_using(identifier) if each.is_active]
        fix = 'cancel it first, or wait'
        require(not waiting, f'{identifier}: is enhanced by {waiting and waiting[0].id}; {fix}', ConflictError)
        self.store.mark_deleted(job)
        self._worker.cancel(job)
        self._remove_deleted()

    def result(self, user: str, identifier: str) -> tuple[Job, StoragePath]:
        """Returns a completed job and its file. Raises NotFoundError, ConflictError."""
        job = self.find(user, identifier)
        fix = f'poll until it is completed ({job.error})' if job.error else 'poll until it is completed'
        require(job.status == 'completed', f'{identifier}: is {job.status}; {fix}', ConflictError)
        return job, self.result_folder(job) / job.request.result

    def source(self, user: str, identifier: str) -> StoragePath:
        """Returns the file that a job enhances. Raises NotFoundError, ConflictError."""
        job = self.find(user, identifier)
        require(job.request.source, f'{identifier}: was made from text, and has no source', NotFoundError)
        if job.request.kind == 'enhance':
            return self.result(user, job.request.source)[1]
        path = self._uploads / job.request.source
        require(files.is_file(path), f'{identifier}: the upload was removed', NotFoundError)
        return path

    def result_folder(self, job: Job) -> StoragePath:
        """Returns the folder of a job's result, which exists once it is complete."""
        return self._results / job.id

    def describe(self) -> Mapping[str, Mapping[str, Any]]:
        """Returns the settings of each kind of job (`Runner.describe`), and what previews and their videos cost."""
        described = {kind: dict(settings) for kind, settings in self.runner.describe().items()}
        request: JobRequest | None = None
        for kind in ('preview', 'enhance'):
            if 'preview' in described and kind in described:
                request = self.runner.complete(JobRequest(kind), request)
                described[kind]['cost'] = self._estimator.cost(self.runner.work(request))
        return described

    def _find_source(self, job: Job) -> StoragePath | None:
        """Returns the folder of the preview, or the upload, that a job enhances."""
        request = job.request
        if request.kind == 'enhance':
            preview = self.store.find(job.user, request.source)
            require(preview is not None, f'{request.source}: the preview was deleted; make it again')
            return self.result_folder(preview)
        return self._uploads / request.source if request.kind == 'clip' else None

    def _remove_deleted(self) -> None:
        """Removes the files of deleted jobs that do not run, and uploads that no job needs any more."""
        for job in self.store.list_deleted():
            folder = self.result_folder(job)
            if folder.is_dir():
                files.remove_folder(folder)
            if job.request.kind == 'clip' and not self.store.list_using(job.request.source):
                with contextlib.suppress(FileNotFoundError):
                    (self._uploads / job.request.source).unlink()
            self.store.remove(job)
