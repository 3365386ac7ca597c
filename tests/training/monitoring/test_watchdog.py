"""A run that does not move is ended, with every stack; one that does is not."""

import threading
import time

from fv_jax.core.exit_codes import STALLED
from fv_jax.training.monitoring import watchdog
from fv_jax.training.monitoring.goodput import Goodput
from fv_jax.training.monitoring.watchdog import Watchdog


def block_in_a_source(until: threading.Event) -> None:
    assert until.wait(300)


def test_watchdog_ends_a_stalled_run_with_all_stacks(tmp_path):
    ended, over = [], threading.Event()

    def end(code):
        ended.append(code)
        over.set()

    goodput = Goodput()
    with (tmp_path / 'said').open('w+') as stream:
        with Watchdog(goodput, 0.2, end, stream), goodput.track('data'):
            block_in_a_source(over)
        stream.seek(0)
        output = stream.read()
    assert ended == [STALLED]
    assert output.startswith('STALLED: no progress for 0 s while waiting for data')
    assert 'stall_timeout_minutes' in output
    assert 'block_in_a_source' in output and output.count('hread 0x') >= 2


def test_watchdog_ignores_a_run_with_progress():
    now = [0.0]
    goodput = Goodput(lambda: now[0])
    dog = Watchdog(goodput, 10.0)
    for _ in range(8):
        now[0] += 9.0
        assert dog.overdue() is None
        goodput.heartbeat()
    now[0] += 11.0
    assert dog.overdue() == 'no progress for 10 s while starting'


def test_watchdog_allows_longer_for_compilation():
    now = [0.0]
    goodput = Goodput(lambda: now[0])
    dog = Watchdog(goodput, 10.0)
    with goodput.track('compile'):
        now[0] += 99.0
        assert dog.overdue() is None
        now[0] += 2.0
        assert dog.overdue().startswith('no progress for 100 s')


def test_watchdog_limits_asynchronous_saves():
    began = time.monotonic()
    assert Watchdog(Goodput(), 10.0, saving_since=lambda: began).overdue() is None
    stalled = Watchdog(Goodput(), 10.0, saving_since=lambda: began - 11.0)
    assert stalled.overdue() == 'an asynchronous save has not ended for 10 s'


def test_watchdog_can_be_disabled():
    others = set(threading.enumerate())
    with Watchdog(Goodput(), 0.0):
        assert not set(threading.enumerate()) - others
    with Watchdog(Goodput(), 60.0):
        assert len(set(threading.enumerate()) - others) == 1


def test_watchdog_ends_the_process_when_stderr_blocks(monkeypatch):
    """The process also ends when standard error is a full pipe or a closed terminal."""
    ended, released = threading.Event(), threading.Event()

    class Full:
        def write(self, text):
            released.wait(10)
            raise BrokenPipeError

    def end(code):
        assert code == STALLED
        ended.set()

    timer = threading.Timer
    monkeypatch.setattr(watchdog.threading, 'Timer', lambda seconds, *rest: timer(seconds / 50, *rest))
    monkeypatch.setattr(threading, 'excepthook', lambda arguments: None)
    with Watchdog(Goodput(), 0.1, end, Full()):
        assert ended.wait(5)
        released.set()
