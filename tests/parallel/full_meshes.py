"""Sampling over more meshes than test_sampling_mesh.py: a part of launch/check_long.sh."""

import numpy as np
import pytest

from fv_jax.parallel.mesh import ParallelConfig
from tests.parallel.test_sampling_mesh import (
    DOG,
    alone,
    assert_samples_like_one,
    clip,
    expected,
    folder,
    open_pipeline,
)

__all__ = ['alone', 'clip', 'expected', 'folder']  # fixtures

MESHES = {
    'context 8': (8, ParallelConfig(data=1, context=8)),
    'fsdp 2, context 4': (8, ParallelConfig(data=1, fsdp=2, context=4)),
    'sharded weights': (8, ParallelConfig(data=1, fsdp=2, context=4, strategy='fsdp')),
    'three devices': (3, None),
}


@pytest.mark.parametrize(('num_devices', 'parallel'), MESHES.values(), ids=MESHES)
def test_sampling_over_a_mesh_equals_one_device(num_devices, parallel, folder, clip, expected):
    assert_samples_like_one(num_devices, parallel, folder, clip, expected)


def test_eight_prompts_over_eight_devices(folder, alone):
    """Each device has one prompt, with both branches of guidance."""
    prompts, seeds = [f'{DOG} {i}' for i in range(8)], list(range(8))
    fv = open_pipeline(folder, 8, ParallelConfig(data=8))
    previews, single = fv.preview(prompts, seeds), alone.preview(prompts, seeds)
    for got, wanted in zip(previews, single, strict=True):
        np.testing.assert_allclose(got.latents, wanted.latents, atol=1e-3)
