"""The registry of text encoders: by name, or by what a folder holds."""

import dataclasses
from pathlib import Path

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.text import hash_encoder
from fv_jax.text.encoder import TextConfig, TextEncoder, TextEncoderFingerprint, TextEncoderKind
from fv_jax.weights import t5_text

NAMED: dict[str, TextEncoderKind] = {'hash': hash_encoder.KIND}
IN_FOLDERS: dict[str, TextEncoderKind] = {t5_text.SPIECE: t5_text.KIND}  # by a file that the folder holds
CHOICES = ', '.join([*map(repr, NAMED)]) + ' or a T5 folder'  # for messages


def kind_of(config: TextConfig, where: str = 'text') -> TextEncoderKind:
    """The kind of encoder that a configuration names. A folder that does not exist is taken to be T5's.

    Args:
      config: with an encoder.
      where: the place of `config` in the whole configuration, for messages.

    Raises:
      ConfigError: the kind does not take one of the options that are set.
    """
    assert config.encoder, 'no text encoder is named'
    kind = NAMED.get(config.encoder)
    if kind is None:
        folder = Path(config.encoder)
        kind = next((kind for file, kind in IN_FOLDERS.items() if (folder / file).is_file()), t5_text.KIND)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        require(
            field.name in ('encoder', *kind.options) or value == field.default,
            f'{where}.{field.name}={value}: is no option of the text encoder {config.encoder!r}, which takes '
            f'{", ".join(sorted(kind.options))}; leave it out',
            ConfigError,
        )
    return kind


def is_available(config: TextConfig) -> bool:
    """Tells whether a configuration's encoder exists here: a registered name or an existing folder."""
    return config.encoder in NAMED or (bool(config.encoder) and Path(config.encoder).is_dir())


def open_text_encoder(config: TextConfig) -> TextEncoder:
    """The text encoder that a configuration names. It holds its weights until the last reference to it is gone.

    Raises:
      FileNotFoundError: its folder, or a file in it, does not exist.
      ValueError: the folder is not whole, the configuration names no encoder, or sets an option that it does not take.
    """
    return _checked_kind(config).open(config)


def text_fingerprint(config: TextConfig) -> TextEncoderFingerprint:
    """The fingerprint of what `open_text_encoder` would give, without reading its weights. Raises the same."""
    return _checked_kind(config).fingerprint(config)


def _checked_kind(config: TextConfig) -> TextEncoderKind:
    require(config.encoder, f"encoder='': no text encoder is named; use {CHOICES}")
    if config.encoder not in NAMED and not Path(config.encoder).is_dir():
        raise FileNotFoundError(f'{config.encoder}: no such folder; a text encoder is {CHOICES}')
    return kind_of(config)
