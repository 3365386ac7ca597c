"""The search for a batch, on memory that is a formula."""

import pytest

from fv_jax.core.config import ConfigError
from fv_jax.planning.search import search


def memory(limit, *, state=10.0, full=1.0, dots=3.0, none=9.0, bend=0.0):
    tried = []

    def needed(batch, remat):
        tried.append((batch, remat))
        size = state + batch * {'full': full, 'dots': dots, 'none': none}[remat] + bend * batch**2
        return size if size <= limit else None

    return needed, tried


@pytest.mark.parametrize('limit', [12.0, 14.5, 20.0, 37.0, 100.0, 1000.0])
@pytest.mark.parametrize('step', [1, 2, 4])
def test_it_finds_the_largest_batch_in_few_compiles(limit, step):
    needed, tried = memory(limit)
    if 10 + step > limit:
        with pytest.raises(ConfigError, match='does not fit'):
            search(needed, step, limit)
        return
    found = search(needed, step, limit)
    assert found.batch == int((limit - 10) // step) * step
    assert len(tried) <= 8 and len(set(tried)) == len(tried)


def test_memory_that_bends_is_not_overrun():
    needed, _ = memory(100.0, bend=0.05)
    found = search(needed, 1, 100.0)
    assert found.needed <= 100.0 and needed(found.batch + 2, 'full') is None


def test_the_cheapest_remat_that_fits_with_that_batch():
    for limit, remat in ((30.0, 'full'), (11.9, 'full')):
        assert search(memory(limit)[0], 1, limit).remat == remat
    assert search(memory(30.0, dots=1.0)[0], 1, 30.0).remat == 'dots'
    assert search(memory(30.0, dots=1.0, none=1.0)[0], 1, 30.0).remat == 'none'


def test_nothing_fits():
    with pytest.raises(ConfigError, match='batch_size=8'):
        search(memory(5.0)[0], 8, 5.0)
