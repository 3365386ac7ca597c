"""Abstract modules have the structure of the initialized ones."""

import functools

import jax
import pytest
from flax import nnx

from fv_jax.core.abstract_module import abstract_module
from fv_jax.models.dit import DiT
from fv_jax.models.t5 import T5
from fv_jax.models.vae import VAE
from tests.sampling import tiny
from tests.small_text import SMALL


@pytest.mark.parametrize(
    ('network', 'config'), [(VAE, tiny.VAE_CONFIG), (DiT, tiny.DIT), (T5, SMALL)], ids=['VAE', 'DiT', 'T5']
)
def test_abstract_module_has_the_shapes_of_the_initialized_one(network, config):
    graphdef, state = nnx.split(abstract_module(functools.partial(network, config)))
    expected_graphdef, expected = nnx.split(nnx.eval_shape(lambda: network(config, rngs=nnx.Rngs(0))))
    assert graphdef == expected_graphdef
    assert jax.tree.structure(state) == jax.tree.structure(expected)  # axes are a part of it
    for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert isinstance(leaf, jax.ShapeDtypeStruct) and (leaf.shape, leaf.dtype) == (wanted.shape, wanted.dtype)
