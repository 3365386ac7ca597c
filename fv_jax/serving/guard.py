"""ASGI middleware in front of every route: who asks, from which page, and with how large a body.

A request carries the key of its user in `Authorization: Bearer KEY` or in a cookie. A browser without one gets a cookie
with the first page, or is sent to the page that asks for the password.
"""

import http.cookies
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fv_jax.core.files import format_bytes
from fv_jax.serving.keys import Keys

COOKIE = 'fv_jax_key'
LOGIN, KEYS, HEALTH = '/login', '/v1/keys', '/health'
_OPEN = (LOGIN, KEYS, HEALTH)  # to everyone
_COOKIE_SECONDS = 365 * 24 * 3600
_SAFE = ('GET', 'HEAD', 'OPTIONS')
_SMALL_BODY = 2**20  # of requests that upload no file


class BodyTooLargeError(Exception):
    """Raised while a body is read that is larger than its limit."""


def error_body(message: str, kind: str = 'invalid_request_error', param: str | None = None) -> dict[str, dict]:
    """Returns the JSON of an error, in the form of OpenAI's."""
    return {'error': {'message': message, 'type': kind, 'param': param, 'code': None}}


class Guard:
    """The middleware. It writes the user of a request into `scope['state']`."""

    def __init__(self, app: ASGIApp, keys: Keys, upload_bytes: int, secure: bool = False):
        """Wraps an application.

        Args:
          app: the application.
          keys: of the users.
          upload_bytes: the limit of an uploaded file.
          secure: whether cookies are sent over HTTPS alone.
        """
        self._app, self._keys, self._upload_bytes, self._secure = app, keys, upload_bytes, secure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] == 'lifespan':
            await self._app(scope, receive, send)
            return
        if scope['type'] == 'websocket':  # of which there are none
            await send({'type': 'websocket.close', 'code': 1008})
            return
        headers, method = Headers(scope=scope), scope.get('method', 'GET')
        bearer = _bearer(headers)
        if bearer is None and method not in _SAFE and not _is_same_origin(headers):
            message = 'the request comes from another page; open the page of this server'
            await _refuse(403, message, scope, receive, send)
            return
        user = self._keys.find_user(bearer or _cookie(headers))
        if user is None and scope['path'] not in _OPEN:
            if method != 'GET' or scope['path'] != '/' or bearer is not None:
                fix = f'get one with POST {KEYS}, and send it as Authorization: Bearer KEY'
                found = 'no valid key' if bearer is None else 'the key is not one of this server'
                await _refuse(401, f'{found}; {fix}', scope, receive, send)
                return
            if self._keys.needs_password:
                await RedirectResponse(LOGIN, 303)(scope, receive, send)
                return
            key = self._keys.create()
            user, send = self._keys.find_user(key), self._with_cookie(send, key)
        scope.setdefault('state', {})['user'] = user
        await self._run_limited(scope, receive, send)

    async def _run_limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the application; refuses a body above its limit, before it is read where its length is stated."""
        headers, limit, size, started = Headers(scope=scope), _SMALL_BODY, 0, False
        if headers.get('content-type', '').startswith('multipart/'):
            limit += self._upload_bytes
        message = f'the request is larger than {format_bytes(limit)}, which is the limit; upload a smaller file'
        if headers.get('content-length', '0').isdecimal() and int(headers.get('content-length', '0')) > limit:
            await _refuse(413, message, scope, receive, send)
            return

        async def receive_limited() -> Message:
            nonlocal size
            received = await receive()
            size += len(received.get('body', b''))
            if size > limit:
                raise BodyTooLargeError
            return received

        async def send_noted(sent: Message) -> None:
            nonlocal started
            started = True
            if sent['type'] == 'http.response.start':
                MutableHeaders(scope=sent)['X-Content-Type-Options'] = 'nosniff'
            await send(sent)

        try:
            await self._app(scope, receive_limited, send_noted)
        except BodyTooLargeError:
            if started:
                raise
            await _refuse(413, message, scope, receive, send)

    def _with_cookie(self, send: Send, key: str) -> Send:
        async def send_with_cookie(message: Message) -> None:
            if message['type'] == 'http.response.start':
                MutableHeaders(scope=message).append('set-cookie', format_cookie(key, self._secure))
            await send(message)

        return send_with_cookie


def format_cookie(key: str, secure: bool) -> str:
    """Returns the value of the header that sets the cookie of a user, which no script of a page can read."""
    text = f'{COOKIE}={key}; Path=/; Max-Age={_COOKIE_SECONDS}; HttpOnly; SameSite=Strict'
    return f'{text}; Secure' if secure else text


def _bearer(headers: Headers) -> str | None:
    scheme, _, value = headers.get('authorization', '').partition(' ')
    return value.strip() if scheme.lower() == 'bearer' else None


def _cookie(headers: Headers) -> str | None:
    try:
        found = http.cookies.SimpleCookie(headers.get('cookie', '')).get(COOKIE)
    except http.cookies.CookieError:
        return None
    return None if found is None else found.value


def _is_same_origin(headers: Headers) -> bool:
    """Returns whether a request comes from a page of this server, or from a program, which states no origin."""
    origin = headers.get('origin')
    return origin is None or urlsplit(origin).netloc == headers.get('host', '')


async def _refuse(status: int, message: str, scope: Scope, receive: Receive, send: Send) -> None:
    kind = 'authentication_error' if status == 401 else 'invalid_request_error'
    await JSONResponse(error_body(message, kind), status)(scope, receive, send)
