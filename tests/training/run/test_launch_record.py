"""run.json."""

import json
import subprocess
from pathlib import Path

import jax

from fv_jax.parallel.mesh import ParallelConfig, make_mesh
from fv_jax.training.run.launch_record import RUN, git_revision, record_start

COMMAND = ['python', '-m', 'fv_jax.train', '--config.data.train=a b']


def entries(folder):
    return json.loads((folder / RUN).read_text())


def test_launch_record_has_an_entry_for_each_start(tmp_path):
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    record_start(tmp_path, COMMAND, {'seed': 0}, mesh, 0)
    record_start(tmp_path, COMMAND, {'seed': 1}, mesh, 7)
    first, second = entries(tmp_path)
    assert first['command'] == COMMAND and (first['step'], second['step']) == (0, 7)
    assert (first['config'], second['config']) == ({'seed': 0}, {'seed': 1})
    assert first['versions']['jax'] == jax.__version__ and 'python' in first['versions']
    assert first['devices'] == {jax.devices()[0].device_kind: 1} and first['mesh']['data'] == 1
    assert {path.name for path in tmp_path.iterdir()} == {RUN}


def test_launch_record_that_cannot_be_read_is_renamed(tmp_path):
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    for text in ('[{', '{}'):
        (tmp_path / RUN).write_text(text)
        record_start(tmp_path, COMMAND, {}, mesh, 0)
        assert len(entries(tmp_path)) == 1 and (tmp_path / 'run.damaged').read_text() == text


def test_git_revision_of_a_file(tmp_path):
    def git(*arguments):
        who = ['-c', 'user.name=a', '-c', 'user.email=a@b']
        return subprocess.run(
            ['git', '-C', str(tmp_path), *who, *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    assert git_revision(tmp_path / 'a.py') is None
    git('init')
    for name in ('a.py', 'b.py'):
        (tmp_path / name).write_text('1')
    git('add', 'a.py')
    git('commit', '-m', 'a')
    head = git('rev-parse', 'HEAD')
    assert git_revision(tmp_path / 'a.py') == head and git_revision(tmp_path / 'b.py') is None
    (tmp_path / 'a.py').write_text('2')
    assert git_revision(tmp_path / 'a.py') == f'{head}+changes'
    assert git_revision(Path('/none/there.py')) is None
