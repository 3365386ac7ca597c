"""Jobs as JSON, with the fields of OpenAI's video objects and more."""

import dataclasses
import re
import typing
from typing import Any

from fv_jax.core.checks import require
from fv_jax.core.paths import as_path
from fv_jax.serving.estimates import Cost
from fv_jax.serving.job_server import JobState
from fv_jax.serving.job_store import Job
from fv_jax.serving.requests import Kind

MODELS: dict[Kind, str] = {kind: f'flashvideo-{kind}' for kind in typing.get_args(Kind)}
_MAX_NAME = 40  # characters of a prompt in the name of a file


def describe_job(state: JobState) -> dict[str, Any]:
    """Returns the JSON of a job. Times are whole seconds since the epoch, sizes WIDTHxHEIGHT."""
    job, request = state.job, state.job.request
    return {
        'id': job.id,
        'object': 'video',
        'model': MODELS[request.kind],
        'kind': request.kind,
        'status': job.status,
        'progress': _percent(state),
        'created_at': int(job.created),
        'started_at': None if job.started is None else int(job.started),
        'completed_at': int(job.finished) if job.status == 'completed' and job.finished else None,
        'prompt': request.prompt or None,
        'seed': request.seed,
        'size': format_size(request.size),
        'frames': request.frames,
        'fps': request.fps,
        'num_steps': request.num_steps,
        'seconds': f'{request.frames / request.fps:g}' if request.fps else None,
        'source_video_id': request.source if request.kind == 'enhance' else None,
        'source_name': request.source_name,
        'source_size': _optional_size(request.source_size),
        'shown_size': _optional_size(request.shown_size),
        'is_image': request.is_image,
        'remixed_from_video_id': job.remixed_from,
        'queue_position': state.position,
        'seconds_left': None if state.seconds_left is None else round(state.seconds_left, 1),
        'compiles': state.compiles,
        'cost': describe_cost(state.cost),
        'enhance_cost': describe_cost(state.next_cost),
        'error': None if job.error is None else {'code': 'failed', 'message': job.error},
    }


def describe_cost(cost: Cost | None) -> dict[str, Any] | None:
    """Returns the JSON of a cost; None where it is not known."""
    return None if cost is None else dataclasses.asdict(cost)


def _percent(state: JobState) -> int:
    """Returns the progress by steps; the last percent is the decoding of the result."""
    if state.job.status == 'completed':
        return 100
    return min(99, 100 * state.steps_done // state.num_steps) if state.num_steps else 0


def format_size(size: tuple[int, int]) -> str:
    """Returns WIDTHxHEIGHT of (height, width)."""
    return f'{size[1]}x{size[0]}'


def _optional_size(size: tuple[int, int] | None) -> str | None:
    return None if size is None else format_size(size)


def parse_size(text: str) -> tuple[int, int]:
    """Parses WIDTHxHEIGHT. Returns (height, width). Raises ValueError."""
    match = re.fullmatch(r'(\d{1,5})x(\d{1,5})', text)
    require(match is not None, f'size={text!r}: give WIDTHxHEIGHT in pixels, for example 480x256')
    return int(match[2]), int(match[1])


def result_name(job: Job) -> str:
    """Returns the file name of a downloaded result: the prompt or the name of the upload, the kind and the seed."""
    request = job.request
    words = request.prompt or as_path(request.source_name or 'clip').stem
    name = '_'.join(re.findall(r'[\w-]+', words))[:_MAX_NAME] or 'video'
    kind = 'preview' if request.kind == 'preview' else 'enhanced'
    return f'{name}_{kind}_seed{request.seed}{as_path(request.result).suffix}'
