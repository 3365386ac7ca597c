"""The runner of the pipeline, with networks of a few thousand random numbers."""

import numpy as np
import pytest
from PIL import Image

from fv_jax import api
from fv_jax.data import image_files
from fv_jax.data.video import containers, decoding, encoding
from fv_jax.sampling import metadata, preview_store
from fv_jax.serving.pipeline_runner import PipelineRunner
from fv_jax.serving.requests import JobRequest, Limits, TooLargeError, UnsupportedTypeError
from tests.sampling import tiny

STEPS = {'preview': 3, 'enhance': 2}


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp('weights')
    tiny.save_pipeline_and_vae(folder)
    return folder


@pytest.fixture(scope='module')
def runner(weights):
    return PipelineRunner(api.FlashVideo.from_checkpoint(weights), Limits(clip_frames=20, clip_pixels=64 * 64))


@pytest.fixture(scope='module')
def preview(runner, tmp_path_factory):
    """The complete request and the folder of a preview, and the steps that it reported."""
    request, steps, folder = runner.complete(JobRequest('preview', 'a dog', 5), None), [], tmp_path_factory.mktemp('r')
    runner.run(request, None, folder / 'job', lambda *step: steps.append(step))
    return request, folder / 'job', steps


def test_request_is_completed_with_the_settings_of_the_weights(runner):
    request = runner.complete(JobRequest('preview', 'a dog'), None)
    assert (request.size, request.frames, request.num_steps) == (tiny.PREVIEW, tiny.FRAMES, STEPS['preview'])
    enhanced = runner.complete(JobRequest('enhance'), request)
    assert (enhanced.size, enhanced.frames) == ((64, 128), tiny.FRAMES)
    assert set(runner.describe()) == {'preview', 'enhance', 'clip'}
    assert 'note' not in runner.describe()['preview']


def test_small_weights_name_the_prompts_that_they_know():
    note = PipelineRunner(api.FlashVideo.from_checkpoint('embedded')).describe()['preview']['note']
    assert '"a ladybug moves from left to right over a beach"' in note and 'a town at night' in note


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'size': (15, 32)}, '15.*must be a multiple of 16'),
        ({'frames': 8}, 'frames=8'),
        ({'size': (32, 32)}, r'size=32x32.*use at most 4608 pixels'),
        ({'size': (1080, 1920)}, r'size=1920x1080.*use at most 4608 pixels'),
    ],
)
def test_impossible_preview_is_refused(runner, values, message):
    with pytest.raises(ValueError, match=message):
        runner.complete(JobRequest('preview', 'a dog', **values), None)


def test_preview_is_that_of_the_pipeline(runner, weights, preview):
    request, folder, steps = preview
    stored = preview_store.load(folder)
    expected = api.FlashVideo.from_checkpoint(weights).preview('a dog', seed=5)
    np.testing.assert_array_equal(stored.latents, expected.latents)
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert metadata.from_json(containers.read_comment(folder / request.result)).preview.seed == 5


def test_seconds_of_compilation_are_returned(runner, tmp_path):
    # no other test of this process has compiled this shape
    request = runner.complete(JobRequest('preview', 'a dog', size=(32, 16)), None)
    first, second = (runner.run(request, None, tmp_path / name, lambda *_: None) for name in ('first', 'second'))
    assert first > 0 and second == 0


def test_preview_is_enhanced(runner, preview, tmp_path):
    request, folder, _ = preview
    enhanced, steps = runner.complete(JobRequest('enhance', 'a dog', 5), request), []
    runner.run(enhanced, folder, tmp_path / 'job', lambda *step: steps.append(step))
    assert decoding.decode(tmp_path / 'job' / 'video.mp4').frames.shape == (tiny.FRAMES, 64, 128, 3)
    assert steps == [(1, 2), (2, 2)]


