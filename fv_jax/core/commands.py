"""How every command runs: third-party logs silenced, ours shown, errors turned into one line and an exit code."""

import contextlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

import jax

from fv_jax.core import exit_codes
from fv_jax.core.cache import use_compilation_cache
from fv_jax.core.command_line import UsageError, format_error
from fv_jax.core.config import ConfigError
from fv_jax.core.console import log_to_stdout, print_error


class TerminatedError(BaseException):
    """Raised on SIGTERM, so that temporary files are removed."""


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
    TerminatedError: exit_codes.TERMINATED,
}


def run_command(
    name: str,
    body: Callable[[Sequence[str]], int],
    argv: Sequence[str] | None,
    *,
    errors: ExitCodes | None = None,
    failed: str = '',
    left: str = '',
) -> int:
    """Runs a command and returns its exit code.

    Args:
      name: the command, in front of its error's line.
      body: arguments -> exit code.
      argv: the arguments, without the program's name; None takes those of this process.
      errors: exit codes of more errors, or others than EXIT_CODES gives. The nearest class of an error counts.
      failed: precedes the message of an error with exit code 1.
      left: what Ctrl-C and SIGTERM leave behind, for their messages.
    """
    codes = {**EXIT_CODES, **(errors or {})}
    silence_third_party_logs()
    with log_to_stdout():
        try:
            with _raise_on_sigterm():
                use_compilation_cache()
                return body(sys.argv[1:] if argv is None else argv)
        except BrokenPipeError:
            # What reads the output has closed it, as `head` does. Python flushes stdout once more at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return exit_codes.BROKEN_PIPE
        except tuple(codes) as error:
            code = next(codes[kind] for kind in type(error).__mro__ if kind in codes)
            signals = {KeyboardInterrupt: 'interrupted', TerminatedError: 'terminated'}
            text = signals[type(error)] + left if type(error) in signals else format_error(error)
            print_error(name, failed + text if code == exit_codes.FAILED else text)
            return code


@contextlib.contextmanager
def _raise_on_sigterm() -> Iterator[None]:
    """A context in which SIGTERM raises TerminatedError. A second signal ends the process at once."""

    def terminate(number: int, frame: FrameType | None) -> None:
        # No handler runs while Python waits for a device or a compiler.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise TerminatedError

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def silence_third_party_logs() -> None:
    """Silences log messages of libraries that are of no use to users.

    Orbax and Grain log through absl, for example that a read-only folder cannot be written. A save to a full disk logs
    pages of tracebacks, also by asyncio and from threads, in addition to the exception that we report.
    """
    # Beam warns of options that it does not know, which `prepare` names.
    for name in ('absl', 'asyncio', 'apache_beam.options.pipeline_options'):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.unraisablehook = _unraisable
    warnings.filterwarnings('ignore', module=r'(orbax|grain|jax|flax|optax|tensorboardX)\b')
    # Writes that a failed save leaves behind; the warning comes at the end of the process and names no module.
    warnings.filterwarnings('ignore', r"coroutine '.*write_fragment' was never awaited", RuntimeWarning)


def _unraisable(unraisable: Any) -> None:
    """Calls Python's default hook, except for writes that end after a failed save has closed their event loop."""
    if str(unraisable.exc_value) != 'Event loop is closed':
        sys.__unraisablehook__(unraisable)
