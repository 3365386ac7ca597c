"""What attention over several chips costs by the formulas, and what is chosen."""

import dataclasses

import pytest

from fv_jax.core.config import ConfigError
from fv_jax.core.hardware import CHIPS
from fv_jax.kernels.context_cost import AttentionShape, ContextParallelPlan, all_plans, cheapest_plan, seconds

STAGE2 = AttentionShape(batch=1, tokens=104_746, heads=30, head_dim=64)
V5E = CHIPS['v5e']


def test_cost_model_formulas():
    numbers = 104_746 * 30 * 64
    compute = 4 * numbers * 104_746 / (8 * 98.5e12)
    gather = 2 * 7 / 8 * numbers * 2 / 50e9
    assert seconds(ContextParallelPlan(), STAGE2, 8, V5E) == pytest.approx(3.5 * compute + 2 * gather)
    # Eight groups' worth of heads are 32, two of them padding.
    more = 32 / 30
    exchange = 4 * 7 / 8 * more * numbers / 8 * 2 / 50e9
    assert seconds(ContextParallelPlan(ulysses_degree=8), STAGE2, 8, V5E) == pytest.approx(
        3.5 * more * compute + 2 * exchange
    )


def test_cost_model_of_one_chip_is_arithmetic_only():
    assert all_plans(1) == [ContextParallelPlan()]
    assert seconds(ContextParallelPlan(), STAGE2, 1, V5E) == pytest.approx(3.5 * 4 * 104_746**2 * 1920 / 98.5e12)


def test_cost_model_of_devices_in_one_package():
    v7x = CHIPS['v7x']
    numbers = 104_746 * 30 * 64
    compute = 4 * numbers * 104_746 / (8 * v7x.attention_flops(64))
    exchange = 4 * 1 / 2 * numbers / 8 * 2 / v7x.package_rate
    # Both devices of a package gather the keys of other heads, over the same links.
    gather = 2 * (2 * 3 / 4 * numbers / 2 * 2 / v7x.link_rate)
    plan = ContextParallelPlan(ulysses_degree=2)
    assert seconds(plan, STAGE2, 8, v7x) == pytest.approx(3.5 * compute + 2 * (exchange + gather))
    assert cheapest_plan(STAGE2, 2, v7x) == plan
    assert cheapest_plan(STAGE2, 2, dataclasses.replace(v7x, package_devices=1)) == ContextParallelPlan()


def test_cost_model_counts_a_core_without_work():
    """Two groups' worth are 15 heads a chip, of which one of two cores has 8 in the backward pass."""
    v5p = CHIPS['v5p']
    plan, free = ContextParallelPlan(ulysses_degree=2), dataclasses.replace(v5p, cores=1)
    compute = 4 * 104_746**2 * 1920 / (4 * v5p.attention_flops(64))
    assert seconds(plan, STAGE2, 4, v5p) - seconds(plan, STAGE2, 4, free) == pytest.approx(2.5 * compute / 15)
    assert cheapest_plan(STAGE2, 4, v5p) == ContextParallelPlan()
    assert cheapest_plan(STAGE2, 4, free) == plan


def test_plans_use_all_chips():
    ways = all_plans(8)
    assert {m.ulysses_degree for m in ways} == {1, 2, 4, 8} and len(set(ways)) == len(ways) == 7
    assert ContextParallelPlan(8, ring=True) not in ways


def test_cheapest_plan():
    # 30 heads: two groups' worth are 30, four are 32.
    assert cheapest_plan(STAGE2, 8, V5E) == ContextParallelPlan(ulysses_degree=2)
    assert cheapest_plan(STAGE2, 8, V5E, ulysses_degree=1, ring=False) == ContextParallelPlan()
    assert cheapest_plan(STAGE2, 8, V5E, ring=True).ring
    # Without a backward pass, all the ring costs is to merge.
    sampling = AttentionShape(batch=2, tokens=104_746, heads=30, head_dim=64, training=False)
    for way in all_plans(8):
        assert seconds(cheapest_plan(sampling, 8, V5E), sampling, 8, V5E) <= seconds(way, sampling, 8, V5E)
    # Stage 1: short sequences, 48 heads.
    assert cheapest_plan(AttentionShape(batch=4, tokens=6466, heads=48, head_dim=64), 8, V5E) == ContextParallelPlan(
        ulysses_degree=8
    )


@pytest.mark.parametrize(('heads', 'ring'), [(3, None), (8, True)])
def test_cheapest_plan_refuses_impossible_settings(heads, ring):
    with pytest.raises(ConfigError, match=f'ulysses_degree={heads} and ring={ring}'):
        cheapest_plan(STAGE2, 8, V5E, ulysses_degree=heads, ring=ring)
