"""Checks of values from outside that read as what must hold."""


def require(condition: object, message: str, error: type[Exception] = ValueError) -> None:
    """Raises `error(message)` unless the condition holds. The message says value, limit and fix."""
    if not condition:
        raise error(message)
