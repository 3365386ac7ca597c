"""The search for the largest batch and the cheapest remat, with memory given by a formula."""

import pytest

from fv_jax.core.config import ConfigError
from fv_jax.planning.search import search_batch_size


def memory_model(limit, *, state=10.0, full=1.0, dots=3.0, none=9.0, quadratic=0.0):
    tried = []

    def peak_bytes(batch_size, remat):
        tried.append((batch_size, remat))
        size = state + batch_size * {'full': full, 'dots': dots, 'none': none}[remat] + quadratic * batch_size**2
        return size if size <= limit else None

    return peak_bytes, tried


@pytest.mark.parametrize('limit', [12.0, 14.5, 20.0, 37.0, 100.0, 1000.0])
@pytest.mark.parametrize('step', [1, 2, 4])
def test_search_finds_the_largest_batch_in_few_compiles(limit, step):
    peak_bytes, tried = memory_model(limit)
    if 10 + step > limit:
        with pytest.raises(ConfigError, match='does not fit'):
            search_batch_size(peak_bytes, step, limit)
        return
    result = search_batch_size(peak_bytes, step, limit)
    assert result.batch_size == int((limit - 10) // step) * step
    assert len(tried) <= 8 and len(set(tried)) == len(tried)


def test_search_stays_below_the_limit_if_memory_grows_faster_than_linearly():
    peak_bytes, _ = memory_model(100.0, quadratic=0.05)
    result = search_batch_size(peak_bytes, 1, 100.0)
    assert result.peak_bytes <= 100.0 and peak_bytes(result.batch_size + 2, 'full') is None


def test_search_chooses_the_cheapest_remat_that_fits_at_the_largest_batch():
    for limit, remat in ((30.0, 'full'), (11.9, 'full')):
        assert search_batch_size(memory_model(limit)[0], 1, limit).remat == remat
    assert search_batch_size(memory_model(30.0, dots=1.0)[0], 1, 30.0).remat == 'dots'
    assert search_batch_size(memory_model(30.0, dots=1.0, none=1.0)[0], 1, 30.0).remat == 'none'


def test_search_raises_if_the_smallest_batch_does_not_fit():
    with pytest.raises(ConfigError, match='batch_size=8'):
        search_batch_size(memory_model(5.0)[0], 8, 5.0)
