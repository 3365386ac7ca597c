"""Gives every command lines that cannot be meant, many of them, and checks how each ends:

    PYTHONPATH=. python tests/fuzz/bad_commands.py [--lines 1000] [--processes 20] [--at-once 2] [--seed 0]

One message on the standard error, which starts with the command's name and names the field, the flag or the file; an
exit code that is not 0; no trace; and nothing written, changed or removed. All lines are run in this process; some, of
every command, also as processes of their own, which must end with the same code and the same message. Needs the extra
`plan`: without libtpu, `plan` says nothing but that.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import importlib.util
import io
import itertools
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np

from fv_jax import cache, convert, degrade, evaluate, export, inspect, plan, prepare, sample, train
from fv_jax.sampling import lazy_stages
from fv_jax.training.run import initialization
from tests import runs
from tests.fuzz import world as worlds
from tests.fuzz.mistakes import Mistake, draw

COMMANDS = {
    'train': train, 'plan': plan, 'prepare': prepare, 'degrade': degrade, 'sample': sample, 'convert': convert,
    'export': export, 'evaluate': evaluate, 'inspect': inspect, 'cache': cache,
}  # fmt: skip
SECONDS = 600  # that a process may take


class Accepted(BaseException):
    """A command accepted its arguments and began."""


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a command.

    Attributes:
      code: exit code.
      error: its standard error.
    """

    code: int
    error: str

    @property
    def error_lines(self) -> list[str]:
        """The lines of the error, without progress bars."""
        return [line for line in self.error.splitlines() if '%|' not in line and 'B/s' not in line and line.strip()]


@contextlib.contextmanager
def stop_before_work() -> Iterator[None]:
    """Within it, what costs time or writes raises Accepted."""
    begins = {
        train: ('write_run_config',),
        initialization.jax: ('jit',),
        plan.planner: ('largest_bucket', 'sampling_phases'),
        prepare.pool: ('make_shards',),
        degrade.degradations: ('degrade_weak',),
        sample.clip.clip_outputs: ('write_output',),
        lazy_stages.LoadedStage: ('create',),
        convert.streaming: ('save',),
        convert.reader: ('write',),
        export: ('write_file',),
        export.exported_functions: ('export_stablehlo',),
        evaluate: ('_clips',),
        inspect: ('_table',),
        cache: ('trim',),
    }

    def raise_accepted(*_, **__):
        raise Accepted

    with contextlib.ExitStack() as stack:
        for module, names in begins.items():
            for name in names:
                stack.enter_context(mock.patch.object(module, name, raise_accepted))
        yield


def run_in_this_process(mistake: Mistake) -> Result:
    """In this process. Raises AssertionError for a command that accepts the line, or does not end by itself."""
    out, error = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            code = COMMANDS[mistake.command].main(list(mistake.arguments))
    except Accepted:
        raise AssertionError(f'{mistake}: accepted') from None
    except BaseException as raised:
        trace = ''.join(traceback.format_exception(raised)[-3:])
        raise AssertionError(f'{mistake}: raised {trace}') from None
    return Result(code, error.getvalue())


def run_as_process(mistake: Mistake, folder: Path) -> Result:
    """In a process of its own, whose temporary files go to a folder."""
    command = [sys.executable, '-m', f'fv_jax.{mistake.command}', *mistake.arguments]
    environment = os.environ | {'PYTHONPATH': str(runs.ROOT), 'JAX_PLATFORMS': 'cpu', 'TMPDIR': str(folder)}
    done = subprocess.run(command, cwd=runs.ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS)
    return Result(done.returncode, done.stderr)


def check_result(mistake: Mistake, ended: Result) -> str:
    """Returns the message. Raises AssertionError if the exit code or the message is not as documented."""
    assert ended.code not in (0, None), f'{mistake}: exit code {ended.code}'
    assert len(ended.error_lines) == 1, f'{mistake}: {len(ended.error_lines)} lines: {ended.error}'
    (line,) = ended.error_lines
    assert line.startswith(f'{mistake.command}: ') and 'Traceback' not in line, f'{mistake}: {line}'
    assert any(word in line for word in mistake.named), f'{mistake}: none of {mistake.named} in {line}'
    return line


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Returns the size and modification time of every file and folder."""
    # Python keeps what it has compiled of a configuration program beside it.
    paths = [path for path in sorted(folder.rglob('*')) if '__pycache__' not in path.parts]
    found = {path: path.stat() for path in paths if path.name != 'programs'}
    return {str(path): (s.st_size if path.is_file() else 0, s.st_mtime_ns) for path, s in found.items()}


def check_in_this_process(world: Path, mistakes: Iterable[Mistake]) -> tuple[list[tuple[Mistake, str]], list[str]]:
    """Mistakes with the messages that they got, and what was not as promised."""
    found, problems, before = [], [], state(world)
    with stop_before_work():
        for mistake in mistakes:
            try:
                found.append((mistake, check_result(mistake, run_in_this_process(mistake))))
            except AssertionError as error:
                problems.append(str(error))
            if (after := state(world)) != before:
                changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
                problems.append(f'{mistake}: wrote {changed}')
                before = after
    return found, problems


def check_as_processes(world: Path, found: list[tuple[Mistake, str]], count: int, seed: int, at_once: int) -> list[str]:
    """Runs mistakes of every command in processes. Lists those whose message differs from that in one process."""
    of: dict[str, list[tuple[Mistake, str]]] = collections.defaultdict(list)
    for i in np.random.default_rng(seed).permutation(len(found)):
        of[found[i][0].command].append(found[i])
    turns = itertools.zip_longest(*of.values())
    chosen = [each for turn in turns for each in turn if each is not None][:count]

    def find_problem(each: tuple[Mistake, str]) -> str | None:
        mistake, line = each
        try:
            message = check_result(mistake, run_as_process(mistake, world / 'empty'))
        except (AssertionError, subprocess.TimeoutExpired) as error:
            return str(error)
        return None if message == line else f'{mistake}: {message} as a process, {line} in this one'

    before = state(world)
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        lines = [line for line in pool.map(find_problem, chosen) if line is not None]
    return lines if state(world) == before else [*lines, 'the processes wrote something']


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description='Gives every command lines that cannot be meant.')
    parser.add_argument('--lines', type=int, default=1000)
    parser.add_argument('--processes', type=int, default=20)
    parser.add_argument('--at-once', type=int, default=2, help='processes')
    parser.add_argument('--seed', type=int, default=0)
    arguments = parser.parse_args(argv)
    if importlib.util.find_spec('libtpu') is None:
        parser.error("libtpu is not installed: pip install -e '.[plan]'")
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder) / 'world'
        worlds.make(world)
        mistakes = draw(world, np.random.default_rng(arguments.seed))
        found, problems = check_in_this_process(world, itertools.islice(mistakes, arguments.lines))
        problems += check_as_processes(world, found, arguments.processes, arguments.seed, arguments.at_once)
    for line in problems:
        print(f'WRONG {line}')
    by = collections.Counter(mistake.command for mistake, _ in found)
    messages = len({line for _, line in found})
    print(f'{time.process_time():.1f} s of processor time')
    print(f'{arguments.processes} of them also as processes')
    print(f'{len(found)} lines of {dict(by)} refused as they should be, with {messages} messages')
    print(f'{len(problems)} problems')
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
