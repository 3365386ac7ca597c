"""CogVideoX folders in diffusers' layout, made by hand: names, packing, what has no counterpart, what is refused."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from fv_jax.models.dit import DiTConfig
from fv_jax.models.vae import VAEConfig
from fv_jax.weights import load_official, load_vae, reader
from fv_jax.weights.layouts import diffusers_keys
from fv_jax.weights.layouts.key_table import KeyMismatchError

TRANSFORMER = {
    '_class_name': 'CogVideoXTransformer3DModel',
    '_diffusers_version': '0.31.0',
    'num_attention_heads': 2,
    'attention_head_dim': 16,
    'num_layers': 2,
    'in_channels': 3,
    'out_channels': 3,
    'text_embed_dim': 5,
    'time_embed_dim': 8,
    'use_rotary_positional_embeddings': True,
    'norm_eps': 1e-5,
    'sample_frames': 49,
}
VAE = {
    '_class_name': 'AutoencoderKLCogVideoX',
    'block_out_channels': [32, 64, 64, 96],
    'layers_per_block': 1,
    'latent_channels': 4,
    'scaling_factor': 0.7,
    'temporal_compression_ratio': 4,
}
CONFIG = DiTConfig(
    latent_channels=3,
    embed_dim=32,
    num_layers=2,
    num_heads=2,
    mlp_dim=128,
    cond_dim=8,
    text_dim=5,
    embed_num_frames=False,
    embed_noise_augmentation_timestep=False,
)


def transformer_shapes():
    dim, cond = 32, 8
    weights = {
        'patch_embed.proj': (dim, 3, 2, 2),
        'patch_embed.text_proj': (dim, 5),
        'time_embedding.linear_1': (cond, dim),
        'time_embedding.linear_2': (cond, cond),
        'norm_final': (dim,),
        'norm_out.linear': (2 * dim, cond),
        'norm_out.norm': (dim,),
        'proj_out': (12, dim),
    }
    for i in range(2):
        block = f'transformer_blocks.{i}'
        weights |= {f'{block}.attn1.{name}': (dim, dim) for name in ('to_q', 'to_k', 'to_v', 'to_out.0')}
        weights |= {f'{block}.attn1.norm_{name}': (16,) for name in 'qk'}
        weights |= {f'{block}.norm{j}.norm': (dim,) for j in (1, 2)}
        weights |= {f'{block}.norm{j}.linear': (6 * dim, cond) for j in (1, 2)}
        weights |= {f'{block}.ff.net.0.proj': (4 * dim, dim), f'{block}.ff.net.2': (dim, 4 * dim)}
    return weights


def vae_shapes():
    widths = [32, 64, 64, 96]
    weights = {
        'encoder.conv_in.conv': (32, 3, 3, 3, 3),
        'encoder.norm_out': (96,),
        'encoder.conv_out.conv': (8, 96, 3, 3, 3),
        'decoder.conv_in.conv': (96, 4, 3, 3, 3),
        'decoder.conv_out.conv': (3, 32, 3, 3, 3),
    } | spatial_norm('decoder.norm_out', 32)
    for i, width in enumerate(widths):
        weights |= res_block(f'encoder.down_blocks.{i}.resnets.0', widths[max(i - 1, 0)], width)
        if i < 3:
            weights[f'encoder.down_blocks.{i}.downsamplers.0.conv'] = (width, width, 3, 3)
    for i, width in enumerate(reversed(widths)):  # from the coarsest
        into = widths[::-1][max(i - 1, 0)]
        weights |= res_block(f'decoder.up_blocks.{i}.resnets.0', into, width, spatial=True)
        weights |= res_block(f'decoder.up_blocks.{i}.resnets.1', width, width, spatial=True)
        if i < 3:
            weights[f'decoder.up_blocks.{i}.upsamplers.0.conv'] = (width, width, 3, 3)
    for i in range(2):
        weights |= res_block(f'encoder.mid_block.resnets.{i}', 96, 96)
        weights |= res_block(f'decoder.mid_block.resnets.{i}', 96, 96, spatial=True)
    return weights


def spatial_norm(name, size):
    return {f'{name}.norm_layer': (size,)} | {f'{name}.conv_{x}.conv': (size, 4, 1, 1, 1) for x in 'yb'}


def res_block(name, into, out, spatial=False):
    weights = {f'{name}.conv1.conv': (out, into, 3, 3, 3), f'{name}.conv2.conv': (out, out, 3, 3, 3)}
    for i, size in ((1, into), (2, out)):
        weights |= spatial_norm(f'{name}.norm{i}', size) if spatial else {f'{name}.norm{i}': (size,)}
    return weights | ({f'{name}.conv_shortcut': (out, into, 1, 1, 1)} if into != out else {})


def random_tensors(shapes):
    rng = np.random.default_rng(0)
    tensors = {f'{key}.weight': rng.standard_normal(shape) for key, shape in shapes.items()}
    tensors |= {f'{key}.bias': rng.standard_normal(shape[:1]) for key, shape in shapes.items()}
    return {key: x.astype(np.float16) for key, x in tensors.items()}


def write(folder, config, tensors):
    folder.mkdir(exist_ok=True)
    (folder / 'config.json').write_text(json.dumps(config))
    save_file(tensors, folder / 'diffusion_pytorch_model.safetensors')
    return folder


@pytest.fixture(scope='module')
def tensors():
    return random_tensors(transformer_shapes())


@pytest.fixture
def folder(tmp_path, tensors):
    return write(tmp_path / 'transformer', TRANSFORMER, tensors)


def test_diffusers_transformer(folder, tensors):
    model = load_official(folder)
    assert model.config == CONFIG
    blocks = {'.'.join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(model))}
    for i in range(2):
        block = f'transformer_blocks.{i}.'
        for part, name in enumerate('qkv'):
            kernel = blocks['blocks.attention.qkv.kernel'][i, :, part]
            np.testing.assert_array_equal(kernel, tensors[f'{block}attn1.to_{name}.weight'].T)
            bias = blocks['blocks.attention.qkv.bias'][i, part]
            np.testing.assert_array_equal(bias, tensors[f'{block}attn1.to_{name}.bias'])
        # Ours: (video, text) x (attention, mlp) x (shift, scale, gate); theirs: two, each (video, text) x three.
        kernel = blocks['blocks.modulation.kernel'][i].reshape(8, 2, 2, 3, 32)
        for j, norm in enumerate(('norm1', 'norm2')):
            theirs = tensors[f'{block}{norm}.linear.weight'].reshape(2, 3, 32, 8)
            np.testing.assert_array_equal(kernel[:, :, j].transpose(1, 2, 3, 0), theirs)
        np.testing.assert_array_equal(blocks['blocks.mlp.out.kernel'][i], tensors[f'{block}ff.net.2.weight'].T)
        np.testing.assert_array_equal(blocks['blocks.mlp_norm.scale'][i], tensors[f'{block}norm2.norm.weight'])
        np.testing.assert_array_equal(blocks['blocks.attention.k_norm.bias'][i], tensors[f'{block}attn1.norm_k.bias'])
    np.testing.assert_array_equal(blocks['output.norm.scale'], tensors['norm_out.norm.weight'])
    np.testing.assert_array_equal(blocks['time_embed.out.kernel'], tensors['time_embedding.linear_2.weight'].T)


def test_diffusers_packed_tensors_round_trip(tensors):
    for row in diffusers_keys.transformer_table(CONFIG).rows:
        keys = [key.replace('{i}', '0') for key, _ in row.official]
        parameter = row.to_ours(*(tensors[key] for key in keys))
        for key, tensor in zip(
            keys, row.transform.to_official(parameter, tuple(s for _, s in row.official)), strict=True
        ):
            np.testing.assert_array_equal(tensor, tensors[key], err_msg=key)


def test_diffusers_vae(tmp_path):
    shapes = vae_shapes()
    tensors = random_tensors(shapes)
    network = load_vae(str(write(tmp_path / 'vae', VAE, tensors)))
    assert network.config == VAEConfig(
        base_channels=32, multipliers=(1, 2, 2, 3), num_res_blocks=1, latent_channels=4, groups=32
    )
    coarsest = network.decoder.up[0][0].conv1.kernel[...]
    theirs = tensors['decoder.up_blocks.0.resnets.0.conv1.conv.weight']
    np.testing.assert_array_equal(coarsest, theirs.transpose(2, 3, 4, 1, 0))
    shortcut = network.encoder.down[3][0].nin_shortcut.kernel[...]
    np.testing.assert_array_equal(
        shortcut, tensors['encoder.down_blocks.3.resnets.0.conv_shortcut.weight'][..., 0, 0, 0].T
    )
    assert reader.open_weights(tmp_path / 'vae').notes == (
        "its latents are multiplied by 0.7: set the stage's scale_factor to it",
    )


def test_diffusers_tensors_without_counterpart_are_reported(tmp_path, tensors):
    config = TRANSFORMER | {'use_rotary_positional_embeddings': False}
    more = tensors | {'patch_embed.pos_embedding': np.zeros((1, 4, 32), np.float16)}
    source = reader.open_weights(
        write(tmp_path / 'transformer', config, more),
        like={'embed_num_frames': True, 'embed_noise_augmentation_timestep': True},
    )
    assert [note[:40] for note in source.notes] == [
        'without a counterpart: its position tabl',
        'without a counterpart: patch_embed.pos_e',
        'norm_out.norm: its eps is 1e-05 there an',
        'not in the folder, newly initialised: fr',
        'not in the folder, newly initialised: so',
    ]
    values = source.parameters()
    assert not np.any(values['frames_embed.out.kernel'].numpy()) and np.any(
        values['source_embed.hidden.kernel'].numpy()
    )
    network = source.network()
    assert network.config.embed_num_frames and network.config.embed_noise_augmentation_timestep
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(nnx.state(network)))


def test_diffusers_missing_tensors_are_named(tmp_path, tensors):
    wrong = dict(tensors)
    del wrong['transformer_blocks.1.attn1.to_k.weight']
    wrong |= {'norm_final.weight': np.zeros(31, np.float16), 'ofs_embedding.linear_1.bias': np.zeros(3, np.float16)}
    with pytest.raises(KeyMismatchError) as error:
        load_official(write(tmp_path / 'transformer', TRANSFORMER, wrong))
    assert str(error.value).splitlines()[1:] == [
        '1 unknown:',
        '  ofs_embedding.linear_1.bias',
        '1 missing:',
        '  transformer_blocks.1.attn1.to_k.weight',
        '1 mismatched:',
        '  norm_final.weight: (31,) float16, expected (32,) floating point',
    ]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'patch_size_t': 2}, 'patch_size_t is 2, ours is always None'),
        ({'in_channels': 6}, 'in_channels is 6 and out_channels 3: image to video'),
        ({'ofs_embed_dim': 512}, 'ofs_embed_dim is 512'),
        ({'_class_name': 'WanTransformer3DModel'}, "names 'WanTransformer3DModel', must be 'CogVideoX"),
    ],
)
def test_diffusers_other_networks_are_refused(folder, change, message):
    (folder / 'config.json').write_text(json.dumps(TRANSFORMER | change))
    with pytest.raises(ValueError, match=message):
        load_official(folder)


def test_diffusers_vae_with_other_features_is_refused(tmp_path):
    folder = write(tmp_path / 'vae', VAE | {'use_quant_conv': True}, {'x': np.zeros(1)})
    with pytest.raises(ValueError, match='unsupported CogVideoX: use_quant_conv is True, ours is always False'):
        load_official(folder)
