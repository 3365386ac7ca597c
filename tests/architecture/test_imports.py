"""Who may import whom, read from the source by `ast` and never by importing it; and how long things may be.

The tables are the plan of the house. A package that is not in them is an error too, so that a new room gets a layer.
"""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = 'fv_jax'

# package -> what it may import of fv_jax, beside itself and the top level's version.
MAY_IMPORT = {
    'core': set(),
    'diffusion': {'core'},
    'kernels': {'core'},
    'models': {'core', 'kernels'},
    'parallel': {'core', 'kernels'},
    'data': {'core'},
    'stages': {'core', 'diffusion', 'models', 'data.text'},
    'training': {'core', 'parallel', 'stages.base'},
    'checkpoints': {'core', 'parallel'},
    'inference': {'core', 'diffusion', 'models', 'parallel', 'stages', 'data'},
    'weights': {'core', 'models', 'data'},
}
ROOMS = set(MAY_IMPORT)
COMMANDS = {'train', 'sample', 'degrade', 'evaluate', 'prepare', 'convert', 'export', 'plan', 'inspect'}
TOP = ('api', 'assembly')  # files above all rooms
TOP_MAY_IMPORT = ROOMS
MAY_IMPORT['running'] = ROOMS | set(TOP)  # what stands around a training run's loop
MAY_IMPORT['planning'] = ROOMS | {'assembly'}
COMMANDS_MAY_IMPORT = set(MAY_IMPORT) | set(TOP)

FORBIDDEN = {
    'tensorflow',
    'tensorflow_probability',
    'keras',
    'torch',
    'torchvision',
    'torchaudio',
    'jax.experimental.jax2tf',
}
TORCH_TESTS = ('tests/parity/', 'tests/benchmarks/')

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


def python_files(root: pathlib.Path, *folders: str) -> list[pathlib.Path]:
    return sorted(path for folder in folders for path in (root / folder).rglob('*.py'))


