"""A proxy in front of a server of object storage: logs requests and bytes, and injects faults.

with gcs_server() as server, Proxy(server) as proxy:
    subprocess.run(command, env=os.environ | proxy.environment())
    with proxy.inject(Fault(status=503, every=10)):
        ...
    assert proxy.count('upload') < 100
"""

import collections
import contextlib
import itertools
import socket
import threading
import time
import urllib.parse
from collections.abc import Iterator
from typing import Self

from tests.storage import http1
from tests.storage.faults import Fault, Request
from tests.storage.http1 import Head, read_body
from tests.storage.protocols import GCS, Call
from tests.storage.semantics import GCSSemantics, S3Semantics
from tests.storage.servers import HOST, Server


class Proxy:
    """Listens from the start of the `with` block; its port stays the same through outages.

    Attributes:
        server: the server behind it.
        url: http://HOST:PORT.
        requests: the log.
    """

    def __init__(self, server: Server):
        self.server = server
        self.requests: list[Request] = []
        self.semantics = GCSSemantics(server.url) if isinstance(server.protocol, GCS) else S3Semantics()
        self.stopped = threading.Event()
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        # Keeps the port during an outage: nothing listens, so that connections are refused.
        self._reserved = http1.bind((HOST, 0))
        self.url = f'http://{HOST}:{self._reserved.getsockname()[1]}'

    def __enter__(self) -> Self:
        self._listen()
        return self

    def __exit__(self, *_) -> None:
        self.stopped.set()
        self._close()
        self._reserved.close()

    def environment(self) -> dict[str, str]:
        """Returns the variables with which a process finds the proxy."""
        return self.server.protocol.environment(self.url)

    def count(self, *kinds: str) -> int:
        """Returns the number of logged requests, of these kinds if any are given."""
        return sum(not kinds or request.call.kind in kinds for request in list(self.requests))

    def totals(self) -> dict[tuple[str, str], tuple[int, int, int]]:
        """Returns (requests, bytes up, bytes down) by (method, kind)."""
        totals = collections.defaultdict(lambda: (0, 0, 0))
        for request in list(self.requests):
            number, up, down = totals[request.method, request.call.kind]
            totals[request.method, request.call.kind] = number + 1, up + request.up, down + request.down
        return dict(sorted(totals.items()))

    def add_fault(self, fault: Fault) -> None:
        with self._lock:
            self._faults.append(fault)

    @contextlib.contextmanager
    def inject(self, fault: Fault) -> Iterator[Fault]:
        """Injects a fault until the block ends."""
        self.add_fault(fault)
        try:
            yield fault
        finally:
            with self._lock:
                self._faults = [other for other in self._faults if other is not fault]

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """Closes open connections and refuses new ones until the block ends."""
        self._close()
        try:
            yield
        finally:
            self._listen()

    def start_outage(self, seconds: float) -> None:
        """Closes open connections and refuses new ones for some time; returns at once."""
        self._close()
        timer = threading.Timer(seconds, self._listen)
        timer.daemon = True
        timer.start()

    def reset(self) -> None:
        """Removes all faults, clears the log, and ends an outage."""
        with self._lock:
            self._faults = []
            self.requests = []
        self._listen()

    def applied_faults(self, call: Call) -> list[Fault]:
        """Counts the request, and returns the faults that apply to it."""
        with self._lock:
            return [fault for fault in self._faults if fault.applies(call)]

    def _listen(self) -> None:
        with self._lock:
            if self._listener is not None or self.stopped.is_set():
                return
            self._listener = http1.bind(self._reserved.getsockname())
            self._listener.listen(128)
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _close(self) -> None:
        with self._lock:
            listener, self._listener = self._listener, None
            for connection in self._connections:
                http1.shut_down(connection)
        if listener is not None:
            http1.shut_down(listener)  # ends `accept`
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(client, listener), daemon=True).start()

    def _serve(self, client: socket.socket, listener: socket.socket) -> None:
        """Forwards the requests of one connection through one connection to the server."""
        address = urllib.parse.urlsplit(self.server.url)
        with client, contextlib.suppress(OSError), socket.create_connection((address.hostname, address.port)) as server:
            both = {client, server}
            with self._lock:
                if self._listener is not listener:
                    return
                self._connections |= both
            try:
                connection = _Connection(self, client, server)
                while connection.exchange():
                    pass
            finally:
                with self._lock:
                    self._connections -= both
                for end in both:
                    http1.shut_down(end)


