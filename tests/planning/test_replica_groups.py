"""Groups of devices, in each notation of HLO text."""

import numpy as np
import pytest

from fv_jax.planning.replica_groups import parse_groups, parse_pairs


@pytest.mark.parametrize(
    'attributes, groups',
    [
        ('replica_groups={{0,1},{2,3}}, dimensions={0}', [[0, 1], [2, 3]]),
        ('replica_groups={}', [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ('dimensions={0}', [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ('replica_groups=[2,4]<=[8], use_global_device_ids=true', [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ('replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}', [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%add", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("replica_groups=mesh['a'=8] {'a':(4)2}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("replica_groups=mesh['a'=8] {'a':(1)2}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ],
)
def test_groups(attributes, groups):
    np.testing.assert_array_equal(parse_groups(f'%x), {attributes}', 8), groups)


def test_pairs():
    np.testing.assert_array_equal(parse_pairs('%x), source_target_pairs={{0,1},{1,2}}, channel_id=1'), [[0, 1], [1, 2]])
    assert parse_pairs('%x), channel_id=1').shape == (0, 2)
