"""A run that does not move is ended, with every stack; one that does is not."""

import threading
import time

from fv_jax.core.exits import STUCK
from fv_jax.training import watchdog
from fv_jax.training.goodput import Goodput
from fv_jax.training.watchdog import Watchdog


def stuck_in_a_source():
    time.sleep(0.6)


def test_a_run_that_does_not_move_is_ended_with_every_stack(tmp_path):
    ended = []
    goodput = Goodput()
    with (tmp_path / 'said').open('w+') as stream:
        with Watchdog(goodput, 0.2, ended.append, stream), goodput.during('data'):
            stuck_in_a_source()
        stream.seek(0)
        said = stream.read()
    assert ended == [STUCK]
    assert said.startswith('STUCK: nothing has moved for 0 s while waiting for data') and 'stuck_minutes' in said
    assert 'stuck_in_a_source' in said and said.count('hread 0x') >= 2


def test_a_run_that_moves_is_left_alone():
    ended = []
    goodput = Goodput()
    with Watchdog(goodput, 0.4, ended.append):
        for _ in range(8):
            time.sleep(0.1)
            goodput.moved()
    assert not ended


def test_a_program_may_take_longer_to_compile():
    ended = []
    goodput = Goodput()
    with Watchdog(goodput, 0.1, ended.append), goodput.during('compile'):
        time.sleep(0.5)
    assert not ended


def test_it_can_be_turned_off():
    ended = []
    with Watchdog(Goodput(), 0.0, ended.append):
        time.sleep(0.1)
    assert not ended


def test_a_stream_that_takes_nothing_does_not_keep_the_process(monkeypatch):
    """A full pipe, a closed terminal: the process ends all the same, in its own time."""
    ended, released = threading.Event(), threading.Event()

    class Full:
        def write(self, text):
            released.wait(10)
            raise BrokenPipeError

    def end(code):
        assert code == STUCK
        ended.set()

    timer = threading.Timer
    monkeypatch.setattr(watchdog.threading, 'Timer', lambda seconds, *rest: timer(seconds / 50, *rest))
    monkeypatch.setattr(threading, 'excepthook', lambda arguments: None)
    with Watchdog(Goodput(), 0.1, end, Full()):
        assert ended.wait(5)
        released.set()