def test_what_a_step_raises_ends_the_job_without_a_result(runner, tmp_path):
    def stop(done, total):
        raise KeyError(done)

    with pytest.raises(KeyError, match='1'):
        runner.run(runner.complete(JobRequest('preview', 'a dog'), None), None, tmp_path / 'job', stop)
    assert not list(tmp_path.iterdir())


def test_clip_and_image_are_enhanced(runner, tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (12, 32, 48, 3), np.uint8)
    encoding.encode(tmp_path / 'a.mp4', frames, 12.0)
    Image.fromarray(frames[0]).save(tmp_path / 'a.png')
    for name, shape in (('a.mp4', (12, 64, 96, 3)), ('a.png', (64, 96, 3))):
        steps, source = [], tmp_path / name
        request = JobRequest('clip', size=(64, 96), source=name, source_name='mine.mp4')
        request = runner.complete(request, source)
        assert request.is_image == (name == 'a.png') and request.fps == (None if request.is_image else 12.0)
        folder = tmp_path / f'of_{name}'
        runner.run(request, source, folder, lambda *step, steps=steps: steps.append(step))
        made = folder / request.result
        found = np.asarray(Image.open(made)) if request.is_image else decoding.decode(made).frames
        assert found.shape == shape
        read = image_files.read_comment if request.is_image else containers.read_comment
        assert metadata.from_json(read(made)).clip.name == 'mine.mp4', 'the name of the upload, not of its copy'
        windows = 1 if request.is_image else 2
        assert steps == [(i + 1, windows * 2) for i in range(windows * 2)]
        assert runner.work(request).flops > 0


@pytest.mark.parametrize(
    ('size', 'expected', 'shown'),
    [((16, 32), (64, 128), (16, 32)), ((64, 64), (80, 80), (64, 64)), ((20, 32), (64, 112), (19, 32))],
)
def test_clip_without_a_size_is_enlarged_as_far_as_is_allowed(runner, tmp_path, size, expected, shown):
    Image.new('RGB', size[::-1]).save(tmp_path / 'a.png')
    request = runner.complete(JobRequest('clip', source='a.png', source_name='a.png'), tmp_path / 'a.png')
    assert (request.size, request.source_size, request.shown_size) == (expected, size, shown)
    assert JobRequest.from_json(request.to_json()) == request


def test_refused_uploads_are_named_and_not_their_place(runner, tmp_path):
    def complete(name, **values):
        request = JobRequest('clip', source=name, source_name='mine.mp4', **values)
        return runner.complete(request, tmp_path / name)

    (tmp_path / 'text.mp4').write_text('no video')
    with pytest.raises(UnsupportedTypeError, match=r'mine\.mp4') as raised:
        complete('text.mp4')
    assert str(tmp_path) not in str(raised.value)
    encoding.encode(tmp_path / 'long.mp4', np.zeros((21, 16, 16, 3), np.uint8), 12.0)
    with pytest.raises(TooLargeError, match=r'mine\.mp4: has 21 frames; upload at most 20'):
        complete('long.mp4')
    Image.new('RGB', (128, 64)).save(tmp_path / 'large.png')
    with pytest.raises(TooLargeError, match='128x64 pixels; upload at most 4096'):
        complete('large.png')
    Image.new('RGB', (16, 16)).save(tmp_path / 'small.png')
    with pytest.raises(ValueError, match='size=128x128: has 16384 pixels; use at most 8192'):
        complete('small.png', size=(128, 128))


def test_work_grows_with_steps_and_windows(runner):
    request = runner.complete(JobRequest('preview', 'a dog'), None)
    one, two = (runner.work(runner.complete(JobRequest('preview', 'a', num_steps=n), None)) for n in (2, 4))
    assert one.shape != two.shape and one.flops < two.flops < 2 * one.flops
    assert one.planned_seconds is None, 'the rates of a CPU are not known'
    assert runner.work(request).shape == 'preview 9x16x32, 3 steps'