class _Connection:
    """The connection of a client, and the one to the server behind it."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket):
        self.proxy, self.client, self.server = proxy, client, server
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.from_client, self.from_server = client.makefile('rb', http1.BLOCK), server.makefile('rb', http1.BLOCK)
        self.up = self.down = self.status = 0

    def exchange(self) -> bool:
        """Answers one request. Returns whether another one can follow; raises OSError where the connection ends."""
        request = Head.read(self.from_client)
        if request is None:
            return False
        began, self.up, self.down, self.status = time.monotonic(), 0, 0, 0
        if request.headers.pop('expect', None):
            self.client.sendall(http1.CONTINUE)
        body = read_body(self.from_client, request)
        first = next(body, b'')
        call = self.proxy.server.protocol.parse_call(request.method, request.target, request.headers, first)
        body = itertools.chain([first] if first else [], body)
        try:
            return self._answer(request, call, body)
        finally:
            seconds = time.monotonic() - began
            self.proxy.requests.append(Request(request.method, call, self.status, self.up, self.down, seconds))

    def _answer(self, request: Head, call: Call, body: Iterator[bytes]) -> bool:
        faults = self.proxy.applied_faults(call)
        for fault in faults:
            self._wait(fault.delay)
            if fault.replacement is not None:
                self.proxy.server.upload(call.bucket, call.name, fault.replacement)
        status = next((fault.status for fault in faults if fault.status), None)
        if status is not None:
            return self._respond(http1.Response(status, *self.proxy.server.protocol.error(status)), request, body)
        with self.proxy.semantics.apply(request, call) as response:
            if response is not None:
                return self._respond(response, request, body)
            return self._forward(request, call, body, faults)

    def _respond(self, response: http1.Response, request: Head, body: Iterator[bytes]) -> bool:
        self.up = sum(map(len, body))
        self.status, self.down = response.status, len(response.body)
        self.client.sendall(response.encode(request.method))
        return True

    def _forward(self, request: Head, call: Call, body: Iterator[bytes], faults: list[Fault]) -> bool:
        cut = min((fault.cut_after for fault in faults if fault.cut_after is not None), default=None)
        cut_up, cut_down = (cut, None) if call.kind == 'upload' else (None, cut)
        rate = min((fault.rate for fault in faults if fault.rate), default=0)
        self.server.sendall(request.encode())
        for length in _send(self.server, body, cut_up):
            self.up += length
        response = Head.read(self.from_server)
        if response is None:
            raise ConnectionError('the server closed the connection')
        self.proxy.semantics.observe(request, response)
        if any(fault.drop_response for fault in faults):
            raise ConnectionError('fault')
        self.status = response.status
        self.client.sendall(response.encode())
        if request.method != 'HEAD' and response.status not in (204, 304):
            for length in _send(self.client, read_body(self.from_server, response, until_end=True), cut_down):
                self.down += length
                self._wait(length / rate if rate else 0)
        return not response.closes

    def _wait(self, seconds: float) -> None:
        if seconds and self.proxy.stopped.wait(seconds):
            raise ConnectionError('the proxy stopped')


def _send(end: socket.socket, body: Iterator[bytes], cut_after: int | None) -> Iterator[int]:
    """Yields the length of each block that was sent. Raises ConnectionError after `cut_after` bytes."""
    sent = 0
    for block in body:
        block = block if cut_after is None else block[: cut_after - sent]
        end.sendall(block)
        sent += len(block)
        yield len(block)
        if sent == cut_after:
            raise ConnectionError('fault')
