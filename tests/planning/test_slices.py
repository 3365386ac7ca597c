"""Slices by their names."""

import pytest

from fv_jax.core.config import ConfigError
from fv_jax.planning import slices


@pytest.mark.parametrize(
    ('name', 'chips', 'devices', 'topology'),
    [
        ('v4-8', 4, 4, 'v4:2x2x1'),
        ('v5p-8', 4, 4, 'v5p:2x2x1'),
        ('v5p-512', 256, 256, 'v5p:4x8x8'),
        ('v5p:4x8x8', 256, 256, 'v5p:4x8x8'),
        ('v5p:4x4x12', 192, 192, 'v5p:4x4x12'),
        ('v5e-8', 8, 8, 'v5e:2x4'),
        ('v5litepod-8', 8, 8, 'v5e:2x4'),
        ('v6e-1', 1, 1, 'v6e:1x1'),
        ('v5p-384', 192, 192, 'v5p:4x4x12'),
        ('v5p-12288', 6144, 6144, 'v5p:16x16x24'),
        ('v7x-2', 1, 2, 'tpu7x:1x1x1'),
        ('v7x-8', 4, 8, 'tpu7x:2x2x1'),
        ('h100-8', 8, 8, None),
        ('h200-1', 1, 1, None),
    ],
)
def test_a_name_is_so_many_chips(name, chips, devices, topology):
    found = slices.parse(name)
    assert (found.chips, found.devices, found.topology) == (chips, devices, topology)
    assert slices.parse(str(found)) == found


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('v9-8', 'v9 is no known generation; known: v4'),
        ('v5ep-8', 'did you mean v5'),
        ('v5p-6', 'v5p comes in 8, 16'),
        ('v6e-12', 'v6e comes in 1, 4, 8'),
        ('v6e', 'v6e comes in'),
        ('h100-3', 'h100 comes in 1, 2, 4, 8'),
        ('v5e:3x3', 'there is no such slice'),
        ('v5p:4x4', 'is no shape of v5p'),
        ('v5p:3x4x4', 'there is no such slice'),
        ('v5p:12x4x4', 'in rising order'),
        ('v5p-12416', 'multiples of 128 to 12288'),
        ('v5p-08', 'v5p comes in 8, 16'),
        ('h100:2x4', 'is no shape of h100'),
    ],
)
def test_what_does_not_exist_is_said(name, message):
    with pytest.raises(ConfigError, match='--topology=') as error:
        slices.parse(name)
    assert message in str(error.value)


def test_sizes_grow():
    for generation in ('v4', 'v5e', 'h100'):
        chips = [each.chips for each in slices.sizes(generation)]
        assert chips == sorted(chips) and len(set(chips)) == len(chips)
