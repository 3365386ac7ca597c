"""Checks of values from users, stated as the condition that must hold."""

import contextlib
from collections.abc import Iterator


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
        raise error(f'{prefix}{" ".join(str(caught).split()) or type(caught).__name__}') from None
