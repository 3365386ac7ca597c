"""The encoder without files: what its tokens are, that they carry identity and order, that they never change."""

import hashlib
import itertools

import numpy as np
import pytest

from fv_jax.core.config import ConfigError
from fv_jax.text.encoder import Truncation
from fv_jax.text.hash_encoder import HashTextEncoder

ENCODER = HashTextEncoder()
OBJECTS = ('ladybug', 'rocket', 'apple', 'dolphin', 'bicycle', 'owl', 'guitar', 'snail')
MOTIONS = (
    'from left to right',
    'from right to left',
    'from top to bottom',
    'from bottom to top',
    'in a circle',
    'and grows',
    'and shrinks',
    'up and down',
)
PLACES = ('beach', 'forest', 'city', 'meadow')


def words(text: str, part: slice = slice(None)) -> np.ndarray:
    return ENCODER.encode([text])[0, :, part]


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_hash_encoder_has_one_token_per_word() -> None:
    out = ENCODER.encode(['A ladybug, moves!', ''])
    assert out.shape == (2, 16, 64) and out.dtype == np.float32
    assert (np.abs(out[0, :3]).max(axis=-1) > 0.5).all() and not out[0, 3:].any() and not out[1].any()
    np.testing.assert_array_equal(out[0], words('a LADYBUG moves'))
    assert ENCODER.encode([]).shape == (0, 16, 64)


def test_hash_encoder_embeddings_have_unit_variance() -> None:
    letters = np.random.default_rng(0).choice(list('abcdefghijklmnopqrstuvwxyz'), (64, 16, 8))
    out = ENCODER.encode([' '.join(map(''.join, row)) for row in letters])
    assert abs(out.mean()) < 0.05
    for part, low, high in ((slice(0, 40), 0.9, 1.1), (slice(40, 56), 0.9, 1.1), (slice(56, 64), 0.5, 1.1)):
        assert low < np.sqrt(np.mean(out[..., part] ** 2)) < high
    assert np.abs(out).max() < 6  # far from what float16 can hold


def test_hash_encoder_word_embedding_is_independent_of_position() -> None:
    identity = slice(0, 40)
    np.testing.assert_array_equal(words('a ladybug moves', identity)[1], words('the red ladybug', identity)[2])
    different = [
        similarity(words(a, identity)[0], words(b, identity)[0]) for a, b in itertools.combinations(OBJECTS, 2)
    ]
    assert np.abs(different).max() < 0.6 and np.abs(np.mean(different)) < 0.1


def test_hash_encoder_similar_spellings_are_near() -> None:
    identity = slice(0, 40)
    one, many, other = (words(w, identity)[0] for w in ('ladybug', 'ladybugs', 'rockets'))
    assert similarity(one, many) > similarity(one, other) + 0.05
    assert similarity(one, many) < 0.6  # and yet they are two words


def test_hash_encoder_tokens_encode_word_order() -> None:
    """The same words in another order are other tokens, even without their positions."""
    there, back = words('from left to right', slice(0, 56)), words('from right to left', slice(0, 56))
    closest = np.linalg.norm(there[:4, None] - back[None, :4], axis=-1).min(axis=1)
    assert closest[0] == 0  # "from", first in both
    assert closest[1:].min() > 2


def test_hash_encoder_near_positions_are_near() -> None:
    places = words('same ' * 16, slice(56, 64))[1:]
    far = np.linalg.norm(places[:, None] - places[None], axis=-1)
    assert far[~np.eye(15, dtype=bool)].min() > 0.5
    assert np.diagonal(far, 1).max() < np.median(far)


def test_hash_encoder_is_linearly_separable() -> None:
    """Read from the mean of the tokens, by least squares from 48 texts, right on all others."""
    combinations = list(itertools.product(range(len(OBJECTS)), range(len(MOTIONS)), range(len(PLACES))))
    texts = [f'a {OBJECTS[o]} moves {MOTIONS[m]} over a {PLACES[p]}' for o, m, p in combinations]
    features = ENCODER.encode(texts).mean(axis=1)
    features = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    seen = np.random.default_rng(0).permutation(len(texts))[:48]
    unseen = np.setdiff1d(np.arange(len(texts)), seen)
    for index, count in ((0, len(OBJECTS)), (1, len(MOTIONS))):
        labels = np.array([c[index] for c in combinations])
        x, y = features[seen], np.eye(count)[labels[seen]]
        reader = np.linalg.solve(x.T @ x + 1e-3 * np.eye(x.shape[1]), x.T @ y)
        assert (np.argmax(features[unseen] @ reader, axis=1) == labels[unseen]).mean() > 0.97


def test_hash_encoder_values_are_fixed() -> None:
    """Checkpoints are trained on them. If this fails, what was trained before cannot be used: bring the numbers back,
    or change the version in the module, and so the digest, on purpose.
    """
    texts = ['a ladybug moves from left to right over a beach', 'Ünïcode 🐞 خنفساء 犬', 'x' * 100]
    content = hashlib.sha256(HashTextEncoder().encode(texts).tobytes() + HashTextEncoder(5, 8).encode(texts).tobytes())
    assert content.hexdigest()[:16] == '5878b0be22364dab'
    assert HashTextEncoder().fingerprint.digest == '6dbd415ba9be2d35'
    digests = {HashTextEncoder(length, dim).fingerprint.digest for length in (5, 16) for dim in (8, 64)}
    assert len(digests) == 4 and all(len(digest) == 16 for digest in digests)


@pytest.mark.parametrize(('text', 'count'), [('🐞🏖️', 1), ('خنفساء تتحرك', 2), ('犬' * 80, 10), ('?! ...', 0)])
def test_hash_encoder_encodes_any_text(text: str, count: int) -> None:
    out = words(text)
    assert np.isfinite(out).all() and np.count_nonzero(out.any(axis=-1)) == count


def test_hash_encoder_reports_truncation() -> None:
    text = ' '.join(OBJECTS) + ' ' + ' '.join(PLACES) + ' one two three four'
    assert ENCODER.truncation(text) is None
    assert ENCODER.truncation(text + ' five') == Truncation(17, 16)
    np.testing.assert_array_equal(words(text + ' five'), words(text))
    assert ENCODER.truncation('x' * 10_000) == Truncation(417, 16)


def test_hash_encoder_refuses_invalid_values() -> None:
    with pytest.raises(ValueError, match='surrogate at position 1'):
        ENCODER.encode(['fine', 'a\ud800'])
    with pytest.raises(ConfigError, match='dim=60: must be a multiple of 8; use 56 or 64'):
        HashTextEncoder(16, 60)
    with pytest.raises(ConfigError, match='dim=4: must be a multiple of 8; use 8'):
        HashTextEncoder(16, 4)
    with pytest.raises(ConfigError, match='length=0: must be at least 1'):
        HashTextEncoder(0)
