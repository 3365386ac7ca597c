"""The registry of text encoders: opening, fingerprints, and freeing them."""

import gc
import shutil

import jax
import numpy as np
import pytest

from fv_jax.core.config import ConfigError
from fv_jax.text.encoder import TextConfig
from fv_jax.text.hash_encoder import HashTextEncoder
from fv_jax.weights.layouts import t5_folder
from fv_jax.weights.text_encoders import find_kind, open_text_encoder, text_fingerprint
from tests.compiling import compiled
from tests.small_text import LINES, SMALL, make_folder, random_t5, spiece


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp('text') / 't5')


def digest(folder, length, masked):
    return text_fingerprint(TextConfig(str(folder), length=length, masked=masked)).digest


def test_text_encoder_hash():
    encoder = open_text_encoder(TextConfig('hash'))
    assert isinstance(encoder, HashTextEncoder) and encoder.fingerprint == HashTextEncoder(16, 64).fingerprint
    encoder = open_text_encoder(TextConfig('hash', length=4, dim=32))
    assert encoder.encode(['a b']).shape == (1, 4, 32)


def test_t5_encodes_texts_independently(folder):
    encoder = open_text_encoder(TextConfig(str(folder), length=9, dtype='float32'))
    texts = [*LINES, *(line[:20] for line in LINES), '', 'left', 'right', 'up']
    out = encoder.encode(texts)
    assert out.shape == (10, 9, SMALL.embed_dim) == (len(texts), encoder.fingerprint.length, encoder.fingerprint.dim)
    assert out.dtype == np.float32 and encoder.encode([]).shape == (0, 9, SMALL.embed_dim)
    np.testing.assert_allclose(out[8:], encoder.encode([*texts[8:]]), atol=1e-6)
    np.testing.assert_allclose(encoder.encode([texts[9], texts[0]]), out[[9, 0]], atol=1e-5)
    assert encoder.truncation('left') is None and encoder.truncation(LINES[0]).used == 8


def test_t5_default_options(folder):
    encoder = open_text_encoder(TextConfig(str(folder)))
    assert encoder.fingerprint.length == 226 and not np.array_equal(encoder.encode(['left']), encoder.encode(['right']))


def test_t5_masked_option(folder):
    plain, masked = (
        open_text_encoder(TextConfig(str(folder), length=9, masked=m, dtype='float32')) for m in (False, True)
    )
    assert np.abs(plain.encode(['left']) - masked.encode(['left'])).max() > 1e-3
    assert plain.fingerprint.digest != masked.fingerprint.digest


def test_t5_is_released_with_its_last_reference(folder):
    """Sampling drops T5 before the DiT runs: no cache may keep its weights."""
    before = {id(array) for array in jax.live_arrays()}
    encoder = open_text_encoder(TextConfig(str(folder), length=9))
    encoder.encode(['left'])
    held = [array.shape for array in jax.live_arrays() if id(array) not in before]
    assert (SMALL.vocab_size, SMALL.embed_dim) in held
    del encoder
    gc.collect()  # as sampling does
    assert [array.shape for array in jax.live_arrays() if id(array) not in before] == []


def test_t5_opened_again_does_not_compile(folder):
    config = TextConfig(str(folder), length=7, dtype='float32')
    with compiled() as first:
        once = open_text_encoder(config).encode([LINES[0], 'a' * 7])
    with compiled() as second:
        again = open_text_encoder(config).encode(['b' * 7, LINES[0]])
    assert len(first) > 0 and not second
    np.testing.assert_allclose(again[1], once[0], atol=1e-6)


def test_t5_fingerprint_depends_on_what_the_embeddings_depend_on(folder, tmp_path):
    known = digest(folder, 9, masked=False)
    assert len(known) == 16 and known == open_text_encoder(TextConfig(str(folder), length=9)).fingerprint.digest
    # Not what does not matter: where the folder is, how its tensors are spread, what it computes in.
    copy = make_folder(tmp_path / 'copy', shard_bytes=3000)
    assert digest(copy, 9, masked=False) == known
    assert open_text_encoder(TextConfig(str(folder), length=9, dtype='float32')).fingerprint.digest == known
    others = {known, digest(folder, 10, masked=False), digest(folder, 9, masked=True)}
    t5_folder.save(copy, random_t5(seed=1))
    others.add(digest(copy, 9, masked=False))
    shutil.copytree(folder, tmp_path / 'other')
    (tmp_path / 'other' / 'spiece.model').write_bytes(spiece(pad_id=0, unk_surface='?'))
    others.add(digest(tmp_path / 'other', 9, masked=False))
    config = tmp_path / 'other' / 'config.json'
    config.write_text(config.read_text().replace('1e-06', '1e-05'))
    others.add(digest(tmp_path / 'other', 9, masked=False))
    assert len(others) == 6


def test_text_encoder_invalid_folders_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="encoder='': names no text encoder"):
        open_text_encoder(TextConfig())
    with pytest.raises(FileNotFoundError, match=r"byts: no such folder; a text encoder is 'hash' or a T5 folder"):
        open_text_encoder(TextConfig('byts'))
    with pytest.raises(FileNotFoundError, match=r'has no spiece\.model, the tokenizer'):
        open_text_encoder(TextConfig(str(tmp_path)))
    shutil.copytree(folder, tmp_path / 't5')
    config = tmp_path / 't5' / 'config.json'
    config.write_text(config.read_text().replace('"vocab_size": 50', '"vocab_size": 30'))
    with pytest.raises(ValueError, match='the tokenizer has 40 ids, the network 30; use the files of one model'):
        open_text_encoder(TextConfig(str(tmp_path / 't5')))
    (tmp_path / 't5' / 'spiece.model').write_bytes(b'')
    with pytest.raises(ValueError, match=r'spiece\.model: not a SentencePiece model'):
        open_text_encoder(TextConfig(str(tmp_path / 't5')))


@pytest.mark.parametrize(
    ('config', 'words'),
    [
        (TextConfig('hash', masked=True), "config.stage.text.masked=True: is not an option of the text encoder 'hash'"),
        (TextConfig('hash', dtype='float32'), 'dtype=float32: .* takes dim, length; remove it'),
        (
            TextConfig('t5', dim=64),
            "dim=64: is not an option of the text encoder 't5', which takes dtype, length",
        ),
    ],
)
def test_text_encoder_options_of_another_kind_are_refused(config, words):
    with pytest.raises(ConfigError, match=words):
        find_kind(config, 'config.stage.text')
