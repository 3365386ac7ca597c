"""The command `sample` from prompts to previews to videos: once with small random stages, and with a fake pipeline."""

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fv_jax import sample
from fv_jax.data.video import containers, decoding, encoding
from fv_jax.sampling import batch, metadata, preview_store
from fv_jax.sampling.metadata import WeightsOrigin
from tests.compiling import compiled
from tests.sampling import grey, tiny


def assert_error(capsys, code: int, *words: str) -> None:
    """One line, on stderr."""
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith('sample: ') and code in (1, 2) and 'Traceback' not in out
    for word in words:
        assert word in line, line


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())


# With networks.


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp('weights')
    tiny.save_pipeline_and_vae(folder)
    return folder


def test_sample_preview_enhance_and_reproduce(weights, tmp_path, capsys):
    run, flags = tmp_path / 'run', [f'--checkpoint={weights}', '--stage1.num_steps=2', '--batch-size=1']
    assert sample.main(['--prompt', 'a dog', f'--output={run}', '--seed=5', *flags]) == 0
    assert names(run) == ['0/latents.safetensors', '0/preview.mp4', 'contact_sheet.png']
    out = capsys.readouterr().out
    assert f'fv_jax.sample enhance {run}/0' in out and re.search(
        r'\npreview: [\d,]+ tokens/s, \S+ TFLOP/s per chip, in ', out
    )
    # Later, from what is stored; the weights are those of then.
    (run / '0' / 'preview.mp4').write_text('not a video any more')
    assert sample.main(['enhance', f'{run}/0', '--stage2.num_steps=1']) == 0
    out = capsys.readouterr().out
    assert re.search(r'\nenhance: [\d,]+ tokens/s, \S+ TFLOP/s per chip, in \S+ s \(compile time \S+ s\)', out)
    later = decoding.decode(run / '0' / 'video.mp4').frames
    assert later.shape == (9, 64, 128, 3) and later.std() > 1
    # In one go it is the same video, and nothing is compiled for it.
    at_once = tmp_path / 'at_once'
    with compiled() as programs:
        both = [f'--output={at_once}', '--seed=5', '--enhance-all', '--stage2.num_steps=1', *flags]
        assert sample.main(['--prompt', 'a dog', *both]) == 0
    assert not programs
    assert (at_once / '0' / 'video.mp4').read_bytes() == (run / '0' / 'video.mp4').read_bytes()
    # Again, from the mp4 alone.
    made = metadata.from_json(containers.read_comment(at_once / '0' / 'video.mp4'))
    assert made.preview.settings.num_steps == 2 and made.enhance.settings.num_steps == 1
    again = tmp_path / 'again.mp4'
    assert sample.main(['reproduce', f'{at_once}/0/video.mp4', f'--output={again}']) == 0
    assert again.read_bytes() == (at_once / '0' / 'video.mp4').read_bytes()


def test_sample_vbench_finds_its_own_videos(weights, tmp_path, capsys):
    flags = [f'--checkpoint={weights}', '--stage1.num_steps=2', '--stage2.num_steps=1', '--batch-size=1']
    assert vbench(tmp_path, *flags, prompts=('a dog', 'a cat'), samples=1) == 0
    first = content(tmp_path)
    capsys.readouterr()
    assert vbench(tmp_path, *flags, prompts=('a bee', 'a cat', 'a dog'), samples=1) == 0
    assert '3 video(s): 2 exist already, 1 to generate' in capsys.readouterr().out
    again = content(tmp_path)
    (tmp_path / 'out' / 'a cat-0.mp4').unlink()
    assert vbench(tmp_path, *flags, prompts=('a cat',), samples=1) == 0
    assert first.items() <= again.items() and content(tmp_path) == again and len(set(again.values())) == 3


# With a pipeline that draws a grey whose level is the seed.


@pytest.fixture
def grey_pipeline(monkeypatch):
    return grey.use_grey_pipeline(monkeypatch)


