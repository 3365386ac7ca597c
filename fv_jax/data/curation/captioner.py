"""A hook for a captioner: a Python function or a command that describes clips. None is part of this package.

A function is named `module:function`. It is given a list of clips, each the bytes of an mp4 file, and returns one text,
or None, for each. A command is started once for each batch, with the paths of mp4 files after its own arguments, and
prints one line for each file; an empty line is no caption.

`prepare` asks it for the captions of clips whose video has none, in batches, before text embeddings are made. What it
returns is stored with the shard, so that complete shards are not captioned again when the command continues.
"""

import dataclasses
import importlib
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from fv_jax.core.checks import one_line, require
from fv_jax.core.config import ConfigError, check_range

Captioner = Callable[[Sequence[bytes]], list[str | None]]
_SHOWN = 300  # characters of a message


class CaptionerError(OSError):
    """Raised when a captioner fails or returns something else than one text for each clip."""


@dataclasses.dataclass(frozen=True)
class CaptionerConfig:
    """Who captions clips without a caption; by default nobody.

    Attributes:
      function: 'module:function', importable from where the command runs.
      command: a command line.
      batch_size: how many clips it is given at once.
    """

    function: str = ''
    command: str = ''
    batch_size: int = 8

    def __post_init__(self):
        check_range(self, 'batch_size', low=1)
        require(not (self.function and self.command), 'function: cannot be combined with a command', ConfigError)
        module, colon, name = self.function.partition(':')
        valid = not self.function or (colon and name.isidentifier() and all(map(str.isidentifier, module.split('.'))))
        require(valid, f'function={self.function!r}: must be module:function', ConfigError)
        try:
            shlex.split(self.command)
        except ValueError as error:
            raise ConfigError(f'command={self.command!r}: {error}') from None


def open_captioner(config: CaptionerConfig) -> Captioner | None:
    """Returns a function from clips, mp4 files in bytes, to their captions; None if no captioner is configured.

    It raises CaptionerError for a captioner that fails.

    Raises:
      CaptionerError: the module cannot be imported, or has no such function.
    """
    if config.function:
        return _check(_import(config.function), config.function)
    if config.command:
        return _check(lambda clips: _run(config.command, clips), config.command)
    return None


def _import(text: str) -> Callable[[Sequence[bytes]], Sequence[str | None]]:
    module, _, name = text.partition(':')
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise CaptionerError(f'captioner {text}: {one_line(error)}') from None
    require(callable(function), f'captioner {text}: is not a function', CaptionerError)
    return function


def _run(command: str, clips: Sequence[bytes]) -> list[str]:
    """Runs a command on clips and returns its lines."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f'{number}.mp4' for number in range(len(clips))]
        for path, clip in zip(paths, clips, strict=True):
            path.write_bytes(clip)
        arguments = [*shlex.split(command), *map(str, paths)]
        try:
            done = subprocess.run(arguments, capture_output=True, text=True, encoding='utf-8', errors='replace')
        except OSError as error:
            raise CaptionerError(f'captioner {command}: {one_line(error)}') from None
    if done.returncode:
        reason = one_line(done.stderr[-_SHOWN:])
        raise CaptionerError(f'captioner {command}: ended with exit code {done.returncode}: {reason}')
    return done.stdout.splitlines()


def _check(caption: Callable[[Sequence[bytes]], Sequence[str | None]], name: str) -> Captioner:
    """Returns the captioner with checks of what it returns."""

    def checked(clips: Sequence[bytes]) -> list[str | None]:
        try:
            found = list(caption(clips))
        except CaptionerError:
            raise
        except Exception as error:  # of a function that is not ours, whatever it raises
            raise CaptionerError(f'captioner {name}: {type(error).__name__}: {one_line(error, _SHOWN)}') from error
        wrong = f'captioner {name}: returned {len(found)} captions for {len(clips)} clips'
        require(len(found) == len(clips), wrong, CaptionerError)
        for text in found:
            require(text is None or isinstance(text, str), f'captioner {name}: returned {text!r}', CaptionerError)
        return [(text or '').strip() or None for text in found]

    return checked
