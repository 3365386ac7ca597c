"""The policy for bad records: fail, or skip up to a limit.

A record is bad when reading, decoding or transforming it raises ValueError. With 'fail' the run stops. With 'skip' the
record is replaced by another record of the same source, drawn by the example's own generator, so that the other
examples and processes are not affected, until one process has met more than `max_bad_records` different bad records.
Every bad record is counted and logged once. A shard that cannot be opened counts as one bad record and is skipped.
"""

import dataclasses
import logging
import threading
from typing import Literal

from fv_jax.core.config import check_choice, check_range
from fv_jax.core.console import EVERY_PROCESS
from fv_jax.data.shards.shard_files import ShardError

log = logging.getLogger(__name__)


class BadRecordError(ValueError):
    """Raised for a bad record, or for too many of them; the message names the record."""


@dataclasses.dataclass(frozen=True)
class BadRecordConfig:
    """The policy for bad records.

    Attributes:
      on_bad_record: 'fail' or 'skip'.
      max_bad_records: how many different records one process may skip.
    """

    on_bad_record: Literal['skip', 'fail'] = 'fail'
    max_bad_records: int = 100

    def __post_init__(self):
        check_choice(self, 'on_bad_record', choices=('skip', 'fail'))
        check_range(self, 'max_bad_records', low=0)


class BadRecords:
    """The bad records of a process so far; thread-safe.

    Attributes:
      config: the policy.
      found: the reason for each bad record, by the record's name.
    """

    def __init__(self, config: BadRecordConfig):
        self.config, self.found = config, {}
        self._lock = threading.Lock()

    def report(self, name: str, error: ValueError) -> None:
        """Counts and logs a bad record. Raises BadRecordError if the policy is to fail, or at the limit."""
        name = error.shard if isinstance(error, ShardError) else name
        reason = str(error).strip().partition('\n')[0].removeprefix(f'{name}: ')
        if self.config.on_bad_record == 'fail':
            raise BadRecordError(
                f'{name}: {reason}; prepare it again, or set config.data.bad_records.on_bad_record=skip'
            ) from None
        with self._lock:
            if name in self.found:
                return
            self.found[name] = reason
            count, limit = len(self.found), self.config.max_bad_records
            if count > limit:
                raise BadRecordError(
                    f'{count} records are bad and config.data.bad_records.max_bad_records={limit}; the last is {name}: '
                    f'{reason}'
                ) from None
            log.info(f'bad record {count} of at most {limit}: {name}: {reason}', extra=EVERY_PROCESS)
