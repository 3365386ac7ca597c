"""Checks that raise where a condition does not hold."""

import pytest

from fv_jax.core.checks import error_context, require


def test_require_raises_unless_the_condition_holds():
    require([1], 'never raised')
    with pytest.raises(ValueError, match=r'^size=0: must be positive$'):
        require(0, 'size=0: must be positive')
    with pytest.raises(OSError, match='full'):
        require(False, 'full', OSError)


def test_error_context_prefixes_the_message_and_changes_the_type():
    with pytest.raises(OSError, match=r'^--size=3: too small, use 4$'), error_context('--size=3: ', error=OSError):
        raise ValueError('too small,\n use 4')
    with pytest.raises(ValueError, match=r'^a: KeyError$'), error_context('a: ', (KeyError, TypeError)):
        raise KeyError
    with pytest.raises(TypeError, match=r'^not caught$'), error_context('a: '):
        raise TypeError('not caught')
    with error_context('a: '):
        pass
