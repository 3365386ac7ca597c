"""Faults that a proxy injects, and the log of its requests."""

import dataclasses
import re
from collections.abc import Collection

from tests.storage.protocols import Call


@dataclasses.dataclass
class Request:
    """A request in the log of a proxy, from its beginning on.

    Attributes:
        status: of the response; 0 without one.
        up: bytes of the request's body, as they are sent. down: of the response's body.
        seconds: from the first line to the last byte of the response; 0 until then.
    """

    method: str
    call: Call
    status: int = 0
    up: int = 0
    down: int = 0
    seconds: float = 0.0


@dataclasses.dataclass
class Fault:
    """A fault, and the requests that it applies to.

    Attributes:
        status: respond with this status; the server does not see the request.
        cut_after: close the connection after so many bytes of an upload's body, or of the response's body otherwise.
        drop_response: let the server process the request, then close the connection without a response.
        delay: seconds to wait before the request is forwarded.
        rate: bytes per second of the response's body.
        replacement: content that the object gets before the request is forwarded.
        kinds: which `protocols.KINDS`; all if empty.
        pattern: a regular expression that `bucket/name` must contain.
        skip: how many matching requests to leave alone first.
        every: then apply to each `every`-th matching request.
        times: how often at most.
        num_matched: matching requests so far. num_applied: how often the fault was applied.
    """

    status: int = 0
    cut_after: int | None = None
    drop_response: bool = False
    delay: float = 0.0
    rate: float = 0.0
    replacement: bytes | None = None
    kinds: Collection[str] = ()
    pattern: str = ''
    skip: int = 0
    every: int = 1
    times: int | None = None
    num_matched: int = 0
    num_applied: int = 0

    def applies(self, call: Call) -> bool:
        """Counts the request, and returns whether the fault applies to it."""
        if (self.kinds and call.kind not in self.kinds) or not re.search(self.pattern, f'{call.bucket}/{call.name}'):
            return False
        self.num_matched += 1
        position = self.num_matched - self.skip
        if position <= 0 or position % self.every or (self.times is not None and self.num_applied >= self.times):
            return False
        self.num_applied += 1
        return True
