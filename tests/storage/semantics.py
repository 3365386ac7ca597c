"""Semantics of the real services that the servers lack, added by the proxy: preconditions, and resumable uploads.

A request with a precondition is checked and forwarded under a lock, so that of several at once one succeeds. All
clients must therefore use the same proxy.
"""

import contextlib
import dataclasses
import json
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator

from tests.storage.http1 import Head, Response
from tests.storage.protocols import Call

FAILED = Response(412, 'application/json', b'{"error": {"code": 412, "message": "Precondition failed"}}')


class Semantics:
    """Adds nothing: moto has the preconditions of S3."""

    @contextlib.contextmanager
    def apply(self, request: Head, call: Call) -> Iterator[Response | None]:
        """Yields a response, or None for a request to forward within the block."""
        yield None

    def observe(self, request: Head, response: Head) -> None:
        """Takes note of a response of the server."""


@dataclasses.dataclass
class _Upload:
    """A resumable upload: the precondition for completing it, and how many bytes the server has received."""

    preconditions: dict[str, str]
    received: int = 0
    is_complete: bool = False


class GCSSemantics(Semantics):
    """Preconditions on an object's generation for every kind of request; retries within resumable uploads."""

    def __init__(self, url: str):
        self._url = url
        self._lock = threading.Lock()
        self._uploads: dict[str, _Upload] = {}

    @contextlib.contextmanager
    def apply(self, request: Head, call: Call) -> Iterator[Response | None]:
        query = _parse_query(request)
        preconditions = _preconditions(query)
        if upload := self._uploads.get(query.get('upload_id', '')):
            content_range = request.headers.get('content-range', '')
            if response := self._repeat(upload, content_range, call):
                yield response
                return
            preconditions = {} if content_range.endswith('/*') else upload.preconditions
        elif query.get('uploadType') == 'resumable':
            preconditions = {}  # checked when the upload completes
        with self._lock if preconditions else contextlib.nullcontext():
            yield self._check(preconditions, call)

    def observe(self, request: Head, response: Head) -> None:
        query = _parse_query(request)
        if upload := self._uploads.get(query.get('upload_id', '')):
            upload.is_complete = response.status in (200, 201)
            if response.status == 308 and (matched := re.search(r'(\d+)$', response.headers.get('range', ''))):
                upload.received = int(matched[1]) + 1
        elif query.get('uploadType') == 'resumable' and response.status == 200:
            location = urllib.parse.urlsplit(response.headers['location']).query
            self._uploads[urllib.parse.parse_qs(location)['upload_id'][0]] = _Upload(_preconditions(query))

    def _check(self, preconditions: dict[str, str], call: Call) -> Response | None:
        if not preconditions:
            return None
        generation = json.loads(self._metadata(call) or b'{}').get('generation', '0')
        if preconditions.get('ifGenerationMatch', generation) != generation:
            return FAILED
        if preconditions.get('ifGenerationNotMatch') == generation:
            return Response(304) if call.kind in ('read', 'stat') else FAILED
        return None

    def _repeat(self, upload: _Upload, content_range: str, call: Call) -> Response | None:
        """Returns the response to a chunk that the server has, or to a query for the state; None for new data."""
        start, end, total = re.fullmatch(r'bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)', content_range).groups()
        if start is None:
            is_new = not upload.is_complete and total == str(upload.received)  # states the final size
        else:
            is_new = not upload.is_complete and int(start) == upload.received
            assert is_new or upload.is_complete or int(end) < upload.received, f'{content_range}: {upload}'
        if is_new:
            return None
        if upload.is_complete:
            return Response(200, 'application/json', self._metadata(call))
        return Response(308, headers={'range': f'bytes=0-{upload.received - 1}'} if upload.received else {})

    def _metadata(self, call: Call) -> bytes:
        """Returns b'' for an object that does not exist."""
        url = f'{self._url}/storage/v1/b/{call.bucket}/o/{urllib.parse.quote(call.name, safe="")}'
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            assert error.code == 404, error
            return b''


def _parse_query(request: Head) -> dict[str, str]:
    return dict(urllib.parse.parse_qsl(request.start.split(' ')[1].partition('?')[2]))


def _preconditions(query: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in query.items() if name in ('ifGenerationMatch', 'ifGenerationNotMatch')}
