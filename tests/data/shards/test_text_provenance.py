"""Whose text embeddings a data set holds, and whether they are the run's."""

import numpy as np
import pytest

from fv_jax.core.config import ConfigError
from fv_jax.data import pipeline
from fv_jax.data.config import DataConfig
from fv_jax.data.loader import LoaderConfig
from fv_jax.data.shards import text_provenance
from fv_jax.data.shards.record_writer import RecordWriter
from fv_jax.data.shards.shard_files import list_shards
from fv_jax.data.shards.source import Shards
from fv_jax.text.encoder import TextConfig, TextEncoderFingerprint

A, B = TextEncoderFingerprint('a' * 16, 4, 8), TextEncoderFingerprint('b' * 16, 4, 8)
HASH, T5, NONE = TextConfig('hash'), TextConfig('t5'), TextConfig()


def shards(folder, name, text, summary):
    with RecordWriter(folder, name) as writer:
        writer.write({'video': b''} | ({'text': np.zeros((4, 8), np.float16)} if text else {}))
        writer.summary = summary
    return str(folder / f'{name}.json')


def test_text_fingerprints_of_prepare_are_read(tmp_path):
    summary = {'text': {'digest': A.digest, 'length': 4, 'dim': 8, 'truncated': {}}}
    first, second = shards(tmp_path, 'x', True, summary), shards(tmp_path, 'y', False, {})
    assert text_provenance.stored_fingerprints('x', Shards(list_shards(tmp_path))) == {first: A, second: None}
    config = DataConfig(LoaderConfig(batch_size=1), frames=9, height=32, width=48)
    name = f'sprites:5+stills:{tmp_path}+synthetic'
    found = text_provenance.stored_fingerprints(name, pipeline.open_source(name, config, heldout=False))
    assert found == {'sprites:5': None, first: A, second: None, 'synthetic': None}


@pytest.mark.parametrize('summary', [{}, None])
def test_embeddings_without_fingerprint_are_refused(tmp_path, summary):
    path = shards(tmp_path, 'x', True, summary or {})
    if summary is None:
        (tmp_path / 'x.json').unlink()
    with pytest.raises(ValueError, match=r'holds text embeddings, and .*x.json has no fingerprint of their encoder'):
        text_provenance.stored_fingerprints('x', Shards(list_shards(tmp_path)))
    assert path


def test_embeddings_of_the_same_encoder_are_accepted():
    assert text_provenance.check_fingerprints({'x': A, 'y': A}, T5, A, 8, online=False) == A
    assert text_provenance.check_fingerprints({'x': A}, T5, None, 8, online=False) == A  # the folder is not at hand
    assert text_provenance.check_fingerprints({'x': None}, NONE, None, 8, online=False) is None
    assert (
        text_provenance.check_fingerprints({'x': None, 'y': A}, HASH, A, 8, online=True) == A
    )  # embedded as they are read


@pytest.mark.parametrize(
    ('provenances', 'config', 'own', 'dim', 'words'),
    [
        ({'x': A, 'y': B}, T5, A, 8, 'y: its text embeddings are of encoder bbbb.* those of t5 are of aaaa'),
        ({'x': A, 'y': B}, T5, None, 8, 'y: its text embeddings are of encoder bbbb.* those of x are of aaaa'),
        ({'x': B}, HASH, A, 8, 'x: its text embeddings are of encoder bbbb.* those of hash are of aaaa'),
        ({'x': A}, NONE, None, 8, 'config.stage.text.encoder is empty, and x holds text embeddings, of encoder aaaa'),
        ({'x': A, 'y': None}, T5, A, 8, 'y: holds no text embeddings, and config.stage.text.encoder=t5; prepare'),
        ({'x': A}, T5, A, 16, 'config.stage.network.text_dim=16: the text embeddings of t5 are 8 wide'),
    ],
)
def test_embeddings_of_another_encoder_are_refused(provenances, config, own, dim, words):
    with pytest.raises(ConfigError, match=words) as error:
        text_provenance.check_fingerprints(provenances, config, own, dim, online=config is HASH)
    assert '\n' not in str(error.value)
