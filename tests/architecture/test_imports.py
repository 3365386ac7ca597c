"""Who may import whom, read from the source by `ast` and never by importing it; and how long things may be.

A package imports packages of lower levels only. One that is not in the table is an error too, so that every new package
gets a level. README's map shows the same table.
"""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = 'fv_jax'

# A package may import itself and packages of lower levels. `training/run` is a package of its own here.
LEVELS = {
    'core': 0,
    'diffusion': 1,
    'kernels': 1,
    'models': 2,
    'parallel': 2,
    'text': 3,
    'data': 4,
    'stages': 4,
    'checkpoints': 5,
    'training': 5,
    'weights': 6,
    'evaluation': 8,
    'sampling': 7,
    'training.run': 7,
    'planning': 8,
    'api': 9,
    'serving': 9,
}
COMMANDS = {
    'train',
    'sample',
    'degrade',
    'evaluate',
    'prepare',
    'convert',
    'export',
    'plan',
    'inspect',
    'cache',
    'curate',
    'app',
}
# What a package may not import although its level allows it, and why.
EXCEPT = {
    'models': ('diffusion',),  # a network knows nothing of what it is trained for
    'data': ('diffusion', 'kernels', 'models', 'parallel'),  # NumPy only, in worker threads and processes
    'stages': ('kernels',),  # attention comes with the parallel context
    # The trainer knows the Stage protocol alone.
    'training': (
        'models',
        'diffusion',
        'data',
        'stages.registry',
        'stages.low_res',
        'stages.super_res',
        'stages.autoencoder',
    ),
    'checkpoints': ('diffusion', 'kernels', 'models', 'data', 'stages'),  # arrays and JSON, whatever they are
}

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
TORCH_FILES = f'{PACKAGE}/weights/torch_files/'  # copied by `export --format=diffusers`, never imported

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


def package_of(dotted: str) -> str:
    """The package in the table that a module, dotted and without `fv_jax.`, belongs to."""
    return 'training.run' if starts_with(dotted, 'training.run') else dotted.split('.')[0]


def layer_problem(importer: str, name: str) -> str | None:
    """What is wrong with `name` being imported by a package, if anything; both dotted, without `fv_jax.`."""
    target = package_of(name)
    if target in ('__version__', importer):
        return None
    if target in COMMANDS:
        return f'imports the command {target}; nothing imports a command'
    if target not in LEVELS:
        return f'imports {target}, which has no level; give it one in this test'
    if importer == '__init__':  # what `import fv_jax` shows
        return None if target == 'api' else f'the top level may import api only, not {name}'
    if importer in COMMANDS:
        return None
    if LEVELS[target] >= LEVELS[importer] or any(starts_with(name, other) for other in EXCEPT.get(importer, ())):
        return f'{importer} may not import {name}'
    return None


def layer_violations(root: pathlib.Path) -> list[str]:
    problems = []
    for path in python_files(root, PACKAGE):
        where = path.relative_to(root)
        if where.as_posix().startswith(TORCH_FILES):
            continue
        importer = package_of('.'.join(where.with_suffix('').parts[1:]))
        if importer not in {*LEVELS, *COMMANDS, '__init__'}:
            problems.append(f'{where}: {importer} has no level; give it one in this test')
            continue
        for line, name in imported_modules(path, root):
            if any(starts_with(name, bad) for bad in FORBIDDEN):
                problems.append(f'{where}:{line}: imports {name}; fv_jax runs without TensorFlow and torch')
            elif name.startswith(PACKAGE + '.'):
                problem = layer_problem(importer, name.removeprefix(PACKAGE + '.'))
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
    assert python_files(ROOT, PACKAGE), 'no source was found'
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
        ('models/dit.py', 'def f():\n    import fv_jax.training.trainer', 'models may not import training.trainer'),
        (
            'models/dit.py',
            "import importlib\nimportlib.import_module('fv_jax.data.shards.records')",
            'may not import data',
        ),
        ('core/config.py', 'import fv_jax.kernels.attention', 'core may not import kernels.attention'),
        ('kernels/attention.py', 'from fv_jax.models import dit', 'kernels may not import models.dit'),
        ('training/trainer.py', 'from fv_jax.stages import super_res', 'training may not import stages.super_res'),
        ('training/trainer.py', 'from fv_jax.training.run import setup', 'training may not import training.run.setup'),
        ('training/trainer.py', 'from fv_jax.checkpoints import manager', 'training may not import checkpoints'),
        ('stages/super_res.py', 'from fv_jax.kernels.attention import SINGLE_DEVICE', 'stages may not import kernels'),
        (
            'weights/layouts/official_dit.py',
            'from fv_jax.sampling import settings',
            'weights may not import sampling.settings',
        ),
        ('training/run/setup.py', 'from fv_jax.planning import flops', 'training.run may not import planning'),
        ('planning/planner.py', 'from fv_jax import api', 'planning may not import api'),
        ('api.py', 'from fv_jax.sample import main', 'nothing imports a command'),
        ('train.py', 'from fv_jax import sample', 'nothing imports a command'),
        ('evaluate.py', 'from fv_jax.sample import clip', 'nothing imports a command'),
        ('sample/clip.py', 'from fv_jax import train', 'nothing imports a command'),
        ('sampling/clip_enhancer.py', 'import fv_jax.api', 'sampling may not import api'),
        ('data/shards/records.py', 'import tensorflow as tf', 'without TensorFlow and torch'),
        ('weights/formats/torch_zip.py', 'from torch import nn', 'without TensorFlow and torch'),
        ('helpers/misc.py', 'import os', 'helpers has no level'),
        ('models/dit.py', 'from fv_jax.helpers import misc', 'helpers, which has no level'),
    ],
)
def test_import_of_a_higher_level_is_found(tmp_path: pathlib.Path, where: str, text: str, message: str) -> None:
    problems = layer_violations(planted(tmp_path, where, text))
    assert len(problems) == 1 and message in problems[0], problems


@pytest.mark.parametrize(
    ('where', 'text'),
    [
        ('training/trainer.py', 'from fv_jax.stages.protocol import Stage\nfrom fv_jax.stages import base'),
        ('training/trainer.py', 'from fv_jax.parallel import mesh\nfrom fv_jax.training import step'),
        ('training/run/setup.py', 'from fv_jax.training import trainer\nfrom fv_jax import weights'),
        ('sample/__init__.py', 'from fv_jax.sample import clip\nfrom fv_jax.sample.flags import Command'),
        ('train.py', 'from fv_jax import api, __version__\nfrom fv_jax.training import trainer'),
        ('data/shards/records.py', 'import tensorflow_datasets as tfds\nimport tensorboardX'),
        ('models/dit.py', 'from . import layers\nfrom ..kernels import attention\nfrom fv_jax.core import axes'),
    ],
)
def test_allowed_imports_are_not_reported(tmp_path: pathlib.Path, where: str, text: str) -> None:
    assert layer_violations(planted(tmp_path, where, text)) == []


def test_long_files_and_functions_are_found(tmp_path: pathlib.Path) -> None:
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


def test_torch_outside_of_parity_tests_is_found(tmp_path: pathlib.Path) -> None:
    for folder in ('models', 'parity'):
        path = tmp_path / 'tests' / folder / 'test_dit.py'
        path.parent.mkdir(parents=True)
        path.write_text('import torch', encoding='utf-8')
    problems = torch_outside_parity(tmp_path)
    assert len(problems) == 1 and 'tests/models/test_dit.py:1: imports torch' in problems[0]
