"""Provenance check of text embeddings: which text encoder made them.

`prepare` writes the encoder's fingerprint to NAME.json beside the shards.
"""

from collections.abc import Mapping

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.data import sources
from fv_jax.data.loader import DataSource
from fv_jax.data.shards.shard_set import ShardSet
from fv_jax.data.shards.source import Shards
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
    fingerprints, first = {}, 0
    for one in shards.sets:
        text = one.index.get('text')
        if text is None and one.paths and _holds_text(shards, one, first):
            raise ValueError(
                f'{one.paths[0]}: holds text embeddings, and {one.index_path} has no fingerprint of their encoder; '
                'prepare the clips again'
            )
        known = text and TextEncoderFingerprint(text['digest'], text['length'], text['dim'])
        fingerprints[str(one.index_path)] = known
        first += int(one.records.sum())
    return fingerprints


def _holds_text(shards: Shards, one: ShardSet, first: int) -> bool:
    """Returns whether the records of a set have text embeddings; `first` is the index of its first record."""
    if one.manifest is not None:
        return 'text' in one.manifest.keys
    try:
        return one.records.sum() > 0 and 'text' in shards[first]
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
