"""A run that does not move is ended, with every stack; one that does is not."""

import time

from fv_jax.core.exits import STUCK
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


def test_a_save_beside_the_steps_that_does_not_end_is_one_that_does_not_move(tmp_path):
    ended, since = [], time.monotonic()
    goodput = Goodput()
    with (tmp_path / 'said').open('w+') as stream:
        with Watchdog(goodput, 0.3, ended.append, stream, saving_since=lambda: since):
            while not ended and time.monotonic() < since + 20:
                goodput.moved()
                time.sleep(0.02)
        stream.seek(0)
        assert stream.read().startswith('STUCK: a save beside the steps has not ended for 0 s')
    assert ended == [STUCK]
    with Watchdog(goodput, 0.3, ended.append, saving_since=lambda: None):
        time.sleep(0.1)
    assert ended == [STUCK]


def test_it_can_be_turned_off():
    with Watchdog(Goodput(), 0.0, lambda code: None):
        pass
