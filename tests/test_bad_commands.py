"""Configurations and command lines that cannot be meant, made up: each is one line that names the field."""

import numpy as np
import pytest

from configs import stage1, stage2, vae
from fv_jax import train
from fv_jax.core.config import build, to_dict
from tests import runs

PROGRAMS = {'vae': vae, 'stage1': stage1, 'stage2': stage2}
COUNT = 120  # for each program


def fields(values, path=''):
    """Every field that is not a group: (path, value)."""
    for name, value in values.items():
        where = f'{path}.{name}' if path else name
        yield from fields(value, where) if isinstance(value, dict) else [(where, value)]


def misspelt(rng, path):
    """With a letter more somewhere; no field's name is another's with one."""
    groups = path.split('.')
    i = rng.integers(len(groups))
    place = rng.integers(1, len(groups[i]) + 1)
    groups[i] = f'{groups[i][:place]}q{groups[i][place:]}'
    return '.'.join(groups), groups[i]


def bad_argument(rng, found):
    """An argument, and what the message must name."""
    path, value = found[rng.integers(len(found))]
    kind = rng.integers(4)
    if kind == 0:
        wrong, name = misspelt(rng, path)
        return f'--config.{wrong}=1', name
    if kind == 1 and not isinstance(value, str) and value is not None:
        # A word where a number, a truth or a tuple belongs.
        return f'--config.{path}={rng.choice(["many", "nan()", "1e", "[", "{}"])}', path
    if kind == 2 and '.' in path:
        group = path.rpartition('.')[0]
        return f'--config.{group}=1', group
    return (f'--config.{path}', path) if kind == 3 else (f'--config.{path}.deeper=1', path.rpartition('.')[2])


@pytest.mark.parametrize('name', PROGRAMS)
def test_made_up_mistakes_are_one_line_that_names_the_field(name, tmp_path, capsys, monkeypatch):
    def accepted(*_):
        raise AssertionError('accepted')

    monkeypatch.setattr(train, 'run', accepted)
    program = f'--config={runs.ROOT}/configs/{name}.py:smoke'
    found = list(fields(to_dict(build(train.RunConfig, PROGRAMS[name].get_config('smoke').to_dict()))))
    rng = np.random.default_rng(0)
    for _ in range(COUNT):
        argument, field = bad_argument(rng, found)
        assert train.main([program, f'--workdir={tmp_path}/run', argument]) == 2, argument
        out, err = capsys.readouterr()
        (line,) = err.splitlines()
        assert line.startswith('train: ') and field in line and 'Traceback' not in out, (argument, line)
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('name', PROGRAMS)
def test_numbers_out_of_range_end_in_one_line_or_are_accepted(name, tmp_path, capsys, monkeypatch):
    """Never in a trace."""
    monkeypatch.setattr(train, 'run', lambda *_: None)
    program = f'--config={runs.ROOT}/configs/{name}.py:smoke'
    found = list(fields(to_dict(build(train.RunConfig, PROGRAMS[name].get_config('smoke').to_dict()))))
    rng, refused = np.random.default_rng(1), 0
    for path, value in found:
        if isinstance(value, int | float) and not isinstance(value, bool):
            number = type(value)(rng.choice([-1, 0, 10**9]))
            code = train.main([program, f'--workdir={tmp_path}/run', f'--config.{path}={number}'])
            _, err = capsys.readouterr()
            refused += code == 2
            assert (code == 0 and not err) or (code == 2 and len(err.splitlines()) == 1), (path, number, err)
    assert refused > 10


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--profile-steps=3:1'], '--profile-steps=3:1'),
        (['--allow-config-change=optimm'], 'optimm'),
        (['--replay=none.npz'], '--replay=none.npz'),
        (['--coordinator=here'], '--num-processes'),
        (['more'], 'more: unknown flag'),
    ],
)
def test_flags_that_cannot_be(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, 'run', lambda *_: pytest.fail('accepted'))
    program = f'--config={runs.ROOT}/configs/stage2.py:smoke'
    assert train.main([program, f'--workdir={tmp_path}/run', *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
