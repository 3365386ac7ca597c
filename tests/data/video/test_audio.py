from pathlib import Path

import av
import numpy as np
import pytest

from fv_jax.data.video import audio, decoding, encoding
from tests.data import sample_videos


def test_copy_audio_cuts_it_to_the_video(tmp_path: Path) -> None:
    source, target = tmp_path / 'source.mp4', tmp_path / 'target.mp4'
    sample_videos.write_with_audio(source, seconds=3)
    encoding.encode(target, sample_videos.pattern(24), 24)
    silent = decoding.decode(target).frames
    assert audio.copy_audio(source, target)
    with av.open(str(target)) as container:
        sound = container.streams.audio[0]
        assert sound.codec_context.name == 'aac'
        assert float(sound.duration * sound.time_base) == pytest.approx(1.0, abs=0.05)
        samples = np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=1)
    assert samples.std() > 0.3  # the sine, not silence
    np.testing.assert_array_equal(decoding.decode(target).frames, silent)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['source.mp4', 'target.mp4']


def test_copy_audio_without_audio_changes_nothing(tmp_path: Path) -> None:
    source, target = tmp_path / 'source.mp4', tmp_path / 'target.mp4'
    encoding.encode(source, sample_videos.pattern(3), 24)
    encoding.encode(target, sample_videos.pattern(4), 24)
    before = target.read_bytes()
    assert not audio.copy_audio(source, target)
    assert target.read_bytes() == before


def test_copy_audio_converts_formats_that_an_mp4_does_not_hold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, target = tmp_path / 'source.mkv', tmp_path / 'target.mp4'
    sample_videos.write_with_audio(source, seconds=1, codec='pcm_u8')
    encoding.encode(target, sample_videos.pattern(24), 24)
    caplog.set_level('INFO')
    assert audio.can_copy(source)
    assert caplog.messages == [f'note: {source}: its audio (pcm_u8) is converted to AAC for the mp4']
    assert audio.copy_audio(source, target)
    with av.open(str(target)) as container:
        assert container.streams.audio[0].codec_context.name == 'aac'
        samples = np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=1)
    assert samples.std() > 0.3 and len(samples[0]) == pytest.approx(44100, abs=1024)
