"""T5 and its tokenizer against the official ones: every kind of mask, a long text, real texts (model guide 6, 8)."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file

from fv_jax.text.encoder import TextConfig
from fv_jax.text.tokenizer import Tokenizer
from fv_jax.weights.layouts import t5_folder
from fv_jax.weights.text_encoders import open_text_encoder

TOLERANCE = 1e-4  # maximum absolute


def close(actual, expected):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope='module')
def io(official):
    with np.load(official / 't5_io.npz') as file:
        return dict(file)


@pytest.fixture(scope='module')
def info(official):
    return json.loads((official / 't5_info.json').read_text())


@pytest.fixture(scope='module')
def model(official):
    return t5_folder.load(official / 't5')


@pytest.fixture(scope='module')
def forward(model):
    """Compiled once for each length, and once more for masks."""
    graphdef, params = nnx.split(model)
    run = jax.jit(lambda params, *inputs: nnx.merge(graphdef, params)(*inputs))
    return lambda *inputs: run(params, *(jnp.asarray(x, jnp.int32) for x in inputs))


def test_t5_parity_without_mask(forward, io):
    close(forward(io['input_ids']), io['out_no_mask'])


def test_t5_parity_with_a_mask_of_ones(forward, io):
    close(forward(io['input_ids'], np.ones_like(io['input_ids'])), io['out_all_ones_mask'])


def test_t5_parity_with_the_padding_mask(forward, io):
    masked = forward(io['input_ids'], io['attention_mask_padding'])
    close(masked, io['out_padding_mask'])
    assert np.abs(io['out_padding_mask'] - io['out_no_mask']).max() > 1  # so that the masks differ


def test_t5_parity_of_distant_positions(forward, io):
    assert io['long_input_ids'].shape[1] > 128
    close(forward(io['long_input_ids']), io['long_out'])


def test_t5_parity_of_the_embedding(model, io):
    close(model.embedding[...][io['input_ids']], io['hidden_0'])


def test_t5_parity_of_token_ids(official, io, info):
    ids = Tokenizer.open(official / 't5' / 'spiece.model', info['max_length'])(info['texts'])
    np.testing.assert_array_equal(ids, io['text_input_ids'])


def test_t5_parity_of_text_embeddings(official, io, info):
    encoder = open_text_encoder(TextConfig(str(official / 't5'), length=info['max_length'], dtype='float32'))
    assert (encoder.fingerprint.length, encoder.fingerprint.dim) == io['text_crossattn'].shape[1:]
    close(encoder.encode(info['texts']), io['text_crossattn'])
    # Not by the end in the last place, where it is of a text that just fits too.
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(official / 't5' / 'spiece.model'))
    cut = [encoder.truncation(text) is not None for text in info['texts']]
    assert cut == [len(pieces.encode(text)) + 1 > info['max_length'] for text in info['texts']]


def test_t5_folder_round_trip(official, model, tmp_path):
    t5_folder.save(tmp_path, model)
    ours, theirs = load_file(tmp_path / t5_folder.SINGLE), load_file(official / 't5' / t5_folder.SINGLE)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        np.testing.assert_array_equal(ours[key], tensor)
        assert ours[key].dtype == tensor.dtype
    with safe_open(tmp_path / t5_folder.SINGLE, 'numpy') as file:
        assert file.metadata() == {'format': 'pt'}  # which Hugging Face's loaders insist on
    assert t5_folder.read_config(tmp_path) == t5_folder.read_config(official / 't5')
    values = json.loads((tmp_path / 'config.json').read_text())
    reference = json.loads((official / 't5' / 'config.json').read_text())
    assert values.items() <= reference.items()