def test_sample_preview_of_a_prompt_file(grey_pipeline, tmp_path, capsys):
    (tmp_path / 'prompts.txt').write_text('a dog\n\n سلحفاة 🐢 \n', encoding='utf-8')
    run = tmp_path / 'run'
    flags = ['--num-samples=2', '--seed=3', '--fps=12', '--crf=0', '--stage1.guidance_scale=2.5', '--batch-size=3']
    assert sample.main([f'--prompts={tmp_path}/prompts.txt', f'--output={run}', *flags]) == 0
    settings = dataclasses.replace(grey_pipeline.preview_settings, guidance_scale=2.5)
    assert grey_pipeline.calls[1] == ('preview', ['a dog'] * 2 + ['سلحفاة 🐢'] * 2, [3, 1003, 4, 1004], settings, 3)
    assert grey_pipeline.origins == [WeightsOrigin(checkpoints=('embedded',))]
    files = [f'{i}/{name}' for i in range(4) for name in ('latents.safetensors', 'preview.mp4')]
    assert names(run) == [*files, 'contact_sheet.png']
    stored = preview_store.load(run / '3')
    assert stored.prompt == 'سلحفاة 🐢' and stored.seed == 1004 and stored.latents[0, 0, 0, 0] == 1004
    video = decoding.decode(run / '2' / 'preview.mp4')
    assert video.fps == 12 and np.abs(video.frames.astype(int) - 4).max() <= 1
    made = metadata.from_json(containers.read_comment(run / '2' / 'preview.mp4'))
    assert (made.fps, made.crf, made.preview.seed) == (12, 0, 4)
    assert Image.open(run / 'contact_sheet.png').size[1] > 4 * 22
    out = capsys.readouterr().out
    assert 'note: a note of the weights' in out and 'note: a note of the prompts' in out
    assert f'{run}/3: ' in out and '4 preview(s)' in out


def test_sample_enhance_of_chosen_previews(grey_pipeline, tmp_path):
    run = tmp_path / 'run'
    assert sample.main(['--prompt', 'a dog', '--num-samples=3', f'--output={run}']) == 0
    chosen = [f'{run}/2', f'{run}/0']
    assert sample.main(['enhance', *chosen, '--stage2.num_steps=3', '--stage2.numerics=official']) == 0
    settings = dataclasses.replace(grey_pipeline.enhance_settings, num_steps=3, numerics='official')
    assert grey_pipeline.calls[-1] == (
        'enhance',
        ['a dog'] * 2,
        [2000, 0],
        settings,
        2,
    )
    assert grey_pipeline.origins[-1] == grey_pipeline.origin  # of the previews
    assert decoding.decode(run / '2' / 'video.mp4').frames.mean() == pytest.approx(2000 % 256, abs=1)
    assert not (run / '1' / 'video.mp4').exists()
    # Elsewhere, with another seed and other weights.
    more = [f'--output={tmp_path}/x.mp4', '--seed=9', '--checkpoint', 'a', 'b', '--text=hash']
    assert sample.main(['enhance', f'{run}/1', *more]) == 0
    assert grey_pipeline.calls[-1][2] == [9] and grey_pipeline.origins[-1].checkpoints == ('a', 'b')
    assert grey_pipeline.origins[-1].text.encoder == 'hash'


def test_sample_chooses_the_weights_by_flags(grey_pipeline, tmp_path):
    flags = ['--official=ckpts', '--dtype=float32']
    assert sample.main(['--prompt=a dog', f'--output={tmp_path}/run', *flags]) == 0
    assert grey_pipeline.origins == [WeightsOrigin(official='ckpts', dtype='float32')]


def test_sample_reproduce_a_preview(grey_pipeline, tmp_path):
    assert sample.main(['--prompt=a dog', '--seed=50', f'--output={tmp_path}/run', '--fps=5']) == 0
    again = tmp_path / 'again.mp4'
    assert sample.main(['reproduce', f'{tmp_path}/run/0/preview.mp4', f'--output={again}']) == 0
    assert again.read_bytes() == (tmp_path / 'run' / '0' / 'preview.mp4').read_bytes()
    assert grey_pipeline.origins[-1] == grey_pipeline.origin


def test_sample_reproduce_refuses_other_weights(grey_pipeline, tmp_path, capsys):
    assert sample.main(['--prompt=a dog', f'--output={tmp_path}/run', '--enhance-all']) == 0
    grey_pipeline.weights = dataclasses.replace(grey.WEIGHTS, network='d' * 16)
    capsys.readouterr()
    flags = [f'--output={tmp_path}/again.mp4', '--checkpoint=other']
    assert sample.main(['reproduce', f'{tmp_path}/run/0/video.mp4', *flags]) == 1
    assert_error(capsys, 1, 'stage 1: the weights differ', 'aaaa', 'dddd')
    assert not (tmp_path / 'again.mp4').exists()


