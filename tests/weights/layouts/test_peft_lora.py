"""LoRA in PEFT's naming: names and shapes that PEFT itself gives, the product of the matrices, what does not fit."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fv_jax.models.lora import LoRAConfig
from fv_jax.weights.layouts import official_dit, peft_lora
from fv_jax.weights.layouts.key_table import KeyMismatchError
from tests.weights.layouts.test_diffusers_export import PLAIN, RECORDED, random_values

ALL = ('qkv', 'attention_out', 'modulation', 'mlp')
LORA = LoRAConfig(rank=2, alpha=3.0, targets=ALL)
WITH_LORA = dataclasses.replace(PLAIN, lora=LORA)
BLOCK = 'transformer_blocks.1'


def merged(values, config):
    found, _ = official_dit.merge_lora_parameters(values, config)
    return {name: value.numpy() for name, value in found.items()}


def base():
    return random_values(PLAIN)


def write(path, tensors, **metadata):
    save_file({key: np.ascontiguousarray(x, np.float32) for key, x in tensors.items()}, path, metadata)
    return path


def random_lora(rank=2, module='attn1.to_out.0', into=32, out=32, seed=0):
    rng = np.random.default_rng(seed)
    name = f'transformer.{BLOCK}.{module}'
    a, b = rng.standard_normal((rank, into)), rng.standard_normal((out, rank))
    return {f'{name}.lora_A.weight': a, f'{name}.lora_B.weight': b}


def difference(path, name):
    """What the file adds to a kernel of the second block, (in, out)."""
    values, config = peft_lora.add(path, base(), PLAIN)
    before, after = merged(base(), PLAIN)[name], merged(values, config)[name]
    assert not np.any(after[0] - before[0])
    return (after - before)[1], config.lora


def test_lora_has_the_names_and_shapes_of_peft(tmp_path):
    peft_lora.write(tmp_path / 'lora.safetensors', random_values(WITH_LORA), WITH_LORA)
    assert {key: list(x.shape) for key, x in load_file(tmp_path / 'lora.safetensors').items()} == RECORDED['lora']


def test_lora_round_trip_keeps_the_products(tmp_path):
    values = random_values(WITH_LORA)
    peft_lora.write(tmp_path / 'lora.safetensors', values, WITH_LORA)
    plain = {name: value for name, value in values.items() if '.lora.' not in name}
    found, config = peft_lora.add(tmp_path / 'lora.safetensors', plain, PLAIN)
    assert config.lora == LoRAConfig(rank=2, alpha=2.0, targets=ALL)
    expected, after = merged(values, WITH_LORA), merged(found, config)
    for name, value in expected.items():
        np.testing.assert_allclose(after[name], value, rtol=0, atol=1e-5, err_msg=name)


def test_lora_of_one_module_is_its_product(tmp_path):
    tensors = random_lora()
    added, lora = difference(write(tmp_path / 'x.safetensors', tensors), 'blocks.attention.out.kernel')
    a, b = tensors.values()
    np.testing.assert_allclose(added, (b @ a).T, rtol=0, atol=1e-5)
    assert lora == LoRAConfig(rank=2, alpha=2.0, targets=('attention_out',))


def test_modulations_with_different_matrices_take_the_sum_of_their_ranks(tmp_path):
    first = random_lora(2, 'norm1.linear', 8, 192, seed=1)
    second = random_lora(3, 'norm2.linear', 8, 192, seed=2)
    added, lora = difference(write(tmp_path / 'x.safetensors', first | second), 'blocks.modulation.kernel')
    assert lora.rank == 5
    # Ours: (video, text) x (attention, mlp) x three vectors; a module has (video, text) x three.
    pieces = added.reshape(8, 2, 2, 96)
    for j, tensors in enumerate((first, second)):
        a, b = tensors.values()
        np.testing.assert_allclose(pieces[:, :, j].reshape(8, 192), (b @ a).T, rtol=0, atol=1e-5)


def test_smaller_ranks_are_filled_with_zeros(tmp_path):
    q, k = random_lora(3, 'attn1.to_q', seed=1), random_lora(1, 'attn1.to_k', seed=2)
    added, lora = difference(write(tmp_path / 'x.safetensors', q | k), 'blocks.attention.qkv.kernel')
    assert lora.rank == 3
    for part, tensors in enumerate((q, k)):
        a, b = tensors.values()
        np.testing.assert_allclose(added[:, part], (b @ a).T, rtol=0, atol=1e-5)
    assert not added[:, 2].any()


@pytest.mark.parametrize(
    ('settings', 'scale'),
    [
        ({'r': 2, 'lora_alpha': 6}, 3),
        ({'r': 2, 'lora_alpha': 6, 'alpha_pattern': {'to_out.0': 1}}, 0.5),
        ({'r': 2, 'lora_alpha': 6, 'alpha_pattern': {'to_q': 1}}, 3),
        ({'r': 2, 'lora_alpha': 6, 'use_rslora': True}, 6 / 2**0.5),
    ],
)
def test_alpha_is_that_of_the_metadata(tmp_path, settings, scale):
    tensors = random_lora()
    metadata = {'lora_adapter_metadata': json.dumps({f'transformer.{name}': x for name, x in settings.items()})}
    added, _ = difference(write(tmp_path / 'x.safetensors', tensors, **metadata), 'blocks.attention.out.kernel')
    a, b = tensors.values()
    np.testing.assert_allclose(added, scale * (b @ a).T, rtol=0, atol=1e-4)


def test_folder_of_peft(tmp_path):
    tensors = {key.replace('transformer.', 'base_model.model.', 1): x for key, x in random_lora().items()}
    write(tmp_path / 'adapter_model.safetensors', tensors)
    (tmp_path / 'adapter_config.json').write_text(json.dumps({'peft_type': 'LORA', 'r': 2, 'lora_alpha': 8}))
    added, _ = difference(tmp_path, 'blocks.attention.out.kernel')
    a, b = tensors.values()
    np.testing.assert_allclose(added, 4 * (b @ a).T, rtol=0, atol=1e-4)


def test_alpha_of_a_module_is_a_tensor_of_the_file(tmp_path):
    tensors = random_lora()
    path = write(tmp_path / 'x.safetensors', tensors | {f'{BLOCK}.attn1.to_out.0.alpha': np.full(1, 10.0)})
    added, _ = difference(path, 'blocks.attention.out.kernel')
    a, b = list(tensors.values())[:2]
    np.testing.assert_allclose(added, 5 * (b @ a).T, rtol=0, atol=1e-4)


def test_everything_that_does_not_fit_is_listed(tmp_path):
    tensors = random_lora() | random_lora(module='attn1.to_q', into=31) | random_lora(module='proj_out')
    tensors |= {key.replace('blocks.1', 'blocks.2'): x for key, x in random_lora().items()}
    del tensors[f'transformer.{BLOCK}.attn1.to_out.0.lora_B.weight']
    with pytest.raises(KeyMismatchError) as error:
        peft_lora.add(write(tmp_path / 'x.safetensors', tensors), base(), PLAIN)
    first, *lines = str(error.value).splitlines()
    assert 'does not fit' in first and len(lines) == 6
    assert f'  transformer.{BLOCK}.attn1.to_out.0.lora_A.weight: without its lora_B' in lines
    assert any('(2, 31) and (32, 2), expected (R, 32) and (32, R)' in line for line in lines)
    assert sum('no linear of the 2 blocks' in line for line in lines) == 4


@pytest.mark.parametrize(
    ('metadata', 'words'),
    [
        ({'lora_adapter_metadata': '{"transformer.use_dora": true}'}, 'with DoRA; must be LoRA'),
        ({'lora_adapter_metadata': '{"transformer.peft_type": "LOKR"}'}, 'of the kind LOKR'),
        ({'lora_adapter_metadata': '[1]'}, 'is not a JSON object'),
        ({'lora_adapter_metadata': '{'}, 'is not a JSON object'),
    ],
)
def test_other_adapters_are_refused(tmp_path, metadata, words):
    with pytest.raises(ValueError, match=words):
        peft_lora.add(write(tmp_path / 'x.safetensors', random_lora(), **metadata), base(), PLAIN)


def test_folder_without_lora_and_file_without_lora(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'has neither pytorch_lora_weights.safetensors nor adapter_model'):
        peft_lora.add(tmp_path, base(), PLAIN)
    with pytest.raises(ValueError, match='has no LoRA of transformer blocks'):
        peft_lora.add(write(tmp_path / 'x.safetensors', {f'{BLOCK}.attn1.to_q.alpha': np.ones(1)}), base(), PLAIN)


def test_network_without_lora_has_none_to_write():
    with pytest.raises(ValueError, match='has no LoRA'):
        peft_lora.check(PLAIN)
