"""How every command runs: third-party logs silenced, ours shown, errors turned into one line and an exit code."""

import logging
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from fv_jax.core import exit_codes
from fv_jax.core.cache import use_compilation_cache
from fv_jax.core.command_line import UsageError, format_error
from fv_jax.core.config import ConfigError
from fv_jax.core.console import log_to_stdout, print_error

ExitCodes = Mapping[type[BaseException], int]

# Errors that a user can cause. Any other is a bug, and its traceback is shown.
EXIT_CODES: ExitCodes = {
    UsageError: exit_codes.USAGE,
    ConfigError: exit_codes.USAGE,
    OSError: exit_codes.FAILED,
    ValueError: exit_codes.FAILED,
    jax.errors.JaxRuntimeError: exit_codes.FAILED,
    exit_codes.PreemptedError: exit_codes.PREEMPTED,
    KeyboardInterrupt: exit_codes.INTERRUPTED,
}


def run_command(
    name: str,
    body: Callable[[Sequence[str]], int],
    argv: Sequence[str] | None,
    *,
    errors: ExitCodes | None = None,
    failed: str = '',
    interrupted: str = 'interrupted',
) -> int:
    """Runs a command and returns its exit code.

    Args:
      name: the command, in front of its error's line.
      body: arguments -> exit code.
      argv: the arguments, without the program's name; None takes those of this process.
      errors: exit codes of more errors, or others than EXIT_CODES gives. The nearest class of an error counts.
      failed: precedes the message of an error with exit code 1.
      interrupted: what Ctrl-C leaves behind.
    """
    codes = {**EXIT_CODES, **(errors or {})}
    silence_third_party_logs()
    use_compilation_cache()
    with log_to_stdout():
        try:
            return body(sys.argv[1:] if argv is None else argv)
        except tuple(codes) as error:
            code = next(codes[kind] for kind in type(error).__mro__ if kind in codes)
            text = interrupted if isinstance(error, KeyboardInterrupt) else format_error(error)
            print_error(name, failed + text if code == exit_codes.FAILED else text)
            return code


def silence_third_party_logs() -> None:
    """Silences log messages of libraries that are of no use to users.

    Orbax and Grain log through absl, for example that a read-only folder cannot be written. A save to a full disk logs
    pages of tracebacks, also by asyncio and from threads, in addition to the exception that we report.
    """
    for name in ('absl', 'asyncio'):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.unraisablehook = _unraisable
    warnings.filterwarnings('ignore', module=r'(orbax|grain|jax|flax|optax|tensorboardX)\b')
    # Writes that a failed save leaves behind; the warning comes at the end of the process and names no module.
    warnings.filterwarnings('ignore', r"coroutine '.*write_fragment' was never awaited", RuntimeWarning)


def _unraisable(unraisable: Any) -> None:
    """Calls Python's default hook, except for writes that end after a failed save has closed their event loop."""
    if str(unraisable.exc_value) != 'Event loop is closed':
        sys.__unraisablehook__(unraisable)
