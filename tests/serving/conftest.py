"""A job server over HTTP, with a runner that makes no videos."""

import contextlib
import time
from collections.abc import Callable, Iterator

import pytest
from starlette.testclient import TestClient

from fv_jax.serving.http_api import create_app
from fv_jax.serving.job_server import JobServer
from fv_jax.serving.keys import Keys
from fv_jax.serving.requests import Limits
from tests.serving.fake_runner import FakeRunner

LIMITS = Limits(prompt_characters=50, waiting_jobs=6, upload_bytes=100_000)


class Client:
    """A user: HTTP requests with a key."""

    def __init__(self, client: TestClient, key: str):
        self._client, self._headers = client, {'Authorization': f'Bearer {key}'}

    def __call__(self, method: str, path: str, status: int = 200, **options):
        """Returns the JSON of an answer, whose status is checked."""
        response = self._client.request(method, f'/v1{path}', headers=self._headers, **options)
        assert response.status_code == status, (response.status_code, response.text)
        return response.json() if response.headers['content-type'].startswith('application/json') else response

    def refused(self, status: int, method: str, path: str, **options) -> str:
        """Returns the message of an error with this status."""
        error = self(method, path, status, **options)['error']
        assert set(error) == {'message', 'type', 'param', 'code'}
        return error['message']

    def create(self, prompt: str = 'a dog', **fields) -> dict:
        return self('POST', '/videos', json={'prompt': prompt, **fields})

    def wait(self, job: dict | str, *statuses: str) -> dict:
        """Polls until a job has one of these statuses."""
        name = job if isinstance(job, str) else job['id']
        deadline = time.monotonic() + 20
        while (found := self('GET', f'/videos/{name}'))['status'] not in (statuses or ('completed',)):
            assert time.monotonic() < deadline, found
            time.sleep(0.005)
        return found


@pytest.fixture
def serve(tmp_path) -> Iterator[Callable]:
    """Starts servers on one folder, one after the other: serve(runner) is a context of two users."""

    @contextlib.contextmanager
    def start(runner: FakeRunner | None = None, password: str | None = None, limits: Limits = LIMITS):
        server = JobServer(tmp_path / 'jobs', runner or FakeRunner(), limits)
        keys = Keys(server.store.read_secret('keys'), password)
        with TestClient(create_app(server, keys)) as client:
            yield [Client(client, keys.create()) for _ in range(2)]

    yield start


@pytest.fixture
def users(serve):
    with serve() as found:
        yield found


@pytest.fixture
def user(users) -> Client:
    return users[0]
