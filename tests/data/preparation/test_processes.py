"""Shards of plans, shared among processes: here threads, which exchange texts by a dict."""

import functools
import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fv_jax.core import config as config_lib
from fv_jax.data.preparation import processes, sets
from fv_jax.data.preparation.plan import Header, Plan, write_plan
from fv_jax.data.preparation.processes import Processes
from fv_jax.data.preparation.units import Unit
from fv_jax.data.video.clips import ClipsConfig

CONFIG = ClipsConfig(shard_mb=1.0)
MADE_WITH = {'config': json.loads(json.dumps(config_lib.to_dict(CONFIG)))}


class FakeMessages:
    """Of one process; `texts` is shared by all."""

    def __init__(self, texts: dict[str, str], index: int, count: int):
        self.texts, self.index, self.count = texts, index, count

    def send(self, key: str, text: str) -> None:
        assert self.texts.setdefault(key, text) is text, f'{key} was sent before'

    def receive(self, key: str) -> str:
        while key not in self.texts:
            time.sleep(0.001)
        return self.texts[key]


def make_plan(folder: Path, count: int) -> Plan:
    """A plan of so many shards of one unit each."""
    units = [Unit(f'{i:03d}.mp4', f'{folder}/{i:03d}.mp4', 1_000_000) for i in range(count)]
    plan = write_plan(sets.work_folder(folder, CONFIG.name), Header(CONFIG.name, MADE_WITH), units, CONFIG)
    assert plan.num_shards == count
    return plan


def complete(plan: Plan, number: int) -> None:
    """Makes the two files of a shard."""
    plan.shard(number).write_bytes(b'')
    plan.shard(number).with_suffix('.json').write_bytes(b'{}')


def run(plan: Plan, count: int, make: Callable[[int, Plan, Sequence[int]], None], made_with=MADE_WITH) -> list[int]:
    """Runs the missing shards in so many processes, then ends; returns the exit codes of the others."""
    texts: dict[str, str] = {}
    members = [Processes(FakeMessages(texts, i, count), functools.partial(make, i)) for i in range(count)]
    with ThreadPoolExecutor(count) as pool:
        others = [pool.submit(member.follow, plan.folder, made_with) for member in members[1:]]
        try:
            members[0].make_shards(plan, plan.missing())
        finally:
            members[0].finish(3)
        return [other.result() for other in others]


@pytest.mark.parametrize(('shards', 'count'), [(7, 2), (7, 3), (2, 4), (64, 8)])
def test_processes_make_every_missing_shard_once(tmp_path, shards, count):
    plan, made, lock = make_plan(tmp_path, shards), {}, threading.Lock()
    before = {number for number in range(shards) if number % 5 == 1}
    for number in before:
        complete(plan, number)

    def make(process, plan, numbers):
        for number in numbers:
            complete(plan, number)
            with lock:
                made.setdefault(process, []).append(number)

    assert run(plan, count, make) == [3] * (count - 1)
    numbers = [number for of_process in made.values() for number in of_process]
    assert sorted(numbers) == sorted(set(range(shards)) - before) and not plan.missing()
    sizes = [len(made.get(process, ())) for process in range(count)]
    assert max(sizes) - min(sizes) <= 1, sizes


def test_failed_process_costs_no_shards_of_others(tmp_path):
    plan = make_plan(tmp_path, 9)

    def make(process, plan, numbers):
        for number in numbers:
            if process == 1 and number > 3:
                raise OSError(f'{number}: the disk\nis full')
            complete(plan, number)

    with pytest.raises(OSError, match='process 1: 4: the disk is full'):
        run(plan, 3, make)
    assert plan.missing() == [4, 7]


def test_shards_that_are_seen_late_are_waited_for(tmp_path, monkeypatch):
    plan, seen = make_plan(tmp_path, 4), []
    monkeypatch.setattr(processes, '_POLL_S', 0.01)
    missing = Plan.missing
    monkeypatch.setattr(Plan, 'missing', lambda self: [3] if len(seen) < 3 and not seen.append(0) else missing(self))

    def make(process, plan, numbers):
        for number in numbers:
            complete(plan, number)

    texts: dict[str, str] = {}
    first, other = (Processes(FakeMessages(texts, i, 2), functools.partial(make, i)) for i in range(2))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(other.follow, plan.folder, MADE_WITH)
        first.make_shards(plan, range(4))
        first.finish(0)
    assert len(seen) == 3 and not missing(plan)


def test_plan_of_other_settings_or_that_is_not_seen_is_an_error(tmp_path):
    plan, nothing = make_plan(tmp_path, 2), lambda plan, numbers: None
    messages = FakeMessages({'1': json.dumps({'numbers': processes._pack([0, 1])})}, 1, 2)
    with pytest.raises(ValueError, match='process 1 has other settings than process 0: latents is None there'):
        Processes(messages, nothing).follow(plan.folder, MADE_WITH | {'latents': {'vae': 'abc'}})
    with pytest.raises(
        OSError, match='elsewhere: process 1 does not see the plan of process 0; name an output that all'
    ):
        Processes(messages, nothing).follow(tmp_path / 'elsewhere', MADE_WITH)


def test_numbers_pass_as_a_short_text():
    for numbers in ([], [0], [7], [1, 8, 63], list(range(1000))):
        assert processes._unpack(processes._pack(numbers)) == numbers
    assert len(processes._pack(range(1_000_000))) < 170_000
