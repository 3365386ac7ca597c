"""The registry of text encoders, by name or by a file in their folder."""

import dataclasses

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.core.hub import weights_path
from fv_jax.text import hash_encoder
from fv_jax.text.encoder import TextConfig, TextEncoder, TextEncoderFingerprint, TextEncoderKind
from fv_jax.weights import t5_text

NAMED: dict[str, TextEncoderKind] = {'hash': hash_encoder.KIND}
IN_FOLDERS: dict[str, TextEncoderKind] = {t5_text.SPIECE: t5_text.KIND}  # by a file in the folder
CHOICES = ', '.join([*map(repr, NAMED)]) + ' or a T5 folder'  # for messages


def find_kind(config: TextConfig, where: str = 'text') -> TextEncoderKind:
    """Finds the kind of encoder that a configuration names. A folder that does not exist is assumed to be T5's.

    Args:
      config: with an encoder.
      where: path of `config` in the configuration, for messages.

    Raises:
      ConfigError: the kind does not take one of the options that are set.
    """
    assert config.encoder, 'no text encoder is named'
    kind = NAMED.get(config.encoder)
    if kind is None:
        folder = weights_path(config.encoder)
        kind = next((kind for file, kind in IN_FOLDERS.items() if (folder / file).is_file()), t5_text.KIND)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        require(
            field.name in ('encoder', *kind.options) or value == field.default,
            f'{where}.{field.name}={value}: is not an option of the text encoder {config.encoder!r}, which takes '
            f'{", ".join(sorted(kind.options))}; remove it',
            ConfigError,
        )
    return kind


def is_folder_name(config: TextConfig) -> bool:
    """Returns whether a configuration names an encoder by a folder, which may not exist."""
    return bool(config.encoder) and config.encoder not in NAMED


def is_available(config: TextConfig) -> bool:
    """Returns whether the encoder of a configuration exists: a registered name or an existing folder."""
    return config.encoder in NAMED or (bool(config.encoder) and weights_path(config.encoder).is_dir())


def open_text_encoder(config: TextConfig) -> TextEncoder:
    """Opens the text encoder of a configuration, which holds its weights until its last reference is dropped.

    Raises:
      FileNotFoundError: its folder, or a file in it, does not exist.
      ValueError: the folder is incomplete, the configuration names no encoder, or sets an option that it does not take.
    """
    return _require_kind(config).open(config)


def text_fingerprint(config: TextConfig) -> TextEncoderFingerprint:
    """Computes the fingerprint of the encoder that `open_text_encoder` opens, without weights. Raises the same."""
    return _require_kind(config).fingerprint(config)


def _require_kind(config: TextConfig) -> TextEncoderKind:
    require(config.encoder, f"encoder='': names no text encoder; use {CHOICES}")
    if config.encoder not in NAMED and not weights_path(config.encoder).is_dir():
        raise FileNotFoundError(f'{config.encoder}: no such folder; a text encoder is {CHOICES}')
    return find_kind(config)
