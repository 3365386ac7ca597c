"""Paths that users name are handled by core/paths, core/files and core/storage alone, local ones and URLs alike."""

import ast
import pathlib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
STORAGE = (
    'fv_jax/core/storage/',
    'fv_jax/core/paths.py',
    'fv_jax/core/files.py',
    'fv_jax/core/hub.py',
    'fv_jax/core/local_copies.py',
)
LIBRARIES = {'shutil', 'tempfile', 'etils', 'fsspec', 'gcsfs', 's3fs'}
# Of `os`: functions of local paths.
OF_OS = {
    *('listdir', 'makedirs', 'mkdir', 'open', 'path', 'remove', 'removedirs', 'rename', 'replace', 'rmdir', 'scandir'),
    *('stat', 'unlink', 'walk'),
}
# Methods that `pathlib.Path` has, and paths in object storage have not or have with another result.
METHODS = {'absolute', 'expanduser', 'resolve', 'rglob', 'samefile', 'stat', 'symlink_to', 'touch'}
_PATHS = {'Path', 'pathlib.Path'}
LOCAL_READERS = {'open', 'np.load', 'np.save', 'np.savez', 'load_file', 'save_file'}

# Modules whose paths are local by nature: what they use, and why.
LOCAL = {
    'fv_jax/cache.py': {'shutil'},  # the cache folder
    'fv_jax/core/cache.py': {'shutil', '.stat', 'Path'},  # of compiled programs
    'fv_jax/core/cache_folder.py': {
        'shutil',
        'os.open',
        'os.path',
        'os.replace',
        'os.stat',
        'os.walk',
        '.stat',
        'Path',
    },
    'fv_jax/core/cached_files.py': {'shutil', 'os.open', 'os.path', 'os.replace', 'os.walk'},
    'fv_jax/core/commands.py': {'os.open'},  # /dev/null
    'fv_jax/core/config_files.py': {'.resolve', 'Path'},  # Python programs, which must be local
    'fv_jax/core/file_locks.py': {'os.open', 'os.path', '.stat'},  # of the cache folder
    'fv_jax/data/curation/captioner.py': {'tempfile', 'Path'},  # mp4 files for a command
    'fv_jax/data/preparation/sample.py': {'tempfile', 'Path'},  # a dry run's clips
    'fv_jax/data/shards/record_writer.py': {'.stat'},  # its temporary file
    'fv_jax/data/shards/shard_files.py': {'Path'},  # of local shards
    'fv_jax/data/shards/shard_set.py': {'os.stat'},  # of many local shards
    'fv_jax/data/shards/tfds_builder.py': {'Path'},  # Beam, for local videos
    'fv_jax/data/sources.py': {'Path'},  # images, which are copied first
    'fv_jax/evaluation/ffmpeg_metrics.py': {'tempfile', 'Path'},  # a log of ffmpeg
    'fv_jax/evaluation/weight_files.py': {'Path'},  # files of installed packages
    'fv_jax/parallel/distributed.py': {'Path'},  # /dev
    'fv_jax/training/monitoring/profiler.py': {'shutil', 'tempfile', '.rglob', '.stat', 'Path'},  # what JAX writes
    'fv_jax/training/run/bad_step_dumps.py': {'np.load', 'np.savez'},  # a local copy, a temporary file
    'fv_jax/training/run/launch_record.py': {'Path'},  # this package
    'fv_jax/training/run/run_lock.py': {'Path'},  # /proc
}


def find_uses(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Yields (line, what) for everything in a file that takes local paths only."""
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'), str(path))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or '']
        else:
            names = []
        yield from ((node.lineno, name.partition('.')[0]) for name in names if name.partition('.')[0] in LIBRARIES)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == 'os' and node.attr in OF_OS:
            yield node.lineno, f'os.{node.attr}'
        if isinstance(node, ast.Call) and (what := _describe_call(node)):
            yield node.lineno, what


def _describe_call(call: ast.Call) -> str:
    """Returns what a call is, as LOCAL names it; '' for one that takes paths of any kind, or none."""
    function = ast.unparse(call.func)
    if function in LOCAL_READERS:
        return function
    arguments = [ast.unparse(argument) for argument in call.args]
    if function in _PATHS:
        return '' if arguments[:1] == ['__file__'] else 'Path'
    if function == 'isinstance' and _PATHS & {ast.unparse(node) for node in ast.walk(call.args[1])}:
        return 'Path'
    method = call.func.attr if isinstance(call.func, ast.Attribute) else ''
    return f'.{method}' if method in METHODS and not function.startswith(('paths.', 'os.')) else ''


def list_problems(root: pathlib.Path, allowed: dict[str, set[str]]) -> list[str]:
    problems = []
    for path in sorted((root / 'fv_jax').rglob('*.py')):
        where = path.relative_to(root).as_posix()
        if not where.startswith(STORAGE):
            uses = [(line, what) for line, what in find_uses(path) if what not in allowed.get(where, ())]
            problems += [
                f'{where}:{line}: {what} takes local paths; see core/paths and core/files' for line, what in uses
            ]
    return problems


def test_paths_of_users_are_handled_by_the_storage_module() -> None:
    problems = list_problems(ROOT, LOCAL)
    assert not problems, '\n'.join(problems)


def test_modules_of_local_paths_use_what_they_are_listed_for() -> None:
    for where, allowed in LOCAL.items():
        used = {what for _, what in find_uses(ROOT / where)}
        assert allowed <= used, f'{where}: {allowed - used} is not used; remove it from the list'


@pytest.mark.parametrize(
    ('text', 'what'),
    [
        ('from pathlib import Path\npath = Path(name)', 'Path'),
        ('import pathlib\npath = pathlib.Path(name)', 'Path'),
        ('known = isinstance(path, str | Path)', 'Path'),
        ('data = open(path)', 'open'),
        ('import os\nos.replace(a, b)', 'os.replace'),
        ('import os\nos.path.join(a, b)', 'os.path'),
        ('folder = path.absolute().parent', '.absolute'),
        ('size = path.stat().st_size', '.stat'),
        ('import shutil', 'shutil'),
        ('from etils import epath', 'etils'),
        ('import fsspec.asyn', 'fsspec'),
        ('values = np.load(path)', 'np.load'),
    ],
)
def test_uses_of_local_paths_are_found(tmp_path: pathlib.Path, text: str, what: str) -> None:
    path = tmp_path / 'fv_jax' / 'sample.py'
    path.parent.mkdir()
    path.write_text(text)
    (problem,) = list_problems(tmp_path, {})
    line = text.count('\n') + 1
    assert problem.startswith(f'fv_jax/sample.py:{line}: {what} takes local paths')
    assert not list_problems(tmp_path, {'fv_jax/sample.py': {what}})


@pytest.mark.parametrize('text', ['folder = pathlib.Path(__file__).parent', "x = 'a'.replace('a', 'b')", 'p.open()'])
def test_other_uses_are_not_found(tmp_path: pathlib.Path, text: str) -> None:
    (tmp_path / 'fv_jax').mkdir()
    (tmp_path / 'fv_jax' / 'sample.py').write_text(text)
    assert not list_problems(tmp_path, {})
