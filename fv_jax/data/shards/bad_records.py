"""What happens when a record cannot be used: one policy for whatever is wrong with it.

A record is bad when reading, decoding or transforming it raises ValueError. With 'fail' the run stops there. With
'skip' another record of the same source, drawn by the row's own generator, takes its place, so that processes still
share batches as they would have, until more than `budget` different ones were bad in one process. Every bad record is
counted and named once. A shard that cannot be opened counts as one, and is left out.
"""

import dataclasses
import logging
import threading
from typing import Literal

from fv_jax.core.config import check_choice, check_range
from fv_jax.core.console import EVERY_PROCESS

log = logging.getLogger(__name__)


class BadRecordError(ValueError):
    """A record, or too many of them, cannot be used. The message names it."""


@dataclasses.dataclass(frozen=True)
class BadRecordConfig:
    """on_bad_record: 'fail' or 'skip'. budget: how many different records may be skipped."""

    on_bad_record: Literal['skip', 'fail'] = 'fail'
    budget: int = 100

    def __post_init__(self):
        check_choice(self, 'on_bad_record', choices=('skip', 'fail'))
        check_range(self, 'budget', low=0)


class BadRecords:
    """The bad records of a process so far. Threads may report at once.

    found: name -> reason.
    """

    def __init__(self, config: BadRecordConfig):
        self.config, self.found = config, {}
        self._lock = threading.Lock()

    def report(self, name: str, error: ValueError) -> None:
        """Counts a bad record. Raises BadRecordError if the run has to stop."""
        reason = str(error).strip().partition('\n')[0].removeprefix(f'{name}: ')
        if self.config.on_bad_record == 'fail':
            raise BadRecordError(
                f'{name}: {reason}; prepare it again, or set config.data.bad_records.on_bad_record=skip'
            ) from None
        with self._lock:
            if name in self.found:
                return
            self.found[name] = reason
            count, budget = len(self.found), self.config.budget
            if count > budget:
                raise BadRecordError(
                    f'{count} records are bad and config.data.bad_records.budget={budget}; the last is {name}: {reason}'
                ) from None
            log.info(f'bad record {count} of at most {budget}: {name}: {reason}', extra=EVERY_PROCESS)
