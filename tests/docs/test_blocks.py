"""The code blocks of the guides run, or at least parse (`tests.docs.guides` describes their markers).

Each guide's blocks run in order, in a copy of the repository, as a reader would type them. A block that is not run is
parsed: shell with `bash -n` and the arguments of its commands by their own parsers, Python with its names of fv_jax.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import compiling
from tests.docs.commands import check_shell, shell_commands
from tests.docs.guides import DRY_RUN, ROOT, Block, blocks, guides
from tests.docs.python_names import check_python

LANGUAGES = ('bash', 'python', 'text')
MAX_WIDTH = 98  # characters of a line that GitHub shows without a scroll bar
TIMEOUT = 300  # seconds of a block


def copy_repository(to: Path) -> Path:
    """Copies what the guides' commands use. Returns the copy."""
    for name in ('setup.py', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, to / name)
    for name in ('fv_jax', 'configs', 'launch'):
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns('__pycache__'))
    return to


def environment(folder: Path) -> dict[str, str]:
    """This environment, with this Python as `python`, and with pip installing into `folder`, the package alone.

    Programs are compiled as in use: README samples by the small stages.
    """
    (folder / 'bin').mkdir()
    for name, command in {'python': '', 'pip': ' -m pip'}.items():
        program = folder / 'bin' / name
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)}{command} "$@"\n')
        program.chmod(0o755)
    (folder / 'home').mkdir()
    (folder / 'installed').mkdir()
    pip = {'TARGET': str(folder / 'installed'), 'NO_DEPS': '1', 'NO_INDEX': '1', 'NO_BUILD_ISOLATION': '0'}
    return {
        **os.environ,
        **{f'PIP_{name}': value for name, value in pip.items()},
        'PATH': f'{folder / "bin"}:{os.environ["PATH"]}',
        'HOME': str(folder / 'home'),
        **compiling.AS_IN_USE,
    }


def dry_run(code: str) -> str:
    """The launch scripts of a shell block, each with --dry-run. Raises ValueError for another command."""
    commands = shell_commands(code)
    for words in commands:
        if words[0] != 'bash' or not words[1].startswith('launch/'):
            raise ValueError(f'{shlex.join(words)}: only launch scripts take --dry-run')
        words.insert(words.index('--') if '--' in words else len(words), '--dry-run')
    return '\n'.join(map(shlex.join, commands))


def check(block: Block) -> None:
    """Parses a block. Raises ValueError."""
    if block.language not in LANGUAGES:
        raise ValueError(f'{block.language or "no language"}: a block is one of {", ".join(LANGUAGES)}')
    if long := [line for line in block.code.splitlines() if len(line) > MAX_WIDTH]:
        raise ValueError(f'{long[0]}: is longer than {MAX_WIDTH} characters')
    if block.language == 'bash':
        check_shell(block.code, ROOT)
    if block.language == 'python':
        check_python(block.code)


