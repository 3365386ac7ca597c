"""Texts to ids: the end last, padding after it, nothing altered; the official ids are in tests/parity."""

import numpy as np
import pytest
import sentencepiece

from fv_jax.text.encoder import Truncation
from fv_jax.text.tokenizer import OFFICIAL_LENGTH, Tokenizer
from tests import small_text


@pytest.fixture(scope='module')
def model() -> bytes:
    return small_text.spiece()


def pieces(model: bytes, text: str) -> list[int]:
    return sentencepiece.SentencePieceProcessor(model_proto=model).encode(text)


def test_tokenizer_pieces_end_and_padding(model: bytes) -> None:
    tokens = Tokenizer(model)
    ids = tokens(['a beach', ''])
    assert ids.shape == (2, OFFICIAL_LENGTH) and ids.dtype == np.int32
    for row, text in zip(ids, ('a beach', ''), strict=True):
        expected = [*pieces(model, text), 1]
        assert row.tolist() == expected + [0] * (OFFICIAL_LENGTH - len(expected))
    assert tokens.truncation('') is None and tokens.vocab_size == 40 and tokens([]).shape == (0, OFFICIAL_LENGTH)


def test_tokenizer_truncation_keeps_the_end_token(model: bytes) -> None:
    text = 'a ladybug moves from left to right'
    whole = pieces(model, text)
    fits, cut = Tokenizer(model, len(whole) + 1), Tokenizer(model, len(whole))
    assert fits([text])[0].tolist() == [*whole, 1] and fits.truncation(text) is None
    assert cut([text])[0].tolist() == [*whole[:-1], 1]
    assert cut.truncation(text) == Truncation(len(whole), len(whole) - 1)
    assert str(Truncation(9, 8)) == 'the text has 9 tokens, and only the first 8 are used'
    assert Tokenizer(model, 1)([text]).tolist() == [[1]]


def test_tokenizer_does_not_normalize_texts(model: bytes) -> None:
    tokens = Tokenizer(model)
    for a, b in (('A beach', 'a beach'), ('a beach.', 'a beach'), ('a (beach) http://b', 'a (beach)')):
        assert not np.array_equal(tokens([a]), tokens([b]))


@pytest.mark.parametrize(
    'text', ['🐞🏖️', 'خنفساء تتحرك', '犬' * 300, 'a beach ' * 1250, 'a\nb\tc\x00d', ' ', '</s>', 'e\u0301']
)
def test_tokenizer_encodes_any_text(model: bytes, text: str) -> None:
    tokens = Tokenizer(model)
    (ids,) = tokens([text])
    kept = pieces(model, text)[: OFFICIAL_LENGTH - 1]
    assert ids.tolist() == [*kept, 1] + [0] * (OFFICIAL_LENGTH - 1 - len(kept))
    assert ids.min() >= 0 and ids.max() < tokens.vocab_size
    assert (tokens.truncation(text) is None) == (len(text) <= 300)


def test_tokenizer_refuses_invalid_unicode(model: bytes) -> None:
    for call in (lambda t, text: t([text]), Tokenizer.truncation):
        with pytest.raises(ValueError, match='not valid Unicode: surrogate at position 2'):
            call(Tokenizer(model), 'ab\ud83dc')


def test_tokenizer_refuses_other_files(model: bytes, tmp_path) -> None:
    path = tmp_path / 'spiece.model'
    for content in (b'', b'no model', model[: len(model) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r'spiece\.model: not a SentencePiece model, or corrupted'):
            Tokenizer.open(path)
    with pytest.raises(ValueError, match=r'not a tokenizer of T5: the ids of padding and end are \(-1, 2\)'):
        Tokenizer(small_text.spiece(pad_id=-1, eos_id=2, unk_id=0, bos_id=1))
    with pytest.raises(FileNotFoundError):
        Tokenizer.open(tmp_path / 'none.model')
    with pytest.raises(ValueError, match='length=0: must be at least 1'):
        Tokenizer(model, 0)
