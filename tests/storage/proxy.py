"""A proxy in front of a server of object storage: logs requests and bytes, and injects faults.

with gcs_server() as server, Proxy(server) as proxy:
    subprocess.run(command, env=os.environ | proxy.environment())
    with proxy.inject(Fault(status=503, every=10)):
        ...
    assert proxy.count('upload') < 100
"""

import collections
import contextlib
import dataclasses
import itertools
import json
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
from tests.storage.semantics import GCSSemantics, Semantics
from tests.storage.servers import HOST, Server

CONTROL = '/_proxy/'


class Proxy:
    """Listens from the start of the `with` block; its port stays the same through outages.

    Attributes:
        server: the server behind it.
        address: (host, port) of the proxy. url: http://HOST:PORT.
        requests: the log.
    """

    def __init__(self, server: Server):
        self.server = server
        self.requests: list[Request] = []
        self.semantics = GCSSemantics(server.url) if isinstance(server.protocol, GCS) else Semantics()
        self.stopped = threading.Event()
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        # Keeps the port during an outage: nothing listens, so that connections are refused.
        self._reserved = http1.bind((HOST, 0))
        self.address = self._reserved.getsockname()
        self.url = f'http://{HOST}:{self.address[1]}'

    def __enter__(self) -> Self:
        self._listen()
        if message := self.server.protocol.set_url(self.url):
            self.server.request(message)
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

    def control(self, action: str, body: bytes) -> http1.Response:
        """Carries out a request of another process to `/_proxy/ACTION`."""
        fields = json.loads(body or b'{}')
        if action == 'faults':
            text = fields.pop('replacement', None)
            self.add_fault(Fault(**fields, replacement=None if text is None else text.encode()))
        elif action == 'outage':
            threading.Timer(0.05, self.start_outage, [fields['seconds']]).start()  # after the response
        elif action == 'reset':
            self.reset()
        else:
            return http1.Response(
                200, 'application/json', json.dumps([dataclasses.asdict(request) for request in self.requests]).encode()
            )
        return http1.Response(200)

    def _listen(self) -> None:
        with self._lock:
            if self._listener is not None or self.stopped.is_set():
                return
            self._listener = http1.bind(self.address)
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

    def exchange(self) -> bool:
        """Answers one request. Returns whether another one can follow; raises OSError where the connection ends."""
        head = Head.read(self.from_client)
        if head is None:
            return False
        began = time.monotonic()
        if head.headers.pop('expect', None):
            self.client.sendall(http1.CONTINUE)
        body = read_body(self.from_client, head)
        if head.target.startswith(CONTROL):
            response = self.proxy.control(head.target.removeprefix(CONTROL), b''.join(body))
            self.client.sendall(response.encode(head.method))
            return True
        first = next(body, b'')
        call = self.proxy.server.protocol.parse_call(head.method, head.target, head.headers, first)
        request = Request(head.method, call)
        self.proxy.requests.append(request)
        try:
            return self._answer(request, head, itertools.chain([first] if first else [], body))
        finally:
            request.seconds = time.monotonic() - began

    def _answer(self, request: Request, head: Head, body: Iterator[bytes]) -> bool:
        call = request.call
        faults = self.proxy.applied_faults(call)
        for fault in faults:
            self._wait(fault.delay)
            if fault.replacement is not None:
                self.proxy.server.upload(call.bucket, call.name, fault.replacement)
        status = next((fault.status for fault in faults if fault.status), None)
        if status is not None:
            return self._respond(request, http1.Response(status, *self.proxy.server.protocol.error(status)), body)
        with self.proxy.semantics.apply(head, call) as response:
            if response is not None:
                return self._respond(request, response, body)
            return self._forward(request, head, body, faults)

    def _respond(self, request: Request, response: http1.Response, body: Iterator[bytes]) -> bool:
        request.up = sum(map(len, body))
        request.status, request.down = response.status, len(response.body)
        self.client.sendall(response.encode(request.method))
        return True

    def _forward(self, request: Request, head: Head, body: Iterator[bytes], faults: list[Fault]) -> bool:
        cut = min((fault.cut_after for fault in faults if fault.cut_after is not None), default=None)
        cut_up, cut_down = (cut, None) if request.call.kind == 'upload' else (None, cut)
        rate = min((fault.rate for fault in faults if fault.rate), default=0)
        self.server.sendall(head.encode())
        for block in _cut(body, cut_up):
            request.up += len(block)
            self.server.sendall(block)
        response = Head.read(self.from_server)
        if response is None:
            raise ConnectionError('the server closed the connection')
        self.proxy.semantics.observe(head, response)
        if any(fault.drop_response for fault in faults):
            raise ConnectionError('fault')
        request.status = response.status
        self.client.sendall(response.encode())
        if request.method != 'HEAD' and response.status not in (204, 304):
            for block in _cut(read_body(self.from_server, response, until_end=True), cut_down):
                self._wait(len(block) / rate if rate else 0)
                request.down += len(block)
                self.client.sendall(block)
        return not response.closes

    def _wait(self, seconds: float) -> None:
        if seconds and self.proxy.stopped.wait(seconds):
            raise ConnectionError('the proxy stopped')


def _cut(body: Iterator[bytes], length: int | None) -> Iterator[bytes]:
    """Yields the first `length` bytes of a body, then raises ConnectionError."""
    for block in body:
        if length is not None and len(block) >= length:
            yield block[:length]
            raise ConnectionError('fault')
        yield block
        length = None if length is None else length - len(block)
