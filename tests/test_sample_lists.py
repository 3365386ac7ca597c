"""Lists of prompts in the command `sample`: continued by the same command, and what fails does not end the others."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from fv_jax import sample
from fv_jax.core.commands import TerminatedError
from fv_jax.data.video import encoding
from fv_jax.parallel import distributed
from fv_jax.sampling import preview_store
from fv_jax.sampling.metadata import ClipMetadata, EnhanceMetadata, GenerationMetadata, WeightsOrigin
from fv_jax.sampling.results import Video
from tests.sampling import grey
from tests.sampling.stored_files import content

PROMPTS = ('a dog', 'a cat', 'a bee', 'a fox', 'an owl')


@pytest.fixture
def pipeline(monkeypatch):
    return grey.use_grey_pipeline(monkeypatch)


@pytest.fixture
def run(tmp_path):
    return tmp_path / 'run'


def preview(run: Path, *flags: str, prompts=PROMPTS) -> int:
    path = run.parent / 'prompts.txt'
    path.write_text('\n'.join(prompts))
    return sample.main(['preview', f'--prompts={path}', f'--output={run}', '--batch-size=2', *flags])


def asked(pipeline, kind='preview') -> list[str]:
    return [prompt for call in pipeline.calls if call[0] == kind for prompt in call[1]]


def assert_refused(capsys, run, before, *words) -> None:
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words), line
    assert content(run) == before


@pytest.mark.parametrize('flags', [[], ['--enhance-all']], ids=['previews', 'both'])
@pytest.mark.parametrize('error', [KeyboardInterrupt, TerminatedError])
def test_list_continues_after_an_interrupt(error, flags, pipeline, run, capsys):
    assert preview(run, *flags) == 0
    whole = content(run)
    shutil.rmtree(run)
    for errors, wanted in ((pipeline.errors, 2), (pipeline.enhance_errors, 5)):
        errors['a bee'] = error
        assert preview(run, *flags) == {KeyboardInterrupt: 130, TerminatedError: 143}[error] or not flags
        errors.clear()
        assert len(list(run.glob('*/latents.safetensors'))) == wanted
        pipeline.calls.clear()
        if wanted == 2:
            # What a kill leaves behind.
            (run / '.2.abcd_123' / '2').mkdir(parents=True)
            (run / '.contact_sheet.abcd_123').mkdir()
        elif flags:
            (run / '1' / '.video.abcd_123').mkdir()  # beside a complete video
    assert preview(run, *flags) == 0
    assert content(run) == whole and not list(run.rglob('.*'))


def test_list_makes_only_what_is_missing(pipeline, run, capsys):
    pipeline.errors['a bee'] = KeyboardInterrupt
    assert preview(run) == 130
    pipeline.errors.clear()
    pipeline.calls.clear()
    assert preview(run) == 0
    assert asked(pipeline) == ['a bee', 'a fox', 'an owl']
    out = capsys.readouterr().out
    assert '2 of 5 preview(s) exist already' in out and 'preview 4 of 5, 0:00:00 left' in out


def test_batch_of_the_rest_of_a_list_has_the_shape_of_the_others(pipeline, run):
    assert preview(run) == 0
    shutil.rmtree(run / '3')
    pipeline.calls.clear()
    assert preview(run) == 0
    assert asked(pipeline) == ['a fox', 'a fox']


def test_complete_list_loads_no_weights(pipeline, run, capsys):
    assert preview(run) == 0
    before = content(run)
    pipeline.calls.clear()
    assert preview(run) == 0
    assert '5 of 5 preview(s) exist already' in capsys.readouterr().out
    assert not asked(pipeline) and not pipeline.loaded and content(run) == before
    (run / 'contact_sheet.png').unlink()
    assert preview(run) == 0
    assert content(run) == before


def test_longer_list_keeps_the_shorter_one(pipeline, run):
    assert preview(run, prompts=PROMPTS[:3]) == 0
    sheet = (run / 'contact_sheet.png').read_bytes()
    assert preview(run) == 0
    assert asked(pipeline) == [*PROMPTS[:3], 'a fox', 'an owl'] and (run / 'contact_sheet.png').read_bytes() != sheet


def test_list_that_differs_is_refused(pipeline, run, capsys):
    assert preview(run) == 0
    shutil.rmtree(run / '4')
    before = content(run)
    capsys.readouterr()
    for flags, words in (
        (['--seed=1'], ('run/0: ', 'preview.seed=0 instead of 1')),
        (['--stage1.num_steps=7'], ('run/0: ', 'preview.settings.num_steps=', 'instead of 7')),
        (['--fps=9'], ('run/0: ', 'fps=8.0 instead of 9.0')),
        (['--crf=9'], ('run/0: ', 'crf=18.0 instead of 9.0')),
        (['--num-samples=2'], ('run/1: ', 'preview.prompt=a cat instead of a dog')),
    ):
        assert preview(run, *flags) == 2
        assert_refused(capsys, run, before, *words, 'choose another folder or pass --overwrite')
    assert preview(run, prompts=(*PROMPTS[:2], 'a bat', *PROMPTS[3:])) == 2
    assert_refused(capsys, run, before, 'run/2: ', 'preview.prompt=a bee instead of a bat', '--overwrite')
    assert preview(run, prompts=PROMPTS[:3]) == 2
    assert_refused(capsys, run, before, '--output=', 'is not empty (3)', '--overwrite')
    (run / 'notes.txt').write_text('precious')
    assert preview(run) == 2
    assert_refused(capsys, run, before | {'notes.txt': b'precious'}, 'is not empty (notes.txt)', '--overwrite')
    assert asked(pipeline) == list(PROMPTS)


def test_list_with_damaged_previews_is_refused(pipeline, run, capsys):
    assert preview(run) == 0
    path = run / '3' / 'latents.safetensors'
    path.write_bytes(path.read_bytes().replace(b'a fox', b'a box'))
    (run / '1' / 'preview.mp4').write_text('edited')
    before = content(run)
    capsys.readouterr()
    assert preview(run) == 2
    assert_refused(capsys, run, before, 'run/1: already exists and cannot be kept', 'preview.mp4')
    shutil.copy(run / '2' / 'preview.mp4', run / '1')
    before = content(run)
    assert preview(run) == 2
    assert_refused(capsys, run, before, 'run/3: already exists and cannot be kept', 'was modified')
    pipeline.calls.clear()
    assert preview(run, '--overwrite') == 0
    assert asked(pipeline) == ['a fox', 'a fox'] and preview_store.load(run / '3').prompt == 'a fox'


def test_list_of_other_weights_is_refused(pipeline, run, capsys):
    assert preview(run) == 0
    shutil.rmtree(run / '4')
    before = content(run)
    capsys.readouterr()
    # The same name, which proves nothing: seen when the first batch exists, and before it is written.
    pipeline.weights = dataclasses.replace(grey.WEIGHTS, network='d' * 16)
    assert preview(run) == 2
    words = f'preview.weights.network={"a" * 16} instead of {"d" * 16}'
    assert_refused(capsys, run, before, 'run/0: ', words, 'choose another folder or remove it')
    assert asked(pipeline)[5:] == ['an owl'] * 2 and not pipeline.loaded
    # Another name: seen before anything is sampled.
    pipeline.calls.clear()
    pipeline.origin = WeightsOrigin(checkpoints=('elsewhere',), steps=(1, 1))
    assert preview(run) == 2
    assert_refused(capsys, run, before, 'run/0: ', words, 'choose another folder or pass --overwrite')
    assert not asked(pipeline)
    # The same weights elsewhere.
    pipeline.weights = grey.WEIGHTS
    assert preview(run) == 0
    assert asked(pipeline) == ['an owl'] * 2 and before.items() < (content(run) | before).items()


def test_overwrite_replaces_what_differs(pipeline, run):
    assert preview(run, '--enhance-all') == 0
    before = content(run)
    pipeline.calls.clear()
    assert preview(run, '--overwrite', '--enhance-all', prompts=('a dog', 'a bat', 'a bee')) == 0
    assert asked(pipeline) == ['a bat', 'a bat'] and asked(pipeline, 'enhance') == ['a bat', 'a bat']
    assert {path.name for path in run.iterdir()} == {'0', '1', '2', 'contact_sheet.png'}
    assert all(content(run)[name] == before[name] for name in before if name.startswith(('0/', '2/')))
    # A shorter list alone.
    sheet = (run / 'contact_sheet.png').read_bytes()
    assert preview(run, '--overwrite', prompts=('a dog', 'a bat')) == 0
    assert len(asked(pipeline)) == 2 and (run / 'contact_sheet.png').read_bytes() != sheet


# Failures.


def test_failed_batch_is_named_and_the_others_are_made(pipeline, run, capsys):
    pipeline.errors['a bee'] = OSError
    assert preview(run, '--enhance-all') == 1
    out, err = capsys.readouterr()
    assert f"WARNING: {run}/2: 'a bee', seed 2: failed: out of memory" in out and f'{run}/3: ' in out
    line = f"2 of 5 previews failed ({run}/2: 'a bee', seed 2; {run}/3: 'a fox', seed 3); run the command again"
    assert err.startswith(f'sample: {line}') and err.count('\n') == 1
    assert sorted(path.parent.name for path in run.glob('*/video.mp4')) == ['0', '1', '4']
    kept = {name: data for name, data in content(run).items() if name != 'contact_sheet.png'}
    pipeline.errors.clear()
    pipeline.calls.clear()
    assert preview(run, '--enhance-all') == 0
    assert asked(pipeline) == asked(pipeline, 'enhance') == ['a bee', 'a fox']
    continued = content(run)
    assert kept.items() < continued.items()
    shutil.rmtree(run)
    assert preview(run, '--enhance-all') == 0
    assert content(run) == continued


def test_failed_videos_are_named_and_the_others_are_made(pipeline, run, capsys):
    assert preview(run) == 0
    folders = [f'{run}/{i}' for i in range(5)]
    pipeline.enhance_errors['an owl'] = ValueError
    capsys.readouterr()
    assert sample.main(['enhance', *folders, '--batch-size=2']) == 1
    assert f"1 of 5 videos failed ({run}/4/video.mp4: 'an owl'); run the command again" in capsys.readouterr().err
    pipeline.enhance_errors.clear()
    pipeline.calls.clear()
    assert sample.main(['enhance', *folders, folders[0], '--batch-size=2']) == 0
    assert asked(pipeline, 'enhance') == ['an owl'] * 2
    assert '4 of 5 video(s) exist already' in capsys.readouterr().out


def test_file_that_cannot_be_written_fails_alone(pipeline, run, capsys, monkeypatch):
    save, failing = Video.save, {'1', '2'}

    def fail(video, path, **options):
        if path.parent.name in failing:
            raise OSError(28, 'No space left on device')
        save(video, path, **options)

    monkeypatch.setattr(Video, 'save', fail)
    assert preview(run, '--enhance-all') == 1
    out, err = capsys.readouterr()
    assert '1/video.mp4' in err and '2/video.mp4' in err and out.count('failed: [Errno 28] No space left') == 2
    assert err.startswith('sample: 2 of 5 videos failed')
    assert sorted(path.parent.name for path in run.glob('*/video.mp4')) == ['0', '3', '4']
    # Several in a row have one cause.
    failing.update('34')
    shutil.rmtree(run)
    assert preview(run, '--enhance-all') == 1
    assert '3/video.mp4' in (err := capsys.readouterr().err) and 'after 3 failures in a row' in err
    # So has the first.
    failing.add('0')
    shutil.rmtree(run)
    assert preview(run, '--enhance-all') == 1
    assert capsys.readouterr().err == 'sample: [Errno 28] No space left on device\n'


def test_first_batch_that_fails_ends_the_list(pipeline, run, capsys):
    pipeline.errors['a cat'] = ValueError
    assert preview(run) == 1
    out, err = capsys.readouterr()
    assert err == 'sample: out of memory\n' and 'WARNING' not in out and not run.exists()
    # Not where it is the first of what is missing.
    assert preview(run, prompts=('a dog',)) == 0
    assert preview(run) == 1
    assert '2 of 5 previews failed' in capsys.readouterr().err and (run / '4').is_dir()


def test_vbench_continues_after_a_failure(pipeline, tmp_path, capsys):
    (tmp_path / 'prompts.txt').write_text('\n'.join(PROMPTS))
    flags = ['--num-samples=1', '--batch-size=1', f'--prompts={tmp_path}/prompts.txt', f'--output={tmp_path}/out']
    pipeline.errors['a cat'], pipeline.enhance_errors['a fox'] = OSError, ValueError
    assert sample.main(['vbench', *flags]) == 1
    assert '2 of 5 videos failed' in (err := capsys.readouterr().err) and 'a cat-0.mp4' in err and 'a fox-0.mp4' in err
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['a bee-0.mp4', 'a dog-0.mp4', 'an owl-0.mp4']
    pipeline.errors.clear()
    pipeline.enhance_errors.clear()
    pipeline.calls.clear()
    assert sample.main(['vbench', *flags]) == 0
    assert asked(pipeline) == ['a cat', 'a fox']


# Videos of stored previews.


def test_enhance_refuses_videos_that_differ(pipeline, run, capsys):
    assert preview(run, '--enhance-all') == 0
    before = content(run)
    pipeline.calls.clear()
    capsys.readouterr()
    both = ['enhance', f'{run}/0', f'{run}/1']
    assert sample.main(both) == 0 and '2 of 2 video(s) exist already' in capsys.readouterr().out
    for flags, words in (
        (['--seed=5'], ('run/0/video.mp4: ', 'enhance.seed=0 instead of 5')),
        (['--stage2.num_steps=3'], ('enhance.settings.num_steps=',)),
        (['--crf=3'], ('crf=',)),
    ):
        assert sample.main([*both, *flags]) == 2
        assert_refused(capsys, run, before, *words, '--overwrite')
    # Before what is missing is sampled.
    shutil.rmtree(run / '4')
    before = content(run)
    assert preview(run, '--enhance-all', '--stage2.num_steps=3') == 2
    assert_refused(capsys, run, before, 'run/0/video.mp4', 'enhance.settings.num_steps=')
    assert not asked(pipeline)
    # Weights of stage 2 alone.
    pipeline.weights = dataclasses.replace(grey.WEIGHTS, network='d' * 16)
    assert sample.main(both) == 2
    assert_refused(capsys, run, before, 'run/0/video.mp4', 'enhance.weights.network=')
    assert not asked(pipeline, 'enhance')
    assert sample.main([*both, '--overwrite']) == 0
    assert asked(pipeline, 'enhance') == ['a dog', 'a cat']


def test_enhance_refuses_files_of_others(pipeline, run, tmp_path, capsys):
    assert preview(run) == 0
    output = tmp_path / 'video.mp4'
    output.write_text('precious')
    capsys.readouterr()
    assert sample.main(['enhance', f'{run}/0', f'--output={output}']) == 2
    assert_refused(capsys, run, content(run), f'{output}: already exists and cannot be kept', '--overwrite')
    assert output.read_text() == 'precious'
    enhanced = EnhanceMetadata(0, pipeline.enhance_settings, grey.WEIGHTS)
    clip = GenerationMetadata('1', pipeline.origin, enhance=enhanced, clip=ClipMetadata('clip.mp4', 9, 5))
    encoding.encode(output, np.zeros((2, 16, 16, 3), np.uint8), 8, comment=clip.to_json())
    assert sample.main(['enhance', f'{run}/0', f'--output={output}']) == 2
    assert_refused(capsys, run, content(run), f'{output}: already exists and cannot be kept (is an enhanced clip)')
    shutil.copy(run / '0' / 'preview.mp4', output)
    assert sample.main(['enhance', f'{run}/0', f'--output={output}']) == 2
    assert_refused(capsys, run, content(run), f'{output}: already exists, and is a preview', '--overwrite')


def test_another_process_writes_nothing(pipeline, run, tmp_path, monkeypatch):
    """It samples what the first process writes."""
    assert preview(run) == 0
    (run / '1' / 'preview.mp4').unlink()
    before = content(run)
    monkeypatch.setattr(distributed, 'is_first_process', lambda: False)
    pipeline.calls.clear()
    assert sample.main(['enhance', f'{run}/0', f'{run}/2']) == 0
    assert asked(pipeline, 'enhance') == ['a dog', 'a bee'] and content(run) == before
    assert preview(tmp_path / 'other') == 0 and asked(pipeline) == list(PROMPTS)
    (tmp_path / 'names.txt').write_text('a dog')
    assert sample.main(['vbench', f'--prompts={tmp_path}/names.txt', f'--output={tmp_path}/out']) == 0
    assert not (tmp_path / 'other').exists() and not (tmp_path / 'out').exists()
