"""Checks of values from users, stated as the condition that must hold."""

import contextlib
from collections.abc import Iterator


def one_line(error: object, limit: int | None = None) -> str:
    """Formats the message of an error, or its type if it has none, as one line of at most `limit` characters."""
    return ' '.join(str(error).split())[:limit] or type(error).__name__


def require(condition: object, message: str, error: type[Exception] = ValueError) -> None:
    """Raises `error(message)` unless the condition holds. The message states value, limit and fix."""
    if not condition:
        raise error(message)


@contextlib.contextmanager
def error_context(
    prefix: str, catch: type[Exception] | tuple[type[Exception], ...] = ValueError, error: type[Exception] = ValueError
) -> Iterator[None]:
    """Reraises errors of the types `catch` as `error`, with their message in one line after `prefix`."""
    try:
        yield
    except catch as caught:
        raise error(f'{prefix}{one_line(caught)}') from None
