"""Repeated requests: which ones, for how long, and what is logged."""

import asyncio
import logging

import pytest

from fv_jax.core.storage import retries
from fv_jax.core.storage.retries import Retries


class Passing(Exception):
    pass


@pytest.fixture
def clock(monkeypatch):
    """Seconds since the start; pauses take no time, and are noted in `clock.pauses`."""

    class Clock:
        now, pauses = 0.0, []

        def __call__(self):
            return self.now

    clock = Clock()
    clock.pauses = []

    async def sleep(seconds):
        clock.pauses.append(seconds)
        clock.now += seconds

    monkeypatch.setattr(asyncio, 'sleep', sleep)
    return clock


def run(made: Retries, failures: list[BaseException], answer: str = 'answer') -> str:
    async def request():
        if failures:
            raise failures.pop(0)
        return answer

    return asyncio.run(made.run(request, lambda error: isinstance(error, Passing)))


def test_request_is_repeated_until_it_succeeds_with_growing_pauses(clock):
    made = Retries('gs://', 600, clock)
    assert run(made, [Passing() for _ in range(10)]) == 'answer'
    assert made.repeated == 10
    assert all(
        limit / 2 <= pause <= limit
        for pause, limit in zip(clock.pauses, [0.25, 0.5, 1, 2, 4, 8, 16, 16, 16, 16], strict=True)
    )


def test_request_that_failed_for_good_is_not_repeated(clock):
    made = Retries('gs://', 600, clock)
    with pytest.raises(FileNotFoundError):
        run(made, [FileNotFoundError('x')])
    assert made.repeated == 0


def test_patience_limits_the_time(clock):
    with pytest.raises(Passing):
        run(Retries('gs://', 600, clock), [Passing() for _ in range(1000)])
    assert 500 < clock.now <= 600
    with pytest.raises(Passing):
        run(Retries('gs://', 0, clock), [Passing()])


def test_one_line_a_minute_counts_the_repetitions(clock, caplog):
    made = Retries('gs://', 600, clock)
    with caplog.at_level(logging.WARNING):
        run(made, [Passing('503\nbusy') for _ in range(3)])
        clock.now += retries.LOG_INTERVAL_S
        run(made, [Passing('cut')])
    assert [record.getMessage() for record in caplog.records] == [
        'gs://: a request failed (503 busy) and is repeated; 1 so far',
        'gs://: a request failed (cut) and is repeated; 4 so far',
    ]
