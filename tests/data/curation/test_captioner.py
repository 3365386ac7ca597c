"""The hook for captioners: functions and commands, batches, failures, and `prepare` with one."""

import sys

import pytest

from fv_jax.core.config import ConfigError
from fv_jax.data.curation.captioner import CaptionerConfig, CaptionerError, open_captioner
from fv_jax.data.preparation.make_shard import add_captions


@pytest.fixture
def captions(tmp_path, monkeypatch):
    """A module of captioners; `batches` lists the sizes of their batches."""
    (tmp_path / 'my_captions.py').write_text(
        'batches = []\n'
        'def count(clips):\n'
        '    batches.append(len(clips))\n'
        "    return [f' {len(clip)} bytes\\n' for clip in clips]\n"
        'def few(clips):\n'
        "    return ['one']\n"
        'def numbers(clips):\n'
        '    return [3 for clip in clips]\n'
        'def fail(clips):\n'
        "    raise KeyError('model')\n"
        'nothing = None\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield 'my_captions'
    sys.modules.pop('my_captions', None)


def records(count):
    return [({'video': b'x' * number}, {'caption': None, 'source': 'a'}) for number in range(count)]


def test_function_captions_clips_in_batches(captions):
    captioner = open_captioner(CaptionerConfig(f'{captions}:count', batch_size=3))
    found = list(add_captions(records(7), captioner, 3))
    assert [row['caption'] for _, row in found] == [f'{number} bytes' for number in range(7)]
    assert [record['video'] for record, _ in found] == [record['video'] for record, _ in records(7)]
    assert sys.modules[captions].batches == [3, 3, 1]


def test_command_captions_clips(tmp_path):
    script = tmp_path / 'a captioner.py'
    script.write_text(
        'import sys\nfor path in sys.argv[2:]:\n    data = open(path, "rb").read()\n'
        '    print("" if not data else sys.argv[1] + " é " + data.decode())\n'
    )
    captioner = open_captioner(CaptionerConfig(command=f'{sys.executable} "{script}" "a clip:"'))
    assert captioner([b'1', b'', b'22']) == ['a clip: é 1', None, 'a clip: é 22']


def test_records_before_one_that_cannot_be_made_are_captioned(captions):
    def made():
        yield from records(4)
        raise ValueError('damaged')

    captioner, found = open_captioner(CaptionerConfig(f'{captions}:count')), []
    with pytest.raises(ValueError, match='damaged'):
        for _, row in add_captions(made(), captioner, 3):
            found.append(row['caption'])
    assert found == [f'{number} bytes' for number in range(4)]


def test_without_a_captioner_nothing_changes():
    assert open_captioner(CaptionerConfig()) is None
    assert list(add_captions(records(3), None, 2)) == records(3)


@pytest.mark.parametrize('name', ['few', 'numbers', 'fail', 'nothing', 'missing'])
def test_captioner_that_fails_is_an_error_with_its_name(captions, name):
    with pytest.raises(CaptionerError, match=f'{captions}:{name}'):
        open_captioner(CaptionerConfig(f'{captions}:{name}'))([b'a', b'b'])


@pytest.mark.parametrize(
    'command', ['false', 'no_such_program', 'echo', f'{sys.executable} -c "import sys; sys.exit(3)"']
)
def test_command_that_fails_is_an_error_with_its_name(command):
    with pytest.raises(CaptionerError, match=command.split()[0]):
        open_captioner(CaptionerConfig(command=command))([b'a', b'b', b'c'])


@pytest.mark.parametrize(
    'fields',
    [
        {'function': 'module'},
        {'function': 'a b:c'},
        {'function': 'a:b', 'command': 'c'},
        {'command': '"'},
        {'batch_size': 0},
    ],
)
def test_configuration_is_checked(fields):
    with pytest.raises(ConfigError):
        CaptionerConfig(**fields)
