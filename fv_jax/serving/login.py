"""The page that asks for the password, and gives a browser its key."""

import asyncio
import html

from fastapi import FastAPI, Form
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from fv_jax.serving.guard import LOGIN, format_cookie
from fv_jax.serving.http_api import check_password
from fv_jax.serving.keys import Keys

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>fv_jax: log in</title>
<style>
  :root { color-scheme: light dark; }
  body { display: grid; min-height: 90vh; place-items: center; margin: 1rem; font: 1rem/1.5 system-ui, sans-serif; }
  form { display: grid; gap: 0.75rem; width: min(20rem, 100%); }
  h1 { margin: 0; font-size: 1.25rem; }
  input, button { padding: 0.6rem; border: 1px solid light-dark(#c5c9d0, #4a515b); border-radius: 6px; font: inherit; }
  button { border: 0; background: light-dark(#1f5fbf, #2f6fd0); color: #fff; cursor: pointer; }
  p { margin: 0; color: light-dark(#a8321f, #f08d78); }
</style>
<form method="post">
  <h1>fv_jax</h1>
  <label for="password">Password of this server</label>
  <input id="password" name="password" type="password" autocomplete="current-password" required autofocus>
  MESSAGE
  <button>Log in</button>
</form>
</html>
"""


def add_login(app: FastAPI, keys: Keys, *, secure: bool = False) -> None:
    """Adds the page to an application. keys, secure: as in `http_api.create_app`."""
    attempts = asyncio.Lock()

    @app.get(LOGIN)
    def show() -> HTMLResponse:
        return _page('')

    @app.post(LOGIN)
    async def log_in(password: str = Form('')) -> Response:
        if not await check_password(keys, password, attempts):
            return _page('The password is wrong.', 401)
        response = RedirectResponse('/', 303)
        response.headers['set-cookie'] = format_cookie(keys.create(), secure)
        return response


def _page(message: str, status: int = 200) -> HTMLResponse:
    shown = f'<p role="alert">{html.escape(message)}</p>' if message else ''
    return HTMLResponse(_PAGE.replace('MESSAGE', shown), status)