def run(block: Block, folder: Path, env: dict[str, str]) -> None:
    """Runs a block in `folder`. Raises ValueError where it fails."""
    code = dry_run(block.code) if block.marker == DRY_RUN else block.code
    command = ['python', '-'] if block.language == 'python' else ['bash', '-eu', '-o', 'pipefail']
    done = subprocess.run(
        command, input=code, cwd=folder, env=env, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    if done.returncode:
        raise ValueError(f'exit code {done.returncode}: {done.stdout[-1000:]}{done.stderr[-2000:]}')


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks_that_run(guide: Path) -> list[Block]:
    return [block for block in blocks(guide.read_text(encoding='utf-8')) if block.is_run]


@pytest.mark.parametrize('guide', guides(), ids=name)
def test_blocks_parse(guide: Path) -> None:
    problems = []
    for block in blocks(guide.read_text(encoding='utf-8')):
        try:
            check(block)
        except ValueError as error:
            problems.append(f'{name(guide)}:{block.line}: {error}')
    assert not problems, '\n'.join(problems)


def test_blocks_of_the_readme_run(tmp_path: Path) -> None:
    run_blocks(guides()[0], tmp_path)


def run_blocks(guide: Path, tmp_path: Path) -> None:
    """Runs the blocks of a guide, one after another, in a copy of the repository."""
    (tmp_path / 'repository').mkdir()
    folder, env = copy_repository(tmp_path / 'repository'), environment(tmp_path)
    for block in blocks_that_run(guide):
        try:
            run(block, folder, env)
        except (ValueError, subprocess.TimeoutExpired) as error:
            pytest.fail(f'{name(guide)}:{block.line}: {error}')


@pytest.mark.parametrize(
    'language, code, problem',
    [
        ('', 'python -m fv_jax.train', 'no language'),
        ('console', '$ ls', 'console: a block is one of'),
        ('text', 'x' * 99, 'longer than 98'),
        ('bash', 'for x in a; do', 'bash -n'),
        ('bash', 'echo "', 'bash -n'),
        ('bash', 'python -m fv_jax.tune --help', 'fv_jax.tune: is not a command'),
        ('bash', 'python -m fv_jax.sample previews --output out', "previews: unknown command; did you mean 'preview'?"),
        ('bash', 'python -m fv_jax.sample enhance out/0 --sede 1', '--sede: unknown flag; did you mean --seed?'),
        ('bash', 'python -m fv_jax.sample enhance out/0 --stage2.num_step=4', 'num_step: unknown key'),
        ('bash', 'python -m fv_jax.evaluate --checkpoint=RUN', 'required: --output'),
        ('bash', 'python -m fv_jax.evaluate --checkpoint=RUN --output=OUT --num-clips=all', 'num-clips'),
        ('bash', 'python -m fv_jax.train --config=configs/stage2.py:tinny --workdir=RUN', 'tinny: unknown variant'),
        ('bash', 'python -m fv_jax.train --config=configs/stage3.py --workdir=RUN', 'stage3.py does not exist'),
        ('bash', 'python -m fv_jax.train --config=configs/stage2.py --config.loop.alarm=1', 'alarm: unknown key'),
        ('bash', 'python -m fv_jax.degrade --input a --output b --config.weak.low=-1', 'low=-1'),
        ('bash', 'bash launch/run.sh --chip=v5e -- python -m fv_jax.train --confg=x', '--confg: unknown flag'),
        ('bash', 'bash launch/start.sh', 'launch/start.sh: does not exist'),
        ('bash', 'bash launch/benchmark.sh --gpus', 'launch/benchmark.sh has no --gpus'),
        ('bash', 'python -m tests.fuzz.kills', 'tests.fuzz.kills: does not exist'),
        ('bash', "pip install -e '.[tpus]'", 'setup.py has no extra tpus'),
        ('python', 'import fv_jax\nfv_jax.(', 'line 2: invalid syntax'),
        ('python', 'import fv_jax\nfv_jax.FlashVideos', 'has no attribute FlashVideos'),
        ('python', 'from fv_jax.core import quality', 'has no attribute quality'),
        (
            'python',
            'import fv_jax\nfv = fv_jax.FlashVideo.from_official("x")\nfv.previews("a")',
            'no attribute previews',
        ),
        ('python', 'import fv_jax\nfv = fv_jax.FlashVideo.from_official("x")\nfv.preview("a", sed=1)', "'sed'"),
        ('python', 'import fv_jax\nfv_jax.FlashVideo.from_official("x").preview("a").safe("b")', 'no attribute safe'),
    ],
)
def test_invalid_block_is_an_error(language: str, code: str, problem: str) -> None:
    (block,) = blocks(f'<!-- not run: a test -->\n```{language}\n{code}\n```\n')
    assert not block.is_run
    with pytest.raises(ValueError) as error:
        check(block)
    assert problem in str(error.value)


@pytest.mark.parametrize(
    'text, problem',
    [
        ('<!-- not run -->\n```bash\nls\n```', 'line 1'),
        ('<!-- not run: slow -->\n\n```bash\nls\n```', 'line 2'),
        ('```bash\nls\n', 'no end'),
        ('    python -m fv_jax.train', 'line 1: put commands between fences'),
    ],
)
def test_invalid_marker_is_an_error(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        blocks(text)


@pytest.mark.parametrize(
    'text, problem',
    [
        ('```bash\npython -m fv_jax.inspect missing\n```', 'missing'),
        ('```bash\nfalse | cat\n```', 'exit code 1'),
        ('```python\nraise SystemExit(3)\n```', 'exit code 3'),
        ('<!-- dry-run -->\n```bash\nbash launch/jobset.sh --name=run1\n```', '--type is missing'),
        ('<!-- dry-run -->\n```bash\nkubectl delete jobset run1\n```', 'only launch scripts'),
    ],
)
def test_failing_block_is_reported(tmp_path: Path, text: str, problem: str) -> None:
    (block,) = blocks(text)
    (tmp_path / 'repository').mkdir()
    folder, env = copy_repository(tmp_path / 'repository'), environment(tmp_path)
    with pytest.raises(ValueError) as error:
        run(block, folder, env)
    assert problem in str(error.value)


def test_block_runs_outside_of_the_repository(tmp_path: Path) -> None:
    install, find = 'pip install -e .\npwd >folder', 'import fv_jax\nprint(fv_jax.__file__, file=open("found", "w"))'
    (tmp_path / 'repository').mkdir()
    folder, env = copy_repository(tmp_path / 'repository'), environment(tmp_path)
    for block in blocks(f'```bash\n{install}\n```\n```python\n{find}\n```'):
        run(block, folder, env)
    assert (folder / 'folder').read_text() == f'{folder}\n'
    assert (folder / 'found').read_text() == f'{folder}/fv_jax/__init__.py\n'