def test_sample_replaces_outputs_atomically_when_asked(grey_pipeline, tmp_path, capsys):
    run = tmp_path / 'run'
    assert sample.main(['--prompt=a dog', '--num-samples=3', f'--output={run}', '--enhance-all']) == 0
    capsys.readouterr()
    assert sample.main(['--prompt=a cat', f'--output={run}']) == 2
    assert_error(capsys, 2, f'--output={run}', 'is not empty', '--overwrite')
    assert sample.main(['enhance', f'{run}/0', '--seed=77']) == 2
    assert_error(capsys, 2, f'{run}/0/video.mp4', 'already exists', '--overwrite')
    assert preview_store.load(run / '0').prompt == 'a dog'
    assert sample.main(['enhance', f'{run}/0', '--overwrite', '--seed=77']) == 0
    assert sample.main(['--prompt=a cat', f'--output={run}', '--overwrite']) == 0
    assert names(run) == ['0/latents.safetensors', '0/preview.mp4', 'contact_sheet.png']
    assert preview_store.load(run / '0').prompt == 'a cat'


def test_sample_interrupted_leaves_complete_files(grey_pipeline, tmp_path, capsys):
    run = tmp_path / 'run'
    (tmp_path / 'prompts.txt').write_text('a dog\ninterrupt')
    assert sample.main([f'--prompts={tmp_path}/prompts.txt', f'--output={run}', '--batch-size=1']) == 130
    assert names(run) == ['0/latents.safetensors', '0/preview.mp4']
    assert 'interrupted; only complete files were written' in capsys.readouterr().err


def test_sample_batch_size():
    assert batch.batch_size(grey.SPEC, 49, (256, 480), 1) == 1 and batch.batch_size(grey.SPEC, 49, (1072, 1920), 1) == 1
    assert batch.batch_size(grey.SPEC, 17, (64, 96), 1) == 10_000 // (5 * 4 * 6)
    # Over eight devices: a preview on each, and one video over all.
    assert batch.batch_size(grey.SPEC, 49, (256, 480), 8) == 8 and batch.batch_size(grey.SPEC, 49, (1072, 1920), 8) == 1
    assert batch.batch_size(grey.SPEC, 49, (1072, 1920), 32) == 3


# For VBench.


def vbench(tmp_path, *flags, prompts=('a dog', 'a cat', 'a dog'), samples=2) -> int:
    path = tmp_path / 'all_dimension.txt'
    path.write_text('\n'.join(prompts))
    return sample.main(['vbench', f'--prompts={path}', f'--output={tmp_path}/out', f'--num-samples={samples}', *flags])


def generated(grey_pipeline) -> list[str]:
    return [prompt for call in grey_pipeline.calls if call[0] == 'preview' for prompt in call[1]]


def content(tmp_path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (tmp_path / 'out').iterdir()}


def test_sample_vbench_writes_the_layout_and_continues_it(grey_pipeline, tmp_path, capsys):
    assert vbench(tmp_path) == 0
    assert names(tmp_path / 'out') == ['a cat-0.mp4', 'a cat-1.mp4', 'a dog-0.mp4', 'a dog-1.mp4']
    made = metadata.from_json(containers.read_comment(tmp_path / 'out' / 'a dog-1.mp4'))
    assert made.preview.prompt == 'a dog' and made.enhance.seed == made.preview.seed and made.fps == 8
    first = content(tmp_path)
    # A longer list in another order: only what is new is generated.
    grey_pipeline.calls.clear()
    capsys.readouterr()
    assert vbench(tmp_path, '--batch-size=1', prompts=('a bee', 'a cat', 'a dog'), samples=3) == 0
    assert sorted(generated(grey_pipeline)) == ['a bee', 'a bee', 'a bee', 'a cat', 'a dog']
    assert '3 prompt(s), 9 video(s): 4 exist already, 5 to generate' in capsys.readouterr().out
    assert first.items() <= content(tmp_path).items() and len(content(tmp_path)) == 9
    # It is complete.
    grey_pipeline.calls.clear()
    assert vbench(tmp_path, prompts=('a cat',), samples=3) == 0
    assert not generated(grey_pipeline)


