"""A job server in a process of its own that is killed again and again: no job is lost, none is executed twice."""

import collections
import contextlib
import itertools
import json
import random
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import runs
from tests.serving.fake_runner import NUM_STEPS

COUNT = 50
SERVE = """
import pathlib, socket, sys, uvicorn
from fv_jax.serving.http_api import create_app
from fv_jax.serving.job_server import JobServer
from fv_jax.serving.keys import Keys
from tests.serving.fake_runner import FakeRunner

folder = pathlib.Path(sys.argv[1])
server = JobServer(folder / 'jobs', FakeRunner(log=folder / 'log.txt', step_seconds=0.01))
app = create_app(server, Keys(server.store.read_secret('keys')))
listening = socket.create_server(('127.0.0.1', 0))
print(listening.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, log_level='error')).run(sockets=[listening])
"""


class Client:
    def __init__(self, port: int, key: str | None = None):
        self._base = f'http://127.0.0.1:{port}/v1'
        self.key = key or self('POST', '/keys')['key']

    def __call__(self, method: str, path: str, **body):
        headers = {'Authorization': f'Bearer {self.key}'} if hasattr(self, 'key') else {}
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(self._base + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)

    def all_jobs(self) -> dict[int, dict]:
        """All jobs by their seed."""
        return {job['seed']: job for job in self('GET', '/videos?limit=100')['data']}


@contextlib.contextmanager
def running(folder: Path) -> Iterator[tuple[subprocess.Popen, int]]:
    command = [sys.executable, '-c', SERVE, str(folder)]
    process = subprocess.Popen(command, cwd=runs.ROOT, env=runs.environment(), stdout=subprocess.PIPE, text=True)
    try:
        yield process, int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


def read_log(folder: Path) -> collections.Counter:
    path = folder / 'log.txt'
    return collections.Counter(path.read_text().splitlines() if path.exists() else [])


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM], ids=['SIGKILL', 'SIGTERM'])
def test_no_job_is_lost_or_executed_twice(tmp_path, number):
    rng, key, acknowledged = random.Random(0), None, []
    for start in itertools.count():
        with running(tmp_path) as (process, port):
            client = Client(port, key)
            key = client.key
            deadline = time.monotonic() + 60
            # Some are queued by each of the first processes, so that requests too are interrupted by the kill.
            while len(acknowledged) < min(COUNT, 20 * (start + 1)):
                acknowledged.append(client('POST', '/videos', prompt='a dog', seed=len(acknowledged))['id'])
            if start < 4:
                done = sum(job['status'] == 'completed' for job in client.all_jobs().values())
                while sum(job['status'] == 'completed' for job in client.all_jobs().values()) < done + 4:
                    assert time.monotonic() < deadline
                time.sleep(rng.uniform(0, 0.01 * NUM_STEPS))
                process.send_signal(number)
                process.wait(30)
                continue
            while any(job['status'] != 'completed' for job in client.all_jobs().values()):
                assert time.monotonic() < deadline, client.all_jobs()
                time.sleep(0.05)
            found = client.all_jobs()
            break
    assert sorted(found) == list(range(COUNT)) and [found[i]['id'] for i in range(COUNT)] == acknowledged
    log = read_log(tmp_path)
    starts, ends = ([log[f'{what} {i}'] for i in range(COUNT)] for what in ('start', 'end'))
    assert max(ends) == 1 and sum(ends) >= COUNT - 4, 'a kill may come between a result and its line'
    interrupted = sum(starts) - COUNT
    assert 1 <= interrupted <= 4, 'and started again'
    assert len(list((tmp_path / 'jobs' / 'results').iterdir())) == COUNT


def test_job_that_ends_the_server_is_given_up(tmp_path):
    key = None
    for _ in range(3):
        with running(tmp_path) as (process, port):
            client = Client(port, key)
            key = client.key
            if not client.all_jobs():
                client('POST', '/videos', prompt='a dog', num_steps=100)
            while client.all_jobs()[0]['status'] != 'in_progress':
                time.sleep(0.005)
            process.kill()
            process.wait()
    with running(tmp_path) as (_, port):
        client = Client(port, key)
        (job,) = client.all_jobs().values()
        assert job['status'] == 'failed' and '3 times' in job['error']['message']
        with pytest.raises(urllib.error.HTTPError):
            client('GET', f'/videos/{job["id"]}/content')
