"""What attention over several chips costs by the formulas, and what is chosen."""

import pytest

from fv_jax.core.config import ConfigError
from fv_jax.core.hardware import CHIPS
from fv_jax.kernels.context_cost import Method, Work, choose, methods, seconds

STAGE2 = Work(rows=1, tokens=104_746, heads=30, head_dim=64)
V5E = CHIPS['v5e']


def test_the_formulas():
    numbers = 104_746 * 30 * 64
    compute = 4 * numbers * 104_746 / (8 * 98.5e12)
    gather = 2 * 7 / 8 * numbers * 2 / 45e9
    assert seconds(Method(), STAGE2, 8, V5E) == pytest.approx(3.5 * compute + 2 * gather)
    # Eight groups' worth of heads are 32, two of them padding.
    more = 32 / 30
    exchange = 4 * 7 / 8 * more * numbers / 8 * 2 / 45e9
    assert seconds(Method(heads=8), STAGE2, 8, V5E) == pytest.approx(3.5 * more * compute + 2 * exchange)


def test_a_chip_alone_pays_for_arithmetic_only():
    assert methods(1) == [Method()]
    assert seconds(Method(), STAGE2, 1, V5E) == pytest.approx(3.5 * 4 * 104_746**2 * 1920 / 98.5e12)


def test_every_way_uses_all_chips():
    ways = methods(8)
    assert {m.heads for m in ways} == {1, 2, 4, 8} and len(set(ways)) == len(ways) == 7
    assert Method(8, ring=True) not in ways


def test_what_is_chosen():
    # 30 heads: two groups' worth are 30, four are 32.
    assert choose(STAGE2, 8, V5E) == Method(heads=2)
    assert choose(STAGE2, 8, V5E, heads=1, ring=False) == Method()
    assert choose(STAGE2, 8, V5E, ring=True).ring
    # Without a backward pass, all the ring costs is to merge.
    sampling = Work(rows=2, tokens=104_746, heads=30, head_dim=64, training=False)
    for way in methods(8):
        assert seconds(choose(sampling, 8, V5E), sampling, 8, V5E) <= seconds(way, sampling, 8, V5E)
    # Stage 1: short sequences, 48 heads.
    assert choose(Work(rows=4, tokens=6466, heads=48, head_dim=64), 8, V5E) == Method(heads=8)


@pytest.mark.parametrize(('heads', 'ring'), [(3, None), (8, True)])
def test_what_cannot_be_is_refused(heads, ring):
    with pytest.raises(ConfigError, match=f'heads={heads} and ring={ring}; heads must divide 8'):
        choose(STAGE2, 8, V5E, heads=heads, ring=ring)
