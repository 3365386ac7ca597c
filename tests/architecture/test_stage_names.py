"""No module names a stage but the stages themselves: read from the source by `ast`.

Whoever needs something of a stage asks the protocol (`stages/protocol`), or for its purpose (`stages/latent_stage`).
What is refused outside of `stages/` and the files of `HOMES`:

  classes   a stage's class or that of its options, and its module: imported, or as an attribute
  kinds     a kind of `registry.KINDS` as a whole string, an attribute or a keyword: `kind == 'superres'`, `x.superres`
  switches  the strings 'stage1' and 'stage2'
"""

import ast
import pathlib
from collections.abc import Iterator

import pytest

from fv_jax.stages.registry import KINDS
from tests.architecture.test_imports import PACKAGE, ROOT, imported_modules, planted, python_files

HOMES = {
    'fv_jax/api.py': 'the facade puts the official release together, and names the runs of a folder: stage1, stage2',
}
CLASSES = {cls.__name__ for kind in KINDS.values() for cls in (kind.stage, kind.options)}
MODULES = {kind.stage.__module__ for kind in KINDS.values()}
ATTRIBUTES = {*CLASSES, *KINDS, *(module.rpartition('.')[2] for module in MODULES)}
SWITCHES = {'stage1', 'stage2'}


def docstrings(tree: ast.AST) -> set[int]:
    """The ids of the constants that are docstrings, or other strings that stand alone."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, what is wrong) of every name of a stage."""
    apart = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in CLASSES:
            yield node.lineno, f'the class {node.id}'
        elif isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES:
            yield node.lineno, f'.{node.attr}'
        elif isinstance(node, ast.keyword) and node.arg in KINDS:
            yield node.value.lineno, f'{node.arg}='
        elif isinstance(node, ast.alias) and node.name in CLASSES:
            yield node.lineno, f'the class {node.name}'
        elif isinstance(node, ast.Constant) and id(node) not in apart and node.value in {*KINDS, *SWITCHES}:
            yield node.lineno, repr(node.value)


def violations(root: pathlib.Path) -> list[str]:
    problems = []
    for path in python_files(root, PACKAGE):
        where = path.relative_to(root).as_posix()
        if where in HOMES or where.startswith(f'{PACKAGE}/stages/'):
            continue
        found = list(names(ast.parse(path.read_text(encoding='utf-8'), str(path))))
        found += [(line, f'imports {name}') for line, name in imported_modules(path, root) if name in MODULES]
        problems += [f'{where}:{line}: names a stage: {what}; ask the Stage protocol' for line, what in sorted(found)]
    return problems


def test_no_module_names_a_stage() -> None:
    problems = violations(ROOT)
    assert not problems, '\n'.join(problems)


def test_every_exception_is_needed() -> None:
    for where in HOMES:
        assert list(names(ast.parse((ROOT / where).read_text(encoding='utf-8')))), where


@pytest.mark.parametrize(
    ('text', 'what'),
    [
        ("if config.stage.kind == 'superres':\n    pass", "'superres'"),
        ("degraded = 2 if kind in ('lowres', 'other') else 1", "'lowres'"),
        ("SIZES = {'stage2': (1072, 1920)}", "'stage2'"),
        ('text = f\'{name}{"stage1"}\'', "'stage1'"),
        ('steps = config.superres.num_steps', '.superres'),
        ('stage = StageConfig(autoencoder=config)', 'autoencoder='),
        ('stage = pipeline.super_res', '.super_res'),
        ('isinstance(stage, SuperRes)', 'the class SuperRes'),
        ('from fv_jax.stages.low_res import LowResConfig', 'the class LowResConfig'),
        ('from fv_jax.stages import super_res', 'imports fv_jax.stages.super_res'),
        ('import fv_jax.stages.autoencoder', 'imports fv_jax.stages.autoencoder'),
        ('options = super_res.SuperResConfig()', '.SuperResConfig'),
    ],
)
def test_stage_name_in_another_module_is_found(tmp_path: pathlib.Path, text: str, what: str) -> None:
    problems = violations(planted(tmp_path, 'planning/programs.py', text))
    assert len(problems) == 1 and f'programs.py:1: names a stage: {what};' in problems[0], problems


@pytest.mark.parametrize(
    ('where', 'text'),
    [
        ('planning/programs.py', '"""Stage 2, superres, and stage1."""\nisinstance(stage, EnhancementStage)'),
        ('weights/official_release.py', "NAMES = 'stage1.pt', 'stage2.pt'\nlog.info('lowres and superres')"),
        ('data/pipeline.py', "streams(groups, low_res=True)\nstage1 = open(low_res='x')"),
        ('stages/flow_map.py', 'from fv_jax.stages.super_res import SuperRes'),
        ('api.py', 'from fv_jax.stages.low_res import LowRes'),
    ],
)
def test_allowed_mentions_of_stages_are_not_reported(tmp_path: pathlib.Path, where: str, text: str) -> None:
    assert violations(planted(tmp_path, where, text)) == []
