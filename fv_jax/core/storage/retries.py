"""Repeated requests: which failures of an object store pass, how long they are waited for, and what is logged."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fv_jax.core.checks import one_line

log = logging.getLogger(__name__)

T = TypeVar('T')

PATIENCE_S = 600.0  # as long as a store may be away without ending a run
FIRST_WAIT_S = 0.25
MAX_WAIT_S = 16.0
LOG_INTERVAL_S = 60.0


class Retries:
    """Repeats the requests to one store, counts them, and logs at most one line a minute about them.

    Attributes:
      repeated: number of requests that were sent again.
    """

    def __init__(self, store: str, patience_s: float = PATIENCE_S, clock: Callable[[], float] = time.monotonic):
        """store: its name in messages. patience_s: seconds after which a request that keeps failing is given up."""
        self._store, self._patience_s, self._clock = store, patience_s, clock
        self.repeated = 0
        self._logged: float | None = None

    async def run(self, request: Callable[[], Awaitable[T]], is_transient: Callable[[BaseException], bool]) -> T:
        """Awaits a request until it succeeds, or fails for a reason that does not pass, or for `patience_s`.

        Each pause is drawn from (0.5, 1) times twice the one before, so that processes do not repeat at once.

        Raises the request's last error.
        """
        started, wait = self._clock(), FIRST_WAIT_S
        while True:
            try:
                return await request()
            except Exception as error:
                if not is_transient(error) or self._clock() - started + wait > self._patience_s:
                    raise
                self.repeated += 1
                self._log(error)
            await asyncio.sleep(wait * random.uniform(0.5, 1))
            wait = min(2 * wait, MAX_WAIT_S)

    def _log(self, error: BaseException) -> None:
        now = self._clock()
        if self._logged is None or now - self._logged >= LOG_INTERVAL_S:
            self._logged = now
            reason = one_line(error, 200)
            log.warning(f'{self._store}: a request failed ({reason}) and is repeated; {self.repeated} so far')
