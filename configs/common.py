"""Helpers of the configuration files: strict parsing of variants, and settings that several files use.

A config is chosen as `--config=configs/stage2.py:smoke,batch=8`: after the colon the name of a variant, if
any, and fields of the variant. What is not known is an error that names the nearest known.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections.config_dict import FieldReference

from fv_jax.core.config import ConfigError, did_you_mean


def official_optim(*, learning_rate: float) -> dict[str, Any]:
    """Returns the optimizer settings of both stages.

    A constant rate, clipping at 0.1 and dropout of captions are the authors'; the rates are ours.
    """
    return {
        'algorithm': 'adamw',
        'learning_rate': learning_rate,
        'lr_schedule': 'constant',
        'warmup_steps': 500,
        'final_lr_ratio': 0.0,
        'weight_decay': 0.0,
        'b1': 0.9,
        'b2': 0.95,
        'clip_norm': 0.1,
        'ema_decay': 0.999,
    }


def official_loop() -> dict[str, Any]:
    """Returns the settings of the loop of both stages. The microbatches may be overridden by a number."""
    return {
        'num_steps': 20_000,
        'microbatches': FieldReference('auto', field_type=object),
        'log_every': 1,
        'eval_every': 1000,
        'save_every': 500,
        'max_to_keep': 3,
    }


# Filters over the scores of clips; the data guide has the reasons (fv_jax/data/README.md).
CLEAN = 'cuts == 0 and black == 0 and white == 0 and letterbox <= 0.02 and pillarbox <= 0.02 and text <= 0.01'
MOVING = 'motion >= 0.5 and static <= 0.5'
SHARP = 'sharpness >= 30 and blocking <= 0.6 and noise <= 6'
NOT_ENLARGED = 'bandwidth >= 0.6'


def join_filters(*filters: str) -> str:
    """Returns the filter that keeps what all of these keep."""
    return ' and '.join(filters)


def text_encoder(name: str) -> dict[str, Any]:
    """Returns the fields of `TextConfig`: '' for none, 'hash', or a T5 folder, run as FlashVideo runs it."""
    return {'encoder': name, 'length': None, 'dim': None, 'masked': False, 'dtype': 'bfloat16'}


def parse_variant(
    variant: str, variants: Sequence[str] = (), fields: Mapping[str, Any] | None = None
) -> tuple[str, dict[str, Any]]:
    """Splits 'smoke,batch=8' into ('smoke', {'batch': 8}).

    Args:
      variant: what stands after the colon; '' if nothing does.
      variants: the names that are known; the config without a name is always one and comes back as ''.
      fields: the fields that are known and their defaults, whose types a given value is read as. A default of
        True or False takes true and false; a string default takes anything.

    Returns:
      The variant's name and every field, given or default.

    Raises:
      ConfigError: an unknown name or field, a second name, or a value of the wrong type.
    """
    values = dict(fields or {})
    name = ''
    for position, part in enumerate(p.strip() for p in variant.split(',') if p.strip()):
        key, equals, text = part.partition('=')
        if equals:
            if key not in values:
                raise ConfigError(f'{key}: unknown field of the variant; {_nearest(key, values)}')
            values[key] = _read(key, text, (fields or {})[key])
        elif position:
            raise ConfigError(f'{part}: a variant is one name, then fields like batch=8')
        elif part not in variants:
            raise ConfigError(f'{part}: unknown variant; {_nearest(part, variants)}')
        else:
            name = part
    return name, values


def _nearest(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    return did_you_mean(name, known) if known else 'there are none'


def _read(key: str, text: str, default: Any) -> Any:
    kind = type(default)
    try:
        if kind is bool:
            return {'true': True, 'false': False}[text.lower()]
        if kind in (int, float, str):
            return kind(text)
    except (KeyError, ValueError):
        raise ConfigError(f'{key}={text}: expected {kind.__name__}, like {default!r}') from None
    raise ConfigError(f'{key}: cannot be given in a variant; its default is {default!r}')
