"""A client of the job server, with aiohttp, which ComfyUI has."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

POLL_SECONDS = 0.5


class Client:
    """Creates jobs, waits for them, and downloads their results: a context.

    A job is cancelled on the server when waiting for it ends, by what `on_progress` raises or the end of the task.

    Attributes:
      key: of the user on the server; a new one if none is given.
    """

    def __init__(
        self, address: str, password: str | None, key: str | None, on_progress: Callable[[int], Awaitable[None]]
    ):
        """Makes the client; nothing is sent yet.

        Args:
          address: of the server, such as http://127.0.0.1:7860.
          password: of the server, if it has one.
          key: of a user, such as the one who made a preview; None for a new user.
          on_progress: called with the percent of a job that are done. What it raises cancels the job.
        """
        self._base, self._password, self.key = f'{address.rstrip("/")}/v1', password, key
        self._on_progress = on_progress

    async def __aenter__(self) -> 'Client':
        self._session = aiohttp.ClientSession()
        try:
            if self.key is None:
                body = {'password': self._password} if self._password else {}
                self.key = (await self._call('POST', '/keys', json=body))['key']
        except BaseException:
            await self._session.close()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._session.close()

    async def create_preview(self, prompt: str, seed: int, steps: int) -> str:
        """Makes a preview. Returns its id. Raises ValueError if the server refuses it, or it fails."""
        return await self._run('/videos', json={'prompt': prompt, 'seed': seed, **_steps(steps)})

    async def enhance(self, preview: str, seed: int, steps: int) -> str:
        """Enhances a preview, as `create_preview`."""
        return await self._run(f'/videos/{preview}/enhance', json={'seed': seed, **_steps(steps)})

    async def enhance_video(self, mp4: bytes, seed: int, steps: int) -> str:
        """Enhances a video, as `create_preview`."""
        form = aiohttp.FormData({'model': 'flashvideo-clip', 'seed': str(seed)})
        for name, value in _steps(steps).items():
            form.add_field(name, str(value))
        form.add_field('input_reference', mp4, filename='video.mp4', content_type='video/mp4')
        return await self._run('/videos', data=form)

    async def download(self, identifier: str) -> bytes:
        """Returns the mp4 of a job."""
        return await self._call('GET', f'/videos/{identifier}/content', as_bytes=True)

    async def _run(self, path: str, **body: Any) -> str:
        """Creates a job and waits until it is completed. Returns its id."""
        job = await self._call('POST', path, **body)
        try:
            while job['status'] in ('queued', 'in_progress'):
                await self._on_progress(job['progress'])
                await asyncio.sleep(POLL_SECONDS)
                job = await self._call('GET', f'/videos/{job["id"]}')
        except BaseException:
            with contextlib.suppress(ValueError):  # it may have ended meanwhile
                await asyncio.shield(self._call('POST', f'/videos/{job["id"]}/cancel'))
            raise
        if job['status'] != 'completed':
            reason = job['error']['message'] if job['error'] else 'on the server'
            raise ValueError(f'{job["id"]}: {job["status"]}: {reason}')
        await self._on_progress(100)
        return job['id']

    async def _call(self, method: str, path: str, *, as_bytes: bool = False, **body: Any) -> Any:
        headers = {'Authorization': f'Bearer {self.key}'} if self.key else {}
        try:
            async with self._session.request(method, self._base + path, headers=headers, **body) as response:
                if as_bytes and response.ok:
                    return await response.read()
                answer = await response.json()
        except aiohttp.ClientConnectionError as error:
            raise ValueError(f'{self._base}: does not answer ({error}); start it: python -m fv_jax.app') from error
        if not response.ok:
            raise ValueError(answer['error']['message'])
        return answer


def _steps(steps: int) -> dict[str, int]:
    return {'num_steps': steps} if steps else {}
