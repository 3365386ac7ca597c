"""Digests of networks: of the numbers, not of the file."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fv_jax import weights
from fv_jax.models.vae import VAEConfig
from fv_jax.text.encoder import TextConfig
from fv_jax.weights import exported_network, reader
from fv_jax.weights.fingerprints import params_fingerprint, sampled_fingerprint
from fv_jax.weights.layouts import key_table
from fv_jax.weights.layouts.key_table import Parameter
from fv_jax.weights.text_encoders import open_text_encoder, text_fingerprint
from tests.sampling import tiny
from tests.small_text import make_folder

VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


def digest(**arrays):
    return params_fingerprint({k: Parameter(x.shape, x.dtype, lambda x=x: x) for k, x in arrays.items()})


def test_fingerprint_depends_on_names_shapes_and_values():
    known = digest(a=VALUES, b=VALUES)
    assert len(known) == 16 and int(known, 16) >= 0
    assert digest(b=VALUES, a=VALUES) == known
    changed = VALUES.copy()
    changed[1, 2] = np.nextafter(changed[1, 2], 9)
    others = [digest(a=VALUES, b=changed), digest(a=VALUES, c=VALUES), digest(a=VALUES, b=VALUES.reshape(3, 2))]
    assert len({known, *others}) == 4


def test_fingerprint_does_not_depend_on_the_stored_dtype():
    for dtype in (np.float16, jnp.bfloat16, np.float64, '>f4'):
        assert digest(a=VALUES.astype(dtype)) == digest(a=VALUES)
    assert digest(a=np.asfortranarray(VALUES)) == digest(a=VALUES)


def test_fingerprint_of_a_vae_is_equal_in_all_formats(tmp_path):
    config = VAEConfig(base_channels=32, multipliers=(1, 1, 1, 1), num_res_blocks=1, latent_channels=4)
    graphdef, abstract = nnx.split(reader.abstract_network(config))
    network = nnx.merge(graphdef, tiny.random(abstract, 0.2))
    known = params_fingerprint(key_table.module_parameters(nnx.state(network)))
    for name in ('3d-vae.pt', 'vae.safetensors'):
        weights.save_official(tmp_path / name, network)
        assert weights.vae_fingerprint(str(tmp_path / name)) == known
    path = str(tmp_path / 'ours.safetensors')
    tiny.save_vae(tmp_path / 'ours.safetensors')
    ours = weights.vae_fingerprint(path)
    assert ours == params_fingerprint(key_table.module_parameters(nnx.state(weights.load_vae(path))))
    assert ours != known != weights.vae_fingerprint('embedded') != ours


def test_fingerprint_of_an_encoder_does_not_depend_on_the_decoder(tmp_path):
    known = {}
    for name, half in (('as it is', None), ('decoder', 'decoder'), ('encoder', 'encoder')):
        network, path = tiny.vae(), tmp_path / f'{name}.safetensors'
        if half is not None:
            bias = getattr(network, half).conv_in.bias
            bias[...] = bias[...] + 1
        exported_network.write(path, key_table.module_parameters(nnx.state(network)), tiny.VAE_CONFIG)
        known[name] = weights.encoder_fingerprint(str(path)), weights.vae_fingerprint(str(path))
    assert known['decoder'][0] == known['as it is'][0] != known['encoder'][0]
    assert len({whole for _, whole in known.values()}) == 3


def test_vae_fingerprint_refuses_a_dit(tmp_path):
    config = dataclasses.replace(tiny.DIT, num_layers=2)
    graphdef, abstract = nnx.split(reader.abstract_network(config))
    weights.save_official(tmp_path / 'stage2.pt', nnx.merge(graphdef, tiny.random(abstract, 0.2)))
    with pytest.raises(ValueError, match='holds a DiT, not a VAE'):
        weights.vae_fingerprint(str(tmp_path / 'stage2.pt'))


@pytest.mark.parametrize('masked', [False, True])
def test_text_fingerprint_reads_no_weights(tmp_path, masked):
    t5 = TextConfig(str(make_folder(tmp_path / 't5')), length=9, masked=masked, dtype='float32')
    for config in (t5, TextConfig('hash', length=5, dim=16)):
        assert text_fingerprint(config) == open_text_encoder(config).fingerprint


def test_sampled_fingerprint_differs_between_networks():
    params = {'a': jnp.arange(6.0).reshape(2, 3), 'b': jnp.ones(10_000)}
    known = sampled_fingerprint(params)
    assert len(known) == 16 and sampled_fingerprint(dict(params)) == known
    others = [params | {'a': params['a'] + 1}, params | {'a': params['a'].T}, {'c': params['a'], 'b': params['b']}]
    assert len({known, *map(sampled_fingerprint, others)}) == 4
