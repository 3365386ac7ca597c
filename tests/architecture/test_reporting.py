"""Modules report through loggers of their own name: nothing prints but `core/console.py`."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONSOLE = 'fv_jax/core/console.py'
ON_THE_ROOT = {'basicConfig', 'debug', 'info', 'warning', 'error', 'exception', 'critical', 'log'}


def logger_problem(where: pathlib.Path, call: ast.Call) -> str | None:
    """What is wrong with a call of a function of `logging`, if anything."""
    assert isinstance(call.func, ast.Attribute)
    if call.func.attr in ON_THE_ROOT:
        return f'logging.{call.func.attr} is of the root logger; use `log = logging.getLogger(__name__)`'
    if call.func.attr != 'getLogger' or where.as_posix() == CONSOLE or where.parts[1] == 'core':
        return None
    # A command is run as __main__, whose records are not shown.
    wanted = f"'fv_jax.{where.stem}'" if len(where.parts) == 2 else '__name__'
    found = ', '.join(map(ast.unparse, call.args))
    return None if found == wanted else f'the logger is named by {found}; use logging.getLogger({wanted})'


def reporting_violations(root: pathlib.Path) -> list[str]:
    problems = []
    for path in sorted((root / 'fv_jax').rglob('*.py')):
        where = path.relative_to(root)
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'), str(path))):
            problem = None
            if isinstance(node, ast.Name) and node.id == 'print' and where.as_posix() != CONSOLE:
                problem = f'uses print; report through a logger, or print_result of {CONSOLE}'
            elif isinstance(node, ast.Call) and ast.unparse(node.func).startswith('logging.'):
                problem = logger_problem(where, node)
            problems += [f'{where}:{node.lineno}: {problem}'] if problem else []
    return problems


def test_only_the_console_prints() -> None:
    problems = reporting_violations(ROOT)
    assert not problems, '\n'.join(problems)


@pytest.mark.parametrize(
    ('where', 'text', 'message'),
    [
        ('models/dit.py', "def f():\n    print('a line')", 'dit.py:2: uses print'),
        ('models/dit.py', 'def f(note=print): ...', 'dit.py:1: uses print'),
        ('train.py', "print('a line')", 'train.py:1: uses print'),
        ('train.py', 'import logging\nlog = logging.getLogger(__name__)', "use logging.getLogger('fv_jax.train')"),
        ('data/loader.py', "import logging\nlog = logging.getLogger('loader')", 'use logging.getLogger(__name__)'),
        ('data/loader.py', "import logging\nlogging.info('a line')", 'logging.info is of the root logger'),
    ],
)
def test_print_and_other_loggers_are_found(tmp_path: pathlib.Path, where: str, text: str, message: str) -> None:
    path = tmp_path / 'fv_jax' / where
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding='utf-8')
    (problem,) = reporting_violations(tmp_path)
    assert message in problem


def test_allowed_logging_is_not_reported(tmp_path: pathlib.Path) -> None:
    for where, name in (('train.py', "'fv_jax.train'"), ('data/loader.py', '__name__')):
        path = tmp_path / 'fv_jax' / where
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"import logging\nlog = logging.getLogger({name})\nlog.info('a line')", encoding='utf-8')
    (tmp_path / 'fv_jax' / 'core').mkdir()
    (tmp_path / CONSOLE).write_text("print('a line')", encoding='utf-8')
    assert reporting_violations(tmp_path) == []