def imported_modules(path: pathlib.Path, root: pathlib.Path) -> list[tuple[int, str]]:
    """(line, dotted name) of everything that a file imports, wherever in it. `from a import b` gives `a.b`."""
    package = list(path.relative_to(root).parent.parts)
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'), str(path))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = '.'.join([*above, *filter(None, [node.module])])
            found += [(node.lineno, f'{module}.{alias.name}') for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ('importlib.import_module', '__import__'):
            found += [(node.lineno, a.value) for a in node.args[:1] if isinstance(a, ast.Constant)]
    return found


def starts_with(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + '.')


def layer_problem(room: str, name: str) -> str | None:
    """What is wrong with `name` (inside fv_jax, dotted, without `fv_jax.`) being imported in `room`, if anything."""
    target = name.split('.')[0]
    if target in COMMANDS:
        return f'imports the command {target}; nothing imports a command'
    if target == '__version__' or target == room:
        return None
    if target not in MAY_IMPORT and target not in TOP:
        return f'imports {target}, which has no layer; give it one in this test'
    allowed = (
        COMMANDS_MAY_IMPORT
        if room in COMMANDS
        else TOP_MAY_IMPORT
        if room in TOP
        else {'api'}  # what `import fv_jax` shows
        if room == '__init__'
        else MAY_IMPORT.get(room)
    )
    if allowed is None:
        return f'{room} has no layer; give it one in this test'
    if any(starts_with(name, a) for a in allowed):
        return None
    return f'{room} may not import {name}; it may import {sorted(allowed)}'


def layer_violations(root: pathlib.Path) -> list[str]:
    problems = []
    for path in python_files(root, PACKAGE):
        where = path.relative_to(root)
        room = where.parts[1].removesuffix('.py')
        if room not in {*MAY_IMPORT, *COMMANDS, *TOP, '__init__'}:
            problems.append(f'{where}: {room} has no layer; give it one in this test')
        for line, name in imported_modules(path, root):
            if any(starts_with(name, bad) for bad in FORBIDDEN):
                problems.append(f'{where}:{line}: imports {name}; fv_jax runs without TensorFlow and torch')
            elif name.startswith(PACKAGE + '.'):
                problem = layer_problem(room, name.removeprefix(PACKAGE + '.'))
                problems += [f'{where}:{line}: {problem}'] if problem else []
    return problems


def torch_outside_parity(root: pathlib.Path) -> list[str]:
    return [
        f'{path.relative_to(root)}:{line}: imports {name}; only {" and ".join(TORCH_TESTS)} may'
        for path in python_files(root, 'tests')
        if not path.relative_to(root).as_posix().startswith(TORCH_TESTS)
        for line, name in imported_modules(path, root)
        if any(starts_with(name, bad) for bad in FORBIDDEN)
    ]


def test_only_parity_and_benchmarks_use_torch() -> None:
    problems = torch_outside_parity(ROOT)
    assert not problems, '\n'.join(problems)


def length_violations(root: pathlib.Path) -> list[str]:
    problems = []
    for path in python_files(root, PACKAGE, 'configs'):
        where, text = path.relative_to(root), path.read_text(encoding='utf-8')
        if (lines := len(text.splitlines())) > MAX_FILE_LINES:
            problems.append(f'{where}: {lines} lines; the limit is {MAX_FILE_LINES}')
        for node in ast.walk(ast.parse(text, str(path))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    problems.append(
                        f'{where}:{node.lineno}: {node.name} has {lines}; the limit is {MAX_FUNCTION_LINES}'
                    )
    return problems


def test_layers() -> None:
    assert python_files(ROOT, PACKAGE), 'no source was found: the walk is broken'
    problems = layer_violations(ROOT)
    assert not problems, '\n'.join(problems)


def test_lengths() -> None:
    problems = length_violations(ROOT)
    assert not problems, '\n'.join(problems)


def planted(tmp_path: pathlib.Path, where: str, text: str) -> pathlib.Path:
    path = tmp_path / PACKAGE / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')
    return tmp_path


@pytest.mark.parametrize(
    ('where', 'text', 'message'),
    [
        ('models/dit.py', 'from fv_jax.diffusion import process', 'models may not import diffusion.process'),
        ('models/dit.py', 'from fv_jax import stages', 'models may not import stages'),
        ('models/dit.py', 'from ..diffusion import process', 'models may not import diffusion.process'),
        ('models/dit.py', 'def f():\n    import fv_jax.training.loop', 'models may not import training.loop'),
        ('models/dit.py', "import importlib\nimportlib.import_module('fv_jax.data.records')", 'may not import data'),
        ('core/config.py', 'import fv_jax.kernels.attention', 'core may not import kernels.attention'),
        ('kernels/attention.py', 'from fv_jax.models import dit', 'kernels may not import models.dit'),
        ('training/loop.py', 'from fv_jax.stages import superres', 'training may not import stages.superres'),
        ('training/loop.py', 'from fv_jax.checkpoints import manager', 'training may not import checkpoints'),
        ('stages/superres.py', 'from fv_jax.kernels.attention import SINGLE_DEVICE', 'stages may not import kernels'),
        ('weights/dit.py', 'from fv_jax.inference import pipeline', 'weights may not import inference.pipeline'),
        ('assembly.py', 'from fv_jax.planning import flops', 'assembly may not import planning'),
        ('planning/planner.py', 'from fv_jax import api', 'planning may not import api'),
        ('api.py', 'from fv_jax.sample import main', 'nothing imports a command'),
        ('train.py', 'from fv_jax import sample', 'nothing imports a command'),
        ('inference/pipeline.py', 'import fv_jax.api', 'inference may not import api'),
        ('data/records.py', 'import tensorflow as tf', 'without TensorFlow and torch'),
        ('weights/torch_file.py', 'from torch import nn', 'without TensorFlow and torch'),
        ('helpers/misc.py', 'import os', 'helpers has no layer'),
        ('models/dit.py', 'from fv_jax.helpers import misc', 'helpers, which has no layer'),
    ],
)
def test_a_planted_import_is_found(tmp_path: pathlib.Path, where: str, text: str, message: str) -> None:
    problems = layer_violations(planted(tmp_path, where, text))
    assert len(problems) == 1 and message in problems[0], problems


@pytest.mark.parametrize(
    ('where', 'text'),
    [
        ('training/loop.py', 'from fv_jax.stages.base import Stage\nfrom fv_jax.stages import base'),
        ('training/loop.py', 'from fv_jax.parallel import mesh\nfrom fv_jax.training import step'),
        ('train.py', 'from fv_jax import api, __version__\nfrom fv_jax.training import loop'),
        ('data/records.py', 'import tensorflow_datasets as tfds\nimport tensorboardX'),
        ('models/dit.py', 'from . import layers\nfrom ..kernels import attention\nfrom fv_jax.core import rules'),
    ],
)
def test_what_is_allowed_is_not_reported(tmp_path: pathlib.Path, where: str, text: str) -> None:
    assert layer_violations(planted(tmp_path, where, text)) == []


def test_planted_lengths_are_found(tmp_path: pathlib.Path) -> None:
    (tmp_path / 'configs').mkdir()
    body = '    x = 1\n'
    planted(
        tmp_path, 'core/fits.py', 'def f():\n' + body * (MAX_FUNCTION_LINES - 1) + '\n' * (400 - MAX_FUNCTION_LINES)
    )
    assert length_violations(tmp_path) == []
    planted(tmp_path, 'core/long.py', '\n' * (MAX_FILE_LINES + 1))
    planted(
        tmp_path, 'core/function.py', 'class A:\n    def f():\n' + '    ' + body + ('    ' + body) * MAX_FUNCTION_LINES
    )
    problems = length_violations(tmp_path)
    assert len(problems) == 2 and 'function.py:2: f has 62' in problems[0] and 'long.py: 401 lines' in problems[1]


def test_planted_torch_in_tests_is_found(tmp_path: pathlib.Path) -> None:
    for folder in ('models', 'parity'):
        path = tmp_path / 'tests' / folder / 'test_dit.py'
        path.parent.mkdir(parents=True)
        path.write_text('import torch', encoding='utf-8')
    problems = torch_outside_parity(tmp_path)
    assert len(problems) == 1 and 'tests/models/test_dit.py:1: imports torch' in problems[0]
