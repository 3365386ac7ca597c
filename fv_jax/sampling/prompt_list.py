"""Samples a list batch by batch: writes each result as soon as it exists, and continues after a batch that fails."""

import dataclasses
import datetime
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import jax

from fv_jax.core.checks import require
from fv_jax.core.command_line import format_error

log = logging.getLogger(__name__)

R = TypeVar('R')
# What a batch or a file can fail of while others do not. Anything else, such as Ctrl-C, ends the list.
ERRORS = (ValueError, OSError, jax.errors.JaxRuntimeError)
MAX_FAILURES = 3  # in a row, after which the cause is taken for one of all, such as a full disk
_MAX_NAMED = 3  # in a message


@dataclasses.dataclass
class ListProgress:
    """Logs the progress of a list and collects what failed.

    Attributes:
      what: an item is, such as 'preview'.
      labels: of all items, for messages.
      existing: the number of items that need not be made.
      made, failed: indices of items.
      started: of the clock `time.monotonic`.
    """

    what: str
    labels: Sequence[str]
    existing: int = 0
    made: list[int] = dataclasses.field(default_factory=list)
    failed: list[int] = dataclasses.field(default_factory=list)
    started: float = dataclasses.field(default_factory=time.monotonic)
    _failures_in_a_row: int = 0
    _any_success: bool = False

    def add_success(self) -> None:
        """Notes that a step of an item succeeded, so that the cause of a later failure is not one of all."""
        self._any_success, self._failures_in_a_row = True, 0

    def add_made(self, index: int) -> None:
        """Notes an item that was written."""
        self.add_success()
        self.made.append(index)
        log.info(self.labels[index])

    def add_failed(self, indices: Sequence[int], error: Exception, *, odd: bool = False) -> None:
        """Logs items that failed together.

        Args:
          indices: of the items.
          error: why they failed.
          odd: whether the cause is one of these items, such as a damaged file, so that the list continues in any case.

        Raises:
          Exception: the error itself, if nothing succeeded before, in this call or an earlier one.
          ValueError: the last of `MAX_FAILURES` failures in a row.
        """
        if not odd and not self._any_success and not self.existing:
            raise error
        self.failed += indices
        self._failures_in_a_row += 0 if odd else 1
        for i in indices:
            reason = format_error(error).removeprefix(f'{self.labels[i]}: ')
            log.warning(f'{self.labels[i]}: failed: {reason}')
        if not odd and self._failures_in_a_row == MAX_FAILURES:
            raise ValueError(
                f'{self.labels[indices[0]]}: {format_error(error)}; the list ends after {MAX_FAILURES} failures in a '
                'row; run the command again to continue it'
            ) from error

    def log_time_left(self) -> None:
        """Logs how many items exist and the time left, which is too long at first: the first batch is compiled."""
        total, done = len(self.labels), self.existing + len(self.made)
        left = total - done - len(self.failed)
        if left and self.made:
            seconds = datetime.timedelta(seconds=round(self.seconds() / len(self.made) * left))
            log.info(f'{self.what} {done} of {total}, {seconds} left')

    def seconds(self) -> float:
        """Returns the seconds since the list was started."""
        return time.monotonic() - self.started

    def describe_failures(self) -> str:
        """Returns how many items failed and which, or ''."""
        named = '; '.join(self.labels[i] for i in self.failed[:_MAX_NAMED])
        more = f'; and {len(self.failed) - _MAX_NAMED} more' if len(self.failed) > _MAX_NAMED else ''
        return f'{len(self.failed)} of {len(self.labels)} {self.what}s failed ({named}{more})' if self.failed else ''


def check_complete(*lists: ListProgress) -> None:
    """Raises ValueError if items of a list failed."""
    failures = list(filter(None, (each.describe_failures() for each in lists)))
    require(
        not failures,
        f'{", ".join(failures)}; run the command again to make them, once inputs that cannot be read are repaired',
    )


def sample_list(
    sample: Callable[[list[int]], Iterator[Sequence[R]]],
    write: Callable[[int, R], None],
    indices: Sequence[int],
    batch_size: int,
    progress: ListProgress,
    *,
    last: bool = True,
) -> None:
    """Samples items of a list in batches of one shape and writes each result.

    Args:
      sample: indices -> the results of each `batch_size` of them, in turn. It is called again for the rest after a
        failure.
      write: stores the result of an item atomically.
      indices: of the items to make.
      batch_size: items per batch. A shorter list is padded, so that what is left of one compiles nothing new.
      progress: of the list.
      last: whether `write` completes an item.

    Raises:
      Exception: see `ListProgress.add_failed`.
    """
    left = list(indices)
    while left:
        batches = sample([*left, *left[-1:] * (batch_size - len(left))])
        while left:
            batch, left = left[:batch_size], left[batch_size:]
            try:
                results = next(batches)
            except ERRORS as error:
                progress.add_failed(batch, error)
                break  # a generator that raised has ended
            assert len(results) >= len(batch)  # more where the batch was padded
            for i, result in zip(batch, results, strict=False):
                try:
                    write(i, result)
                except ERRORS as error:
                    progress.add_failed([i], error)
                else:
                    progress.add_made(i) if last else progress.add_success()
            if last:
                progress.log_time_left()
