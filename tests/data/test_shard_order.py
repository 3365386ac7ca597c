"""The order of examples of shards that are fetched one by one."""

import collections

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from fv_jax.data.shard_order import ShardLayout, ShardOrder


def layout(counts: list[int], window: int) -> ShardLayout:
    return ShardLayout(np.array(counts), np.zeros(len(counts), int), window)


COUNTS = st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(any)


@hypothesis.given(COUNTS, st.integers(1, 15), st.integers(0, 2**32 - 1))
def test_order_has_every_record_once_an_epoch(counts: list[int], window: int, seed: int) -> None:
    order, n = ShardOrder(layout(counts, window), seed), sum(counts)
    for epoch in (0, 1, 10**9):
        assert sorted(order[epoch * n + j] for j in range(n)) == list(range(n))


@hypothesis.given(COUNTS, st.integers(1, 15))
def test_order_needs_a_window_of_shards_of_which_one_is_new(counts: list[int], window: int) -> None:
    order, n = ShardOrder(layout(counts, window), 7), sum(counts)
    shards = [order.shard(record) for record in range(n)]
    assert shards == np.repeat(np.arange(len(counts)), counts).tolist()
    before = None
    for j in range(n):
        here = order.window(j)
        assert shards[order[j]] in here and all(counts[s] for s in here)
        assert len(set(here)) == len(here) == min(window, np.count_nonzero(counts))
        # A slot without records needs nothing: more than one shard is new after it.
        if before is not None and min(counts) >= window:
            assert len(set(here) - set(before)) <= 1
        before = here


def test_order_uses_a_shard_during_as_many_slots_as_the_window() -> None:
    order = ShardOrder(layout([64] * 20, 4), 0)
    places = collections.defaultdict(list)
    for j in range(20 * 64):
        places[order.shard(order[j])].append(j // 64)  # slots have 64 records
    for slots in places.values():
        counts = collections.Counter(slots)
        assert len(counts) == 4 and set(counts.values()) == {16}


def test_order_depends_on_the_seed_and_the_epoch() -> None:
    orders = {
        tuple(ShardOrder(layout([6] * 5, 2), seed)[epoch * 30 + j] for j in range(30))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_order_of_a_window_of_all_shards_mixes_all_of_them() -> None:
    order = ShardOrder(layout([160] * 8, 100), 0)
    for slot in range(8):
        shards = [order.shard(order[slot * 160 + j]) for j in range(160)]
        assert set(collections.Counter(shards).values()) == {20}


def test_order_within_a_slot_is_shuffled() -> None:
    order = ShardOrder(layout([100] * 50, 10), 3)
    shards = np.array([order.shard(order[j]) for j in range(1000, 1100)])
    switches = np.count_nonzero(np.diff(shards))
    assert switches == pytest.approx(90, abs=12)  # of ten shards in random order, nine of ten neighbours differ


def test_order_of_shards_is_the_same_in_every_bucket() -> None:
    first = ShardOrder(layout([4, 0, 3, 5, 1, 2], 2), 3)
    second = ShardOrder(layout([1, 2, 0, 1, 1, 1], 2), 3)
    both = [s for s in first._epoch(0).shards if s in second._epoch(0).shards]
    assert both == [s for s in second._epoch(0).shards if s in first._epoch(0).shards]


def test_order_is_the_one_of_earlier_versions() -> None:
    """A run resumes with another version: what follows must not be drawn otherwise."""
    order = ShardOrder(layout([3, 1, 4, 2], 2), 5)
    assert [order[r] for r in range(20)] == [9, 2, 1, 8, 3, 4, 6, 0, 5, 7, 7, 3, 4, 6, 5, 1, 0, 9, 2, 8]
