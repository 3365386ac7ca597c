"""Checks that raise where a condition does not hold."""

import pytest

from fv_jax.core.checks import require


def test_require():
    require([1], 'never said')
    with pytest.raises(ValueError, match=r'^size=0: must be positive$'):
        require(0, 'size=0: must be positive')
    with pytest.raises(OSError, match='full'):
        require(False, 'full', OSError)
