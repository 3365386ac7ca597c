"""Which text encoders can be asked for."""

import pytest

from fv_jax.core.config import ConfigError, build, to_dict
from fv_jax.text.encoder import TextConfig, check_text


@pytest.mark.parametrize(
    ('fields', 'words'),
    [
        ({'dtype': 'float16'}, 'dtype=float16: must be one of float32, bfloat16'),
        ({'encoder': 'hash', 'length': 0}, 'length=0: must be at least 1'),
        ({'dim': 64}, 'dim=64: has no effect without a text encoder'),
        ({'masked': True}, 'masked=True: has no effect without a text encoder'),
    ],
)
def test_text_config_refuses_invalid_values(fields: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TextConfig(**fields)


def test_text_config_round_trip() -> None:
    for config in (TextConfig(), TextConfig('hash', 8, 32), TextConfig('folder/t5', masked=True, dtype='float32')):
        assert build(TextConfig, to_dict(config)) == config


def test_check_text_refuses_invalid_unicode() -> None:
    text = ' Ein Häschen 🐇\n'
    assert check_text(text) is text
    with pytest.raises(ValueError, match='surrogate at position 0; read it as UTF-8'):
        check_text('\udc80')