@pytest.mark.parametrize('flags', [[], ['--previews-only', '--batch-size=2']], ids=['both', 'previews'])
def test_sample_vbench_continues_after_an_interrupt(flags, grey_pipeline, tmp_path, capsys, monkeypatch):
    prompts = ('a dog', 'interrupt', 'a cat')
    monkeypatch.setattr(sample.vbench.vbench, 'GROUP', 2)
    assert vbench(tmp_path, '--batch-size=2', *flags, prompts=prompts) == 130
    assert 'interrupted; only complete files were written' in capsys.readouterr().err
    before = names(tmp_path / 'out')
    assert set(before) >= {'a dog-0.mp4', 'a dog-1.mp4'} and len(before) < 4 and not list(tmp_path.rglob('.*'))
    grey_pipeline.errors.clear()
    assert vbench(tmp_path, '--batch-size=2', *flags, prompts=prompts) == 0
    assert generated(grey_pipeline).count('a dog') == 2
    resumed = content(tmp_path)
    shutil.rmtree(tmp_path / 'out')
    assert vbench(tmp_path, '--batch-size=2', *flags, prompts=prompts) == 0
    assert content(tmp_path) == resumed


def test_sample_vbench_refuses_videos_of_other_settings(grey_pipeline, tmp_path, capsys):
    assert vbench(tmp_path) == 0
    before = content(tmp_path)
    grey_pipeline.calls.clear()
    capsys.readouterr()
    for flags, words in (
        (['--stage1.guidance_scale=2.5'], ('preview.settings.guidance_scale=', 'instead of 2.5')),
        (['--stage2.num_steps=3'], ('enhance.settings.num_steps=', 'instead of 3')),
        (['--previews-only'], ('is an enhanced video',)),
        (['--seed=1'], ('preview.seed=',)),
        (['--fps=9'], ('fps=8.0 instead of 9.0',)),
        (['--crf=9'], ('crf=18.0 instead of 9.0',)),
    ):
        assert vbench(tmp_path, *flags) == 2
        assert_error(capsys, 2, f'{tmp_path}/out/a dog-0.mp4: already exists', 'pass --overwrite', *words)
    grey_pipeline.weights = dataclasses.replace(grey.WEIGHTS, vae='d' * 16)
    assert vbench(tmp_path) == 2
    assert_error(capsys, 2, f'preview.weights.vae={"b" * 16} instead of {"d" * 16}')
    assert content(tmp_path) == before and not generated(grey_pipeline)
    assert vbench(tmp_path, '--overwrite') == 0
    assert len(generated(grey_pipeline)) == 4 and content(tmp_path).keys() == before.keys()
    # What is as wanted is not generated again, so that a list with --overwrite can be continued too.
    assert vbench(tmp_path, '--overwrite') == 0
    assert len(generated(grey_pipeline)) == 4


