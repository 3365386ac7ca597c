"""From a ConfigDict (or a checkpoint's JSON) to frozen dataclasses, strictly, and back.

A key that a dataclass does not know is an error that names the nearest one it does; so is a value of
the wrong type. Commands catch `ConfigError` and print its one line. Scalars and arrays of NumPy count as Python's.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any, Literal, TypeVar

import numpy as np

from fv_jax.core.checks import error_context, require
from fv_jax.core.paths import PathText, PathTextOrEmpty, expand_path

T = TypeVar('T')

AUTO = 'auto'
Auto = Literal['auto']  # of a field that a command chooses at its start
INT_LIMIT = 2**32  # seeds must be below it; larger values would overflow in a library


class ConfigError(ValueError):
    """An invalid configuration. The message is one line: the field, its value, the fix."""


def did_you_mean(name: str, known: typing.Iterable[str]) -> str:
    """Returns a hint for an unknown name: the closest known one, or else the list of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f'did you mean {close[0]!r}?' if close else f'known: {", ".join(known)}'


def check_choice(config: Any, *names: str, choices: Collection[str]) -> None:
    """Raises ConfigError unless the values of the fields `names` of a dataclass are in `choices`."""
    for name in names:
        value = getattr(config, name)
        if value not in choices:
            close = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
            hint = f'; did you mean {close[0]!r}?' if close else ''
            raise ConfigError(f'{name}={value}: must be one of {", ".join(choices)}{hint}')


def check_range(
    config: Any,
    *names: str,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    hint: str = '',
) -> None:
    """Raises ConfigError unless the values of the fields `names` of a dataclass are in a range.

    A field that is None passes. Of a tuple every value must be in the range, none smaller than the one before it.

    Args:
      low, high: the smallest and the largest value.
      above, below: limits that a value must not reach.
      hint: ends the message: what to use instead of a refused value.
    """
    limits, hint = _limits(low, high, above, below), hint and f'; {hint}'
    for name in names:
        value = getattr(config, name)
        values = value if isinstance(value, tuple) else () if value is None or value == AUTO else (value,)
        if not all(low <= each <= high and above < each < below for each in values):
            raise ConfigError(f'{name}={value}: must be {limits}{hint}')
        if list(values) != sorted(values):
            raise ConfigError(f'{name}={value}: must be {limits}, the smaller first{hint}')


def _limits(low: float, high: float, above: float, below: float) -> str:
    if -math.inf < low and high < math.inf:
        return f'from {low} to {high}'
    if above == 0 and below == high == math.inf:
        return 'positive'
    named = {'at least': low, 'above': above, 'at most': high, 'below': below}
    return ' and '.join(f'{words} {limit}' for words, limit in named.items() if math.isfinite(limit))


def build(cls: type[T], values: Mapping[str, Any], path: str = 'config') -> T:
    """Builds the dataclass `cls` from a mapping, recursively.

    Args:
      cls: a dataclass. Fields may be dataclasses, optional, tuples, numbers, strings and booleans. If the types of
        some depend on the value of another, the class method `field_types` returns them by name, given the values.
      values: a ConfigDict or a plain dict.
      path: of `values` in the configuration, for messages.

    Raises:
      ConfigError: an unknown key, a missing one, a value of the wrong type, or one that `cls` refuses.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f'{path}: expected a group of fields, got {values!r}')
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise ConfigError(f'{path}.{key}: unknown key; {did_you_mean(key, hints)}')
    hints = field_types(cls, values, path)
    kwargs = {key: _convert(hints[key], values[key], f'{path}.{key}') for key in values}
    missing = [
        f.name
        for f in dataclasses.fields(cls)
        if f.name not in kwargs and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f'{path}: missing {", ".join(missing)}')
    try:
        return cls(**kwargs)
    except ConfigError as error:
        raise ConfigError(f'{path}.{error}') from None


def field_types(cls: type, values: Mapping[str, Any], path: str = 'config') -> dict[str, Any]:
    """Returns the type of every field of `cls`, some of which may depend on `values`. Raises ConfigError."""
    hints = typing.get_type_hints(cls)
    if (depending := getattr(cls, 'field_types', None)) is None:
        return hints
    with error_context(f'{path}.', ConfigError, ConfigError):
        return hints | depending(values)


def split_optional(hint: Any) -> tuple[Any, bool]:
    """Splits the type `X | None` into (X, True), and any other X, `int | Auto` too, into (X, False)."""
    options = typing.get_args(hint)
    if typing.get_origin(hint) not in (typing.Union, types.UnionType) or type(None) not in options:
        return hint, False
    (given,) = [option for option in options if option is not type(None)]
    return given, True


def _convert(hint: Any, value: Any, path: str) -> Any:
    hint, optional = split_optional(hint)
    origin = typing.get_origin(hint)
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if Auto in typing.get_args(hint):
        (given,) = [option for option in typing.get_args(hint) if option is not Auto]
        return value if value == AUTO else _convert(given, value, path)
    if value is None:
        empty = "; '' is an empty one" if hint in (str, PathTextOrEmpty) else ''
        require(optional, f'{path}: must not be none; expected {_describe(hint)}{empty}', ConfigError)
        return None
    if dataclasses.is_dataclass(hint):
        return build(hint, value, path)
    if origin is tuple:
        return _convert_tuple(hint, value, path)
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(
                f'{path}: {value!r} is not a choice; {did_you_mean(str(value), map(str, typing.get_args(hint)))}'
            )
        return value
    if hint in (PathText, PathTextOrEmpty) and type(value) is str:
        with error_context(f'{path}: ', error=ConfigError):
            return expand_path(value) if value or hint is PathText else value
    if hint is float and type(value) is int and abs(value) < INT_LIMIT:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f'{path}: expected {_describe(hint)}, got {value!r} ({type(value).__name__})')
    if hint is int and abs(value) >= INT_LIMIT:
        raise ConfigError(f'{path}={value}: must be below {INT_LIMIT}')
    if hint is float and not math.isfinite(value):
        raise ConfigError(f'{path}={value}: must be a finite number')
    return value


def _describe(hint: Any) -> str:
    if dataclasses.is_dataclass(hint):
        return 'a group of fields'
    if hint in (PathText, PathTextOrEmpty):
        return 'a path'
    return {tuple: 'a sequence', typing.Literal: 'a choice'}.get(typing.get_origin(hint)) or hint.__name__


def _convert_tuple(hint: Any, value: Any, path: str) -> tuple:
    if not isinstance(value, list | tuple):
        raise ConfigError(f'{path}: expected a sequence, got {value!r}')
    items = typing.get_args(hint)
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(items) != len(value):
        raise ConfigError(f'{path}: expected {len(items)} values, got {len(value)} in {value!r}')
    return tuple(_convert(h, v, f'{path}[{i}]') for i, (h, v) in enumerate(zip(items, value, strict=True)))


def to_dict(config: Any) -> dict[str, Any]:
    """Converts a dataclass to a JSON-ready dict, from which `build` makes the same dataclass again."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        return value

    return plain(dataclasses.asdict(config))
