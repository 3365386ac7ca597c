"""The HTTP interface: `/v1/videos` in the manner of OpenAI's video API.

    POST   /v1/keys                      a key of a new user; with a password where the server has one
    GET    /v1/models                    what can be made, with default settings
    POST   /v1/videos                    a preview of a prompt, or the enhancement of an uploaded clip or image
    GET    /v1/videos                    the user's jobs (limit, after, order)
    GET    /v1/videos/ID                 a job: status, progress, position, seconds left, cost
    POST   /v1/videos/ID/enhance         the enhancement of a preview
    POST   /v1/videos/ID/remix           the same again, maybe with another prompt or seed
    POST   /v1/videos/ID/cancel          ends a job at the next step of the sampler
    GET    /v1/videos/ID/content         the mp4 or png; ?variant=source what was enhanced, ?variant=metadata as JSON
    DELETE /v1/videos/ID                 removes a job and its files

Sizes are WIDTHxHEIGHT, as OpenAI writes them. Errors are {"error": {"message": ..., "type": ..., "param": ...}}.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

import pydantic
from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from fv_jax import __version__
from fv_jax.data import image_files
from fv_jax.data.video import containers
from fv_jax.serving.guard import HEALTH, KEYS, Guard, error_body
from fv_jax.serving.job_server import JobServer
from fv_jax.serving.job_view import MODELS, describe_cost, describe_job, format_size, parse_size, result_name
from fv_jax.serving.keys import Keys
from fv_jax.serving.requests import (
    ConflictError,
    Kind,
    NotFoundError,
    TooLargeError,
    TooManyError,
    UnsupportedTypeError,
)

STATUS = {
    ValueError: 400,
    NotFoundError: 404,
    ConflictError: 409,
    TooLargeError: 413,
    UnsupportedTypeError: 415,
    TooManyError: 429,
}
MAX_LISTED = 100
_MEDIA = {'.mp4': 'video/mp4', '.png': 'image/png'}
_FAILURE_SECONDS = 0.5  # between wrong passwords, of all users together


class _Body(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra='forbid')


class CreateBody(_Body):
    """The body of POST /v1/videos, as JSON or as a multipart form, which may have the file `input_reference`."""

    model: str = MODELS['preview']
    prompt: str | None = None
    seed: int = 0
    size: str | None = None
    frames: int | None = None
    num_steps: int | None = None


class EnhanceBody(_Body):
    """The body of POST /v1/videos/ID/enhance."""

    seed: int | None = None
    num_steps: int | None = None


class RemixBody(_Body):
    """The body of POST /v1/videos/ID/remix."""

    prompt: str | None = None
    seed: int | None = None


class KeyBody(_Body):
    """The body of POST /v1/keys."""

    password: str = ''


def _user(request: Request) -> str:
    return request.state.user


User = Annotated[str, Depends(_user)]


def create_app(
    server: JobServer, keys: Keys, *, allowed_hosts: list[str] | None = None, secure: bool = False
) -> FastAPI:
    """Returns the application, whose start and end start and stop the server.

    Args:
      server: the jobs.
      keys: of the users.
      allowed_hosts: values of the header `Host` that are answered; None for all.
      secure: whether cookies are sent over HTTPS alone.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        server.start()
        yield
        await run_in_threadpool(server.stop)

    app = FastAPI(title='fv_jax', version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, keys=keys, upload_bytes=server.limits.upload_bytes, secure=secure)
    if allowed_hosts is not None:  # another site could name this address as its own otherwise
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=allowed_hosts, www_redirect=False)
    _add_error_handlers(app)
    _add_new_jobs(app, server)
    _add_jobs(app, server)
    _add_keys(app, keys)

    @app.get(HEALTH)
    def health() -> dict[str, str]:
        return {'status': 'ok', 'version': __version__}

    @app.get('/v1/models')
    def models(user: User) -> dict[str, Any]:
        del user
        described = server.describe().items()
        return {'object': 'list', 'data': [_describe_model(kind, settings) for kind, settings in described]}

    return app


def _describe_model(kind: Kind, settings: Mapping[str, Any]) -> dict[str, Any]:
    shown = {'id': MODELS[kind], 'object': 'model', 'owned_by': 'fv_jax', 'kind': kind, **settings}
    if 'size' in shown:
        shown['size'] = format_size(shown['size'])
    if 'cost' in shown:
        shown['cost'] = describe_cost(shown['cost'])
    return shown


