"""A run that does not move is ended, with every stack; one that does is not."""

import threading

from fv_jax.core.exits import STUCK
from fv_jax.training.goodput import Goodput
from fv_jax.training.watchdog import Watchdog


def stuck_in_a_source(until: threading.Event) -> None:
    assert until.wait(300)


def test_a_run_that_does_not_move_is_ended_with_every_stack(tmp_path):
    ended, over = [], threading.Event()

    def end(code):
        ended.append(code)
        over.set()

    goodput = Goodput()
    with (tmp_path / 'said').open('w+') as stream:
        with Watchdog(goodput, 0.2, end, stream), goodput.during('data'):
            stuck_in_a_source(over)
        stream.seek(0)
        said = stream.read()
    assert ended == [STUCK]
    assert said.startswith('STUCK: nothing has moved for 0 s while waiting for data') and 'stuck_minutes' in said
    assert 'stuck_in_a_source' in said and said.count('hread 0x') >= 2


def test_a_run_that_moves_is_left_alone():
    now = [0.0]
    goodput = Goodput(lambda: now[0])
    watchdog = Watchdog(goodput, 10.0)
    for _ in range(8):
        now[0] += 9.0
        assert watchdog.overdue() is None
        goodput.moved()
    now[0] += 11.0
    assert watchdog.overdue() == ('start', 10.0)


def test_a_program_may_take_longer_to_compile():
    now = [0.0]
    goodput = Goodput(lambda: now[0])
    watchdog = Watchdog(goodput, 10.0)
    with goodput.during('compile'):
        now[0] += 99.0
        assert watchdog.overdue() is None
        now[0] += 2.0
        assert watchdog.overdue() == ('compile', 100.0)


def test_it_can_be_turned_off():
    with Watchdog(Goodput(), 0.0, lambda code: None):
        pass
