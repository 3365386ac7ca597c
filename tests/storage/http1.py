"""HTTP/1.1 messages for a proxy: parsed heads, and bodies that are forwarded block by block."""

import http
import io
import socket
import types
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Self

BLOCK = 1 << 16
CONTINUE = b'HTTP/1.1 100 Continue\r\n\r\n'


class Head(NamedTuple):
    """The first line and the headers, their names in lower case, of a request or a response."""

    start: str
    headers: dict[str, str]

    @classmethod
    def read(cls, reader: io.BufferedReader) -> Self | None:
        """Returns None at the end of a connection."""
        if not (start := reader.readline()):
            return None
        headers = {}
        while line := reader.readline().strip():
            name, _, value = line.decode('latin-1').partition(':')
            headers[name.lower()] = value.strip()
        return cls(start.decode('latin-1').rstrip(), headers)

    def encode(self) -> bytes:
        lines = [self.start, *(f'{name}: {value}' for name, value in self.headers.items()), '', '']
        return '\r\n'.join(lines).encode('latin-1')

    @property
    def method(self) -> str:
        return self.start.split(' ')[0]

    @property
    def target(self) -> str:
        return self.start.split(' ')[1]

    @property
    def status(self) -> int:
        return int(self.start.split(' ')[1])

    @property
    def closes(self) -> bool:
        """Whether the connection ends with the body of this response."""
        connection = self.headers.get('connection', '').lower()
        has_length = self.headers.keys() & {'content-length', 'transfer-encoding'}
        is_old = self.start.startswith('HTTP/1.0') and connection != 'keep-alive'
        return connection == 'close' or is_old or not (has_length or self.status in (204, 304))


class Response(NamedTuple):
    """A response that does not come from the server."""

    status: int
    content_type: str = 'text/plain'
    body: bytes = b''
    headers: Mapping[str, str] = types.MappingProxyType({})

    def encode(self, method: str) -> bytes:
        headers = {**self.headers, 'content-type': self.content_type, 'content-length': str(len(self.body))}
        phrase = http.HTTPStatus(self.status).phrase
        return Head(f'HTTP/1.1 {self.status} {phrase}', headers).encode() + (self.body if method != 'HEAD' else b'')


def read_body(reader: io.BufferedReader, head: Head, *, until_end: bool = False) -> Iterator[bytes]:
    """Yields the blocks of a body as they arrive; a chunked body is yielded as it is encoded.

    Args:
        until_end: whether a body without a length extends to the end of the connection; otherwise it is empty.

    Raises:
        ConnectionError: the connection ended within the body.
    """
    if 'chunked' in head.headers.get('transfer-encoding', '').lower():
        return _read_chunks(reader)
    if 'content-length' in head.headers:
        return _read_length(reader, int(head.headers['content-length']))
    return iter(lambda: reader.read1(BLOCK), b'') if until_end else iter(())


def _read_length(reader: io.BufferedReader, length: int) -> Iterator[bytes]:
    while length:
        block = reader.read1(min(length, BLOCK))
        if not block:
            raise ConnectionError('the connection ended within a body')
        length -= len(block)
        yield block


def _read_chunks(reader: io.BufferedReader) -> Iterator[bytes]:
    length = 1
    while length:
        line = reader.readline()
        if not line:
            raise ConnectionError('the connection ended within a body')
        yield line
        length = int(line.partition(b';')[0], 16)
        yield from _read_length(reader, length + 2 if length else 0)
    while line := reader.readline():  # trailers, then an empty line
        yield line
        if line in (b'\r\n', b'\n'):
            return


def bind(address: tuple[str, int]) -> socket.socket:
    """Returns a socket bound to an address to which others of this process may be bound."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(address)
    return bound


def shut_down(connection: socket.socket) -> None:
    """Ends a connection, also while another thread reads from it."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # already closed