def test_sample_vbench_refuses_files_that_it_did_not_write(grey_pipeline, tmp_path, capsys):
    out = tmp_path / 'out'
    out.mkdir()
    for broken in (b'', b'not a video'):
        (out / 'a cat-0.mp4').write_bytes(broken)
        assert vbench(tmp_path) == 2
        assert_error(capsys, 2, f'{out}/a cat-0.mp4: already exists and cannot be kept', '--overwrite')
    assert vbench(tmp_path, '--overwrite') == 0
    whole = (out / 'a dog-1.mp4').read_bytes()
    (out / 'a dog-1.mp4').write_bytes(whole[: len(whole) // 2])
    capsys.readouterr()
    assert vbench(tmp_path) == 2
    assert_error(capsys, 2, f'{out}/a dog-1.mp4: already exists and cannot be kept')
    (out / 'a dog-1.mp4').unlink()
    (out / 'a dog-1.mp4').mkdir()
    assert vbench(tmp_path, '--overwrite') == 2
    assert_error(capsys, 2, f'{out}/a dog-1.mp4: is a folder')


def test_sample_vbench_previews_only(grey_pipeline, tmp_path):
    assert vbench(tmp_path, '--previews-only') == 0
    assert {call[0] for call in grey_pipeline.calls} == {'check', 'preview'} and grey_pipeline.calls[0][2] is None
    assert metadata.from_json(containers.read_comment(tmp_path / 'out' / 'a dog-1.mp4')).enhance is None


# Bad input: one line, and nothing is done.


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        (['--prompt='], ("--prompt=''", 'is empty')),
        (['--prompt=   '], ('is empty',)),
        (['--prompt=\ud83d'], ('not valid Unicode',)),
        (['--prompts=none.txt'], ('--prompts=none.txt', 'No such file')),
        (['--prompt=x', '--prompts=y'], ('not allowed with',)),
        (['--output=x'], ('--prompt', '--prompts', 'required')),
        (['--prompt=x', '--seed=many'], ('--seed', "'many'")),
        (['--prompt=x', '--seed=-1'], ('--seed=-1', '4294967295')),
        (['--prompt=x', '--seed=4294967295', '--num-samples=2'], ('--seed=4294967295', 'seeds end at')),
        (['--prompt=x', '--num-samples=0'], ('--num-samples=0', 'at least 1')),
        (['--prompt=x', '--batch-size=0'], ('--batch-size=0', 'at least 1')),
        (['--prompt=x', '--fps=0'], ('--fps=0', 'positive')),
        (['--prompt=x', '--crf=60'], ('--crf=60', '51')),
        (['--prompt=x', '--num-sample=4'], ('--num-sample:', 'did you mean --num-samples')),
        (['--prompt=x', '--scale=4'], ('--scale: unknown flag',)),
        (['--prompt=x', '--official=a', '--checkpoint=b'], ('--official', '--checkpoint', 'one of them')),
        (['--prompt=x', '--stage1.num_step=4'], ('--stage1.num_step', "did you mean 'num_steps'")),
        (['--prompt=x', '--stage1.num_steps'], ('--stage1.num_steps', 'needs a value')),
        (['--prompt=x', '--stage2.numerics=offical'], ('--stage2.numerics', "did you mean 'official'")),
        (['--prompt=x', '--stage1.size=(10,16)'], ('stage1.size: height=10', 'multiple of 16')),
        (['--prompt=x', '--stage3.size=3'], ('--stage3.size', 'unknown flag')),
        (['enhance', 'x', '--enhance-all'], ('--enhance-all: unknown flag', '--batch-size')),
        (['enhance'], ('FOLDER', 'required')),
        (['enhanced', 'x'], ('enhanced: unknown command', "did you mean 'enhance'", 'reproduce')),
        (['enhance', 'x', '--stage1.num_steps=2'], ('--stage1.num_steps: unknown flag',)),
        (['enhance', 'none/3'], ('none/3: holds no stored preview',)),
        (['reproduce', 'none.mp4'], ('none.mp4: no such file',)),
        (['clip', '--checkpoint=y', '--input=x', '--prompt=y'], ('--prompt: unknown flag',)),
        (['clip', '--input=x.mp4', '--stage1.num_steps=1'], ('--stage1.num_steps: unknown flag',)),
        (['clip', '--checkpoint=y'], ('--input', 'required')),
        (['vbench'], ('--prompts', 'required')),
        (['vbench', '--prompts=none.txt'], ('--prompts=none.txt: No such file',)),
        (['vbench', '--prompts=none.json'], ('--prompts=none.json: No such file',)),
        (['vbench', '--prompts=x', '--num-samples=0'], ('--num-samples=0', 'at least 1')),
        (['vbench', '--prompts=x', '--previews-only', '--stage2.num_steps=1'], ('--stage2.num_steps: has no effect',)),
        (['vbench', '--prompts=x.txt', '--dimension=color'], ('--prompts=x.txt: a text file states no dimensions',)),
        (['reproduce', 'x.mp4', '--seed=1'], ('--seed: unknown flag',)),
    ],
)
def test_sample_refuses_invalid_flags(flags, words, grey_pipeline, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = {'reproduce': ['--output=x.mp4'], 'clip': ['--output=x.mp4'], 'enhance': []}.get(
        flags[0], ['--output=run']
    )
    assert sample.main([*flags, *output]) == 2
    assert_error(capsys, 2, *words)
    assert list(tmp_path.iterdir()) == [] and not [c for c in grey_pipeline.calls if c[0] != 'check']


def test_sample_requires_a_subcommand(capsys):
    assert sample.main([]) == 2
    assert_error(capsys, 2, 'COMMAND is missing', 'preview, enhance, clip, vbench, reproduce')


def test_sample_help(capsys):
    shown = {}
    for name in ('preview', 'enhance', 'clip', 'vbench', 'reproduce'):
        with pytest.raises(SystemExit, match='0'):
            sample.main([name, '--help'])
        shown[name] = set(re.findall(r'--[a-z][a-z0-9-]+', capsys.readouterr().out)) - {'--help'}
    assert {'--prompt', '--num-samples', '--enhance-all', '--stage1', '--stage2'} <= shown['preview']
    assert '--stage2' in shown['enhance'] and not {'--stage1', '--prompt', '--num-samples'} & shown['enhance']
    assert {'--tile-size', '--official', '--stage2'} <= shown['clip'] and not {'--stage1', '--num-samples'} & shown[
        'clip'
    ]
    processes = {'--coordinator', '--num-processes', '--process-id', '--parallel'}
    weights = {'--official', '--checkpoint', '--text', '--dtype'}
    assert shown['reproduce'] == {'--output', '--overwrite'} | weights | processes
    with pytest.raises(SystemExit, match='0'):
        sample.main(['--help'])
    out = capsys.readouterr().out
    assert all(f'    {name} ' in out for name in shown)


def test_sample_refuses_an_unwritable_output(grey_pipeline, tmp_path, capsys):
    (tmp_path / 'file').write_text('precious')
    prompt = '--prompt=a dog'
    for output, words in (
        (tmp_path / 'file', 'is a file; name a folder'),
        (tmp_path / 'file' / 'run', 'does not exist'),
        (tmp_path / 'none' / 'run', 'does not exist'),
        (Path('/proc/run'), 'cannot be written'),
    ):
        assert sample.main([prompt, f'--output={output}']) == 2
        assert_error(capsys, 2, f'--output={output}', words)
    assert sample.main([prompt]) == 2
    assert_error(capsys, 2, 'required: --output')
    assert sample.main(['reproduce', 'x.mp4', '--output=/proc/x.mp4']) == 2
    assert_error(capsys, 2, '--output=/proc/x.mp4: cannot be written')
    assert (tmp_path / 'file').read_text() == 'precious' and not grey_pipeline.calls


def test_sample_enhance_refuses_a_changed_preview(grey_pipeline, tmp_path, capsys):
    run = tmp_path / 'run'
    assert sample.main(['--prompt=a dog', f'--output={run}']) == 0
    path = run / '0' / 'latents.safetensors'
    path.write_bytes(path.read_bytes().replace(b'a dog', b'a cat'))
    capsys.readouterr()
    assert sample.main(['enhance', f'{run}/0']) == 2
    assert_error(capsys, 2, f'{run}/0: was modified since it was stored', 'run `sample preview` again')
    assert len(grey_pipeline.origins) == 1


def test_sample_enhance_refuses_previews_of_different_weights(grey_pipeline, tmp_path, capsys):
    for name in 'ab':
        grey_pipeline.origin = WeightsOrigin(checkpoints=(name,), steps=(1, 1))
        assert sample.main(['--prompt=a dog', f'--output={tmp_path}/{name}']) == 0
    capsys.readouterr()
    both = ['enhance', f'{tmp_path}/a/0', f'{tmp_path}/b/0']
    assert sample.main(both) == 2
    assert_error(capsys, 2, 'were made with different weights', 'enhance them separately')
    assert sample.main([*both, f'--output={tmp_path}/x.mp4']) == 2
    assert_error(capsys, 2, '--output=', '2 previews are enhanced; remove it')


def test_sample_reproduce_refuses_other_mp4_files(grey_pipeline, tmp_path, capsys):
    encoding.encode(tmp_path / 'video.mp4', np.zeros((2, 16, 16, 3), np.uint8), 8)
    assert sample.main(['reproduce', f'{tmp_path}/video.mp4', f'--output={tmp_path}/x.mp4']) == 2
    assert_error(capsys, 2, f'{tmp_path}/video.mp4: contains no generation metadata')


def test_sample_names_missing_weights(tmp_path, capsys):
    for flags, code, word in (
        (['--official=none'], 1, 'none: no such folder'),
        (['--checkpoint=none'], 2, 'none: does not exist'),
    ):
        assert sample.main(['--prompt=a dog', f'--output={tmp_path}/run', *flags]) == code
        assert_error(capsys, code, word)
    assert list(tmp_path.iterdir()) == []