def _add_error_handlers(app: FastAPI) -> None:
    def answer(status: int) -> Callable[[Request, Exception], JSONResponse]:
        kind = {404: 'not_found_error', 429: 'rate_limit_error'}.get(status, 'invalid_request_error')
        return lambda request, error: JSONResponse(error_body(str(error), kind), status)

    for error, status in STATUS.items():
        app.add_exception_handler(error, answer(status))

    @app.exception_handler(RequestValidationError)
    @app.exception_handler(pydantic.ValidationError)
    def invalid(request: Request, error: RequestValidationError | pydantic.ValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = '.'.join(str(part) for part in first['loc'] if part not in ('body', 'query'))
        if first['type'] == 'extra_forbidden':
            fields = next(body.model_fields for body in _Body.__subclasses__() if body.__name__ == error.title)
            return JSONResponse(error_body(f'{field}: is not known; use {", ".join(fields)}', param=field), 400)
        given = f'={first["input"]!r}' if isinstance(first.get('input'), str | int | float) else ''
        return JSONResponse(error_body(f'{field}{given}: {first["msg"]}', param=field or None), 400)

    @app.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(error_body(f'{request.method} {request.url.path}: {error.detail}'), error.status_code)


def _add_new_jobs(app: FastAPI, server: JobServer) -> None:
    @app.post('/v1/videos')
    async def create(request: Request, user: User) -> dict[str, Any]:
        if request.headers.get('content-type', '').startswith('multipart/'):
            async with request.form(max_files=1, max_fields=20) as form:
                fields = dict(form)
                file = fields.pop('input_reference', None)
                body = CreateBody.model_validate(fields)
                return await run_in_threadpool(_create, server, user, body, file)
        body = CreateBody.model_validate(await _read_json(request))
        return await run_in_threadpool(_create, server, user, body, None)

    @app.post('/v1/videos/{identifier}/enhance')
    async def enhance(identifier: str, request: Request, user: User) -> dict[str, Any]:
        body = EnhanceBody.model_validate(await _read_json(request))
        job = await run_in_threadpool(server.create_enhancement, user, identifier, body.seed, body.num_steps)
        return await run_in_threadpool(_describe, server, job)

    @app.post('/v1/videos/{identifier}/remix')
    async def remix(identifier: str, request: Request, user: User) -> dict[str, Any]:
        body = RemixBody.model_validate(await _read_json(request))
        job = await run_in_threadpool(server.remix, user, identifier, body.prompt, body.seed)
        return await run_in_threadpool(_describe, server, job)


async def _read_json(request: Request) -> Any:
    """Returns the JSON of a body; {} for none. Raises ValueError."""
    data = await request.body()
    try:
        return json.loads(data or b'{}')
    except ValueError as error:
        raise ValueError(f'the body is no JSON ({error}); send JSON, or a form for an upload') from None


def _create(server: JobServer, user: str, body: CreateBody, file: UploadFile | str | None) -> dict[str, Any]:
    """Queues what a body asks for. Raises ValueError and the errors of the server."""
    size = None if body.size is None else parse_size(body.size)
    if body.model == MODELS['preview']:
        if file is not None:
            raise ValueError(f'input_reference: {body.model} takes no file; use model={MODELS["clip"]} to enhance one')
        if body.prompt is None:
            raise ValueError('prompt: is missing; describe what the video shows')
        job = server.create_preview(user, body.prompt, body.seed, size, body.frames, body.num_steps)
    elif body.model == MODELS['clip']:
        if not isinstance(file, UploadFile):
            fix = 'send the clip or image as a form field with a file, or POST /v1/videos/ID/enhance for a preview'
            raise ValueError(f'input_reference: is missing; {fix}')
        if body.prompt or body.frames is not None:
            raise ValueError(f'prompt, frames: {body.model} takes neither; it enhances a clip as it is')
        job = server.create_clip(user, file.filename or '', file.file, body.seed, size, body.num_steps)
    else:
        known = f'{MODELS["preview"]}, or {MODELS["clip"]} with a file; POST /v1/videos/ID/enhance enhances a preview'
        raise ValueError(f'model={body.model!r}: is not created here; use {known}')
    return _describe(server, job)


def _describe(server: JobServer, job: Any) -> dict[str, Any]:
    return describe_job(server.states(job)[0])


def _add_jobs(app: FastAPI, server: JobServer) -> None:
    @app.get('/v1/videos')
    def list_jobs(
        user: User,
        limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = 20,
        after: str | None = None,
        order: Literal['asc', 'desc'] = 'desc',
    ) -> dict[str, Any]:
        if after is not None:
            server.find(user, after)
        jobs = server.store.list_jobs(user, limit + 1, after, newest_first=order == 'desc')
        data = [describe_job(state) for state in server.states(*jobs[:limit])]
        ends = {'first_id': data[0]['id'], 'last_id': data[-1]['id']} if data else {'first_id': None, 'last_id': None}
        return {'object': 'list', 'data': data, **ends, 'has_more': len(jobs) > limit}

    @app.get('/v1/videos/{identifier}')
    def get(identifier: str, user: User) -> dict[str, Any]:
        return _describe(server, server.find(user, identifier))

    @app.post('/v1/videos/{identifier}/cancel')
    def cancel(identifier: str, user: User) -> dict[str, Any]:
        return _describe(server, server.cancel(user, identifier))

    @app.delete('/v1/videos/{identifier}')
    def delete(identifier: str, user: User) -> dict[str, Any]:
        server.delete(user, identifier)
        return {'id': identifier, 'object': 'video.deleted', 'deleted': True}

    @app.get('/v1/videos/{identifier}/content')
    def content(
        identifier: str,
        user: User,
        variant: Literal['video', 'source', 'metadata'] = 'video',
        download: bool = False,
    ) -> Response:
        if variant == 'source':
            return FileResponse(server.source(user, identifier))
        job, path = server.result(user, identifier)
        if variant == 'metadata':
            read = image_files.read_comment if job.request.is_image else containers.read_comment
            return Response(json.dumps(json.loads(read(path)), indent=2), media_type='application/json')
        name = result_name(job)
        disposition = 'attachment' if download else 'inline'
        media = _MEDIA[path.suffix]
        return FileResponse(path, media_type=media, filename=name, content_disposition_type=disposition)


def _add_keys(app: FastAPI, keys: Keys) -> None:
    attempts = asyncio.Lock()

    @app.post(KEYS)
    async def create_key(request: Request) -> JSONResponse:
        body = KeyBody.model_validate(await _read_json(request))
        if await check_password(keys, body.password, attempts):
            return JSONResponse({'object': 'key', 'key': keys.create()})
        message = 'the password is wrong; ask the person who runs the server for it'
        return JSONResponse(error_body(message, 'authentication_error'), 401)


async def check_password(keys: Keys, given: str, attempts: asyncio.Lock) -> bool:
    """Returns whether this is the password; wrong ones are answered one after the other, slowly."""
    async with attempts:
        known = keys.check_password(given)
        if not known:
            await asyncio.sleep(_FAILURE_SECONDS)
        return known
