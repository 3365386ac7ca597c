"""Names of TPU slices and GPUs: chips, devices and topology; errors."""

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
def test_slice_names_give_chips_devices_and_topology(name, chips, devices, topology):
    parsed = slices.parse(name)
    assert (parsed.chips, parsed.devices, parsed.libtpu_name) == (chips, devices, topology)
    assert slices.parse(str(parsed)) == parsed


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('v9-8', "unknown generation 'v9'; known: v4"),
        ('v5ep-8', 'did you mean v5'),
        ('v5p-6', 'v5p comes in 8, 16'),
        ('v6e-12', 'v6e comes in 1, 4, 8'),
        ('v6e', 'v6e comes in'),
        ('h100-3', 'h100 comes in 1, 2, 4, 8'),
        ('v5e:3x3', 'does not exist'),
        ('v5p:4x4', 'is not a topology of v5p'),
        ('v5p:3x4x4', 'does not exist'),
        ('v5p:12x4x4', 'in ascending order'),
        ('v5p-12416', 'multiples of 128 up to 12288'),
        ('v5p-08', 'v5p comes in 8, 16'),
        ('h100:2x4', 'is not a topology of h100'),
    ],
)
def test_unknown_slice_is_an_error_that_names_the_alternatives(name, message):
    with pytest.raises(ConfigError, match='--topology=') as error:
        slices.parse(name)
    assert message in str(error.value)


def test_slices_are_listed_in_ascending_size():
    for generation in ('v4', 'v5e', 'h100'):
        chips = [each.chips for each in slices.list_slices(generation)]
        assert chips == sorted(chips) and len(set(chips)) == len(chips)
