"""Provenance check of text embeddings: which text encoder made them.

`prepare` writes the encoder's fingerprint to NAME.json beside the shards.
"""

from collections.abc import Mapping
from pathlib import Path

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.data import sources
from fv_jax.data.loader import DataSource, Shards
from fv_jax.data.shards.records import read_index, read_records, set_name
from fv_jax.text.encoder import TextConfig, TextEncoderFingerprint


def stored_fingerprints(name: str, source: DataSource) -> dict[str, TextEncoderFingerprint | None]:
    """Reads the encoder's fingerprint of each set of clips in a source.

    Returns:
      Fingerprints by the path of the set's NAME.json, or by the source's own name; None for a set without embeddings.

    Raises:
      ValueError: a set holds embeddings and its NAME.json has no fingerprint of their encoder.
    """
    if isinstance(source, Shards):
        return _shard_fingerprints(source)
    inner = getattr(source, 'sources', ())
    names = (
        [part for part, _ in sources.parse(name)] if isinstance(source, sources.ConcatSource) else [name] * len(inner)
    )
    if not inner:
        return {name: None}
    found = {}
    for part, one in zip(names, inner, strict=True):
        found |= stored_fingerprints(part, one)
    return found


def _shard_fingerprints(shards: Shards) -> dict[str, TextEncoderFingerprint | None]:
    firsts = {Path(shard).with_name(f'{set_name(shard)}.json'): shard for shard in reversed(shards.paths)}
    fingerprints = {}
    for path, shard in firsts.items():
        text = read_index(shard).get('text')
        if text is None and _holds_text(shard):
            raise ValueError(
                f'{shard}: holds text embeddings, and {path} has no fingerprint of their encoder; '
                'prepare the clips again'
            )
        known = text and TextEncoderFingerprint(text['digest'], text['length'], text['dim'])
        fingerprints[str(path)] = known
    return fingerprints


def _holds_text(shard: str) -> bool:
    try:
        return 'text' in next(read_records([shard]), {})
    except ValueError:  # a bad record, which is handled when it is loaded
        return False


def check_fingerprints(
    found: Mapping[str, TextEncoderFingerprint | None],
    config: TextConfig,
    own: TextEncoderFingerprint | None,
    text_dim: int,
    *,
    online: bool,
) -> TextEncoderFingerprint | None:
    """Checks that all embeddings are of one encoder, and returns its fingerprint; None for a run without text.

    Args:
      found: fingerprints of every set of clips, by its name, from `stored_fingerprints`.
      config: the run's encoder.
      own: its fingerprint; None without an encoder, or if its files do not exist and the stored fingerprints are
        trusted.
      text_dim: width of the embeddings that the network takes.
      online: whether captions are embedded as they are read; otherwise a set without embeddings is an error.

    Raises:
      ConfigError: embeddings that are missing, of different encoders, of another one than the run's, or not of the
        network's width.
    """
    given = {name: fingerprint for name, fingerprint in found.items() if fingerprint is not None}
    if not config.encoder:
        if given:
            name, fingerprint = next(iter(given.items()))
            raise ConfigError(
                f'config.stage.text.encoder is empty, and {name} holds text embeddings, of encoder {fingerprint}; '
                'name the encoder that prepare used'
            )
        return None
    if not online and (without := [name for name in found if name not in given]):
        raise ConfigError(
            f'{without[0]}: holds no text embeddings, and config.stage.text.encoder={config.encoder}; prepare them '
            f'with --config.text.encoder={config.encoder}, or leave config.stage.text.encoder empty'
        )
    whose, wanted = (config.encoder, own) if own else next(iter(given.items()))
    for name, fingerprint in given.items():
        require(
            fingerprint == wanted,
            f'{name}: its text embeddings are of encoder {fingerprint}, those of {whose} are of {wanted}; prepare '
            'the clips with one encoder, and name that one in config.stage.text',
            ConfigError,
        )
    require(
        wanted.dim == text_dim,
        f'config.stage.network.text_dim={text_dim}: the text embeddings of {config.encoder} are {wanted.dim} wide',
        ConfigError,
    )
    return wanted
