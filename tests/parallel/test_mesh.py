"""Meshes from numbers of chips, and the refusal of those that cannot be."""

import dataclasses

import jax
import numpy as np
import pytest

from fv_jax.core.config import ConfigError
from fv_jax.parallel.mesh import ParallelConfig, describe, make_mesh


@pytest.mark.parametrize(
    ('config', 'shape'),
    [
        ({}, (8, 1, 1, 1)),
        ({'data': 2, 'context': -1}, (2, 1, 4, 1)),
        ({'data': 1, 'fsdp': 4, 'tensor': 2}, (1, 4, 1, 2)),
    ],
)
def test_mesh_uses_every_device(config, shape):
    mesh = make_mesh(ParallelConfig(**config))
    assert mesh.devices.shape == shape and set(mesh.devices.flat) == set(jax.devices())


def test_mesh_description():
    assert describe(make_mesh(ParallelConfig(data=2, context=4))) == '8 cpu device(s) (data 2, context 4)'
    assert describe(make_mesh(ParallelConfig(), jax.devices()[:1])) == '1 cpu device(s)'


@dataclasses.dataclass(frozen=True)
class Chip:
    """As much of a TPU device as laying out a mesh looks at: two slices of four chips."""

    id: int
    platform: str = 'tpu'
    device_kind: str = 'TPU v4'
    core_on_chip: int = 0

    @property
    def slice_index(self):
        return self.id // 4

    @property
    def process_index(self):
        return self.id // 4

    @property
    def coords(self):
        return (self.id % 2, self.id // 2 % 2, 0)


def test_mesh_slices_differ_in_data_only():
    chips = [Chip(i) for i in range(8)]
    rng = np.random.default_rng(0)
    mesh = make_mesh(ParallelConfig(data=2, fsdp=2, context=2), [chips[i] for i in rng.permutation(8)])
    assert [{chip.slice_index for chip in half.flat} for half in mesh.devices] == [{0}, {1}]
    mesh = make_mesh(ParallelConfig(data=-1, context=2), chips)
    assert {chip.slice_index for chip in mesh.devices[:2].flat} == {0}
    with pytest.raises(ConfigError, match=r'parallel\.data=1: must be a multiple of the 2 slices'):
        make_mesh(ParallelConfig(data=1, context=8), chips)


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ({'data': 3, 'context': 2}, 'data 3 x context 2 needs 6 device'),
        ({'data': 1}, 'every axis 1 needs 1 device'),
        ({'context': 3}, r'context 3 does not divide 8 device\(s\); use sizes whose product does'),
        ({'context': -1}, 'data and context: at most one axis may be -1'),
        ({'tensor': 0}, 'tensor=0: must be at least 1, or -1'),
    ],
)
def test_parallel_config_refuses_invalid_sizes(config, message):
    with pytest.raises(ConfigError, match=message):
        make_mesh(ParallelConfig(**config))
