"""Whose text embeddings a data set holds: `prepare` stamps shards with the digest of the encoder."""

from collections.abc import Mapping
from pathlib import Path

from fv_jax.core.config import ConfigError
from fv_jax.data import sources
from fv_jax.data.loader import Shards, Source
from fv_jax.data.shards.records import index_of, read_records, set_name
from fv_jax.text.encoder import BYTES, TextConfig, TextStamp


def of(name: str, source: Source) -> dict[str, TextStamp | None]:
    """The stamp of each set of clips behind a source, by the path of a set's NAME.json or by the source's own name;
    None for one without embeddings.

    Raises ValueError for embeddings that nothing says the encoder of.
    """
    if isinstance(source, Shards):
        return _of_shards(source)
    inner = getattr(source, 'sources', ())
    names = [part for part, _ in sources.parse(name)] if isinstance(source, sources.Joined) else [name] * len(inner)
    if not inner:
        return {name: None}
    found = {}
    for part, one in zip(names, inner, strict=True):
        found |= of(part, one)
    return found


def _of_shards(shards: Shards) -> dict[str, TextStamp | None]:
    firsts = {Path(shard).with_name(f'{set_name(shard)}.json'): shard for shard in reversed(shards.paths)}
    stamps = {}
    for path, shard in firsts.items():
        text = index_of(shard).get('text')
        if text is None and _holds_text(shard):
            raise ValueError(f'{shard}: holds text embeddings, and {path} does not say whose; prepare the clips again')
        stamps[str(path)] = text and TextStamp(text['digest'], text['length'], text['dim'])
    return stamps


def _holds_text(shard: str) -> bool:
    try:
        return 'text' in next(read_records([shard]), {})
    except ValueError:  # a bad record, which is dealt with when it is drawn
        return False


def check(
    stamps: Mapping[str, TextStamp | None], config: TextConfig, own: TextStamp | None, text_dim: int
) -> TextStamp | None:
    """The stamp of the embeddings that a run learns from; None where it learns without texts.

    Args:
      stamps: of every set of clips, by its name. One without embeddings is embedded as it is read if the encoder is
        'bytes', and wrong with any other.
      config: the run's encoder.
      own: its stamp; None where there is none, or where its files are not at hand and the clips are believed.
      text_dim: what the network takes.

    Raises:
      ConfigError: embeddings that are missing, of different encoders, of another one than the run's, or not of the
        network's width.
    """
    given = {name: stamp for name, stamp in stamps.items() if stamp is not None}
    if not config.encoder:
        if given:
            name, stamp = next(iter(given.items()))
            raise ConfigError(
                f'config.stage.text.encoder is empty, and {name} holds text embeddings, of encoder {stamp}; name the '
                'encoder that prepare used'
            )
        return None
    if config.encoder != BYTES and (without := [name for name in stamps if name not in given]):
        raise ConfigError(
            f'{without[0]}: holds no text embeddings, and config.stage.text.encoder={config.encoder}; prepare them '
            f'with --config.text.encoder={config.encoder}, or leave config.stage.text.encoder empty'
        )
    whose, wanted = (config.encoder, own) if own else next(iter(given.items()))
    for name, stamp in given.items():
        if stamp != wanted:
            raise ConfigError(
                f'{name}: its text embeddings are of encoder {stamp}, those of {whose} are of {wanted}; prepare the '
                'clips with one encoder, and name that one in config.stage.text'
            )
    if wanted.dim != text_dim:
        raise ConfigError(
            f'config.stage.dit.text_dim={text_dim}: the text embeddings of {config.encoder} are {wanted.dim} wide'
        )
    return wanted
