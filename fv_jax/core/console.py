"""What commands write to the terminal: log records, results and errors. Nothing else in the package prints.

A module reports through `log = logging.getLogger(__name__)`, a command through `logging.getLogger('fv_jax.COMMAND')`,
since `__name__` is '__main__' there. Only a command configures logging; a program that imports fv_jax does it itself.
"""

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax

PACKAGE = 'fv_jax'
EVERY_PROCESS = {'every_process': True}  # `extra` of a record that each process reports for itself

log = logging.getLogger(__name__)


class Notice(UserWarning):
    """A warning of the Python API to its caller. Commands log it as a note."""


class StdoutHandler(logging.Handler):
    """Writes the message of a record to the current `sys.stdout`, with the level in front from WARNING on.

    Records come from process 0 alone, unless their `extra` is EVERY_PROCESS. As with `print`, a closed pipe or a full
    disk raises OSError in the code that logs.
    """

    def __init__(self):
        super().__init__()
        self.addFilter(_is_shown)

    def format(self, record: logging.LogRecord) -> str:
        level = f'{record.levelname}: ' if record.levelno >= logging.WARNING else ''
        return level + super().format(record)

    def emit(self, record: logging.LogRecord) -> None:
        print(printable(self.format(record)), flush=True)


def printable(text: str) -> str:
    r"""Returns a text in which bytes of file names that are not UTF-8 are written as \udcff."""
    return text.encode(errors='backslashreplace').decode()


def _is_shown(record: logging.LogRecord) -> bool:
    # Not `process_index` alone: it starts a backend, which most commands' first lines are too early for.
    first = not jax.distributed.is_initialized() or jax.process_index() == 0
    return first or getattr(record, 'every_process', False)


@contextlib.contextmanager
def log_to_stdout() -> Iterator[None]:
    """A context in which the records of the package from INFO on, and its notices, are written to stdout."""
    logger, handler = logging.getLogger(PACKAGE), StdoutHandler()
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # libraries call `logging.basicConfig`: all would be shown again on stderr
    try:
        with warnings.catch_warnings():
            _show_notices_as_notes()
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


class _SendingHandler(logging.Handler):
    """Sends the records of a process to the process that has started it."""

    def __init__(self, send: Callable[[logging.LogRecord], None]):
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args, record.exc_info = record.getMessage(), None, None  # what can be pickled
        self._send(record)


def send_logs(send: Callable[[logging.LogRecord], None]) -> None:
    """Sends the records of the package in this process, from INFO on, elsewhere: to `show_record` of another one."""
    logger = logging.getLogger(PACKAGE)
    logger.addHandler(_SendingHandler(send))
    logger.setLevel(logging.INFO)
    logger.propagate = False


def show_record(record: logging.LogRecord) -> None:
    """Logs a record of another process."""
    logging.getLogger(record.name).handle(record)


def _show_notices_as_notes() -> None:
    show_others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, Notice):
            log.info(f'note: {message}')
        else:
            show_others(message, category, *place, **more)

    warnings.simplefilter('always', Notice)
    warnings.showwarning = show


def print_result(text: str) -> None:
    """Writes a result of a command to stdout, as opposed to its log."""
    print(text, flush=True)


def print_error(command: str, text: str) -> None:
    """Writes the error that ended a command to stderr."""
    print(f'{command}: {text}', file=sys.stderr, flush=True)
