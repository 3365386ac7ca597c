"""Single files of our own networks: round trips, sizes, and errors."""

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from fv_jax import weights
from fv_jax.weights import exported_network
from fv_jax.weights.formats import safetensors_file
from fv_jax.weights.layouts import key_table
from tests.sampling import tiny


def params(network):
    return nnx.to_pure_dict(nnx.split(network)[1])


@pytest.fixture
def path(tmp_path):
    found = tmp_path / 'vae.safetensors'
    tiny.save_vae(found)
    return found


def test_exported_network_round_trip_in_float16(path):
    network = tiny.vae()
    back = weights.load_vae(str(path))
    assert back.config == network.config
    leaves = zip(jax.tree.leaves(params(back)), jax.tree.leaves(params(network)), strict=True)
    for after, before in leaves:
        assert after.dtype == np.float32
        np.testing.assert_array_equal(after, np.asarray(before).astype(np.float16))
    count = sum(leaf.size for leaf in jax.tree.leaves(params(network)))
    assert 2 * count < path.stat().st_size < 2 * count + 40_000
    x = np.zeros((1, 1, 8, 8, 3), np.float32)
    assert back.encoder(x, {})[0].shape == (1, 1, 1, 1, 2 * tiny.VAE_CONFIG.latent_channels)


def test_exported_network_of_float16_parameters_is_reproducible(path, tmp_path):
    again = tmp_path / 'again.safetensors'
    exported_network.write(again, key_table.module_parameters(nnx.state(exported_network.load(path))), tiny.VAE_CONFIG)
    assert again.read_bytes() == path.read_bytes()


def write_changed(path, change):
    tensors = load_file(path)
    name = next(iter(sorted(tensors)))
    change(tensors, name)
    metadata = safetensors_file.read(path)[1]
    save_file(tensors, path, metadata)
    return name


def test_exported_network_without_a_tensor_is_refused(path):
    name = write_changed(path, lambda tensors, name: tensors.pop(name))
    with pytest.raises(ValueError, match=f'{name} is missing'):
        exported_network.load(path)


def test_exported_network_with_a_wrong_shape_is_refused(path):
    name = write_changed(path, lambda tensors, name: tensors.update({name: np.zeros(3, np.float16)}))
    with pytest.raises(ValueError, match=rf'{name} has shape \(3,\), must be'):
        exported_network.load(path)


def test_exported_network_with_an_unknown_tensor_is_refused(path):
    write_changed(path, lambda tensors, name: tensors.update(more=np.zeros(3, np.float16)))
    with pytest.raises(ValueError, match=r'more .1 in total. is not a parameter of the network'):
        exported_network.load(path)


def test_exported_network_refuses_other_files(tmp_path):
    text = tmp_path / 'text.safetensors'
    text.write_text('no weights')
    with pytest.raises(ValueError, match=r'text.safetensors: not a safetensors file'):
        exported_network.load(text)
    other = tmp_path / 'other.safetensors'
    save_file({'x': np.zeros(3)}, other)
    with pytest.raises(ValueError, match='does not contain a network of this project'):
        exported_network.load(other)


@pytest.mark.parametrize('read', [weights.load_vae, weights.vae_config, weights.vae_fingerprint])
def test_load_vae_names_a_missing_file_and_the_field(tmp_path, read):
    missing = str(tmp_path / '3d-vae.pt')
    with pytest.raises(FileNotFoundError, match=rf'{missing}: does not exist; .* config.stage.vae .* embedded'):
        read(missing)


def test_vae_path(tmp_path):
    assert weights.vae_path('embedded').name == 'vae_tiny.safetensors'
    assert weights.vae_path(str(tmp_path / '3d-vae.pt')) == tmp_path / '3d-vae.pt'
