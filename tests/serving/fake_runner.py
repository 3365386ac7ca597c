"""A runner that makes no videos: every job writes a small file, step by step, as a test allows it."""

import dataclasses
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fv_jax.core import files
from fv_jax.sampling.progress import OnStep
from fv_jax.serving.requests import JobRequest
from fv_jax.serving.runner import Work

NUM_STEPS = 4


class FakeRunner:
    """Jobs of NUM_STEPS steps. With `manual`, each step waits for `let_step`. log: gets a line at the start and at the
    end of each job.
    """

    def __init__(
        self, *, manual: bool = False, planned: float | None = None, log: Path | None = None, step_seconds: float = 0.0
    ):
        self.setup, self.num_devices = 'fake', 2
        self.manual, self.planned, self.log, self.step_seconds = manual, planned, log, step_seconds
        self.loaded = 0
        self.ran: list[JobRequest] = []
        self._steps = threading.Semaphore(0)

    def let_step(self, count: int = 1) -> None:
        self._steps.release(count)

    def load(self) -> None:
        self.loaded += 1

    def describe(self) -> Mapping[str, Mapping[str, Any]]:
        return {kind: {'size': (64, 96), 'num_steps': NUM_STEPS} for kind in ('preview', 'enhance', 'clip')}

    def complete(self, request: JobRequest, source: JobRequest | Path | None) -> JobRequest:
        if request.size is not None and request.size[0] % 16:
            raise ValueError(f'size: height={request.size[0]}: must be a multiple of 16; use 64')
        size = request.size or (64, 96)
        if request.kind == 'enhance':
            size = 4 * source.size[0], 4 * source.size[1]
        steps = request.num_steps or NUM_STEPS
        return dataclasses.replace(request, size=size, frames=request.frames or 17, fps=8.0, num_steps=steps)

    def work(self, request: JobRequest) -> Work:
        flops = float(request.size[0] * request.size[1] * request.num_steps)
        return Work(request.kind, f'{request.kind} {request.size} {request.num_steps}', flops, self.planned)

    def run(self, request: JobRequest, source: Path | None, folder: Path, on_step: OnStep) -> float:
        self.ran.append(request)
        self._note(f'start {request.seed}')
        if 'fails' in request.prompt:
            raise ValueError('the video has values that are not finite')
        if source is not None:
            assert source.exists(), source
        for i in range(request.num_steps):
            if self.manual:
                assert self._steps.acquire(timeout=20)
            time.sleep(self.step_seconds)
            on_step(i + 1, request.num_steps)
        with files.atomic_write(folder) as partial:
            partial.mkdir()
            (partial / request.result).write_text(f'{request.kind} of {request.prompt!r}, seed {request.seed}')
        self._note(f'end {request.seed}')
        return 0.0

    def _note(self, line: str) -> None:
        if self.log is not None:
            with self.log.open('a') as file:
                file.write(f'{line}\n')
