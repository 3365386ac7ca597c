"""A file that was cut off is reported, for every container; a whole one is not."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from fv_jax.data.video import clips, decoding
from fv_jax.data.video.clips import ClipsConfig
from tests.data.video import made_times
from tests.data.video.made_times import Sound, even

CFR = Fraction(1, 30)
# name -> options of made_times.write
KINDS = {
    'index_first.mp4': {'options': {'movflags': 'faststart'}},
    'fragments.mp4': {'options': {'movflags': 'frag_keyframe+empty_moov'}, 'encoder': {'g': '10'}},
    'fragments.mov': {'options': {'movflags': 'frag_every_frame+empty_moov'}},
    'a.mkv': {},
    'a.webm': {'codec': 'libvpx', 'sounds': ['libopus']},
    'live.webm': {'codec': 'libvpx', 'sounds': ['libopus'], 'options': {'live': '1'}},
    'live.mkv': {'options': {'live': '1', 'cluster_time_limit': '300'}},
    'a.avi': {'codec': 'mpeg4', 'time_base': CFR},
    'a.ts': {},
    'a.m2ts': {'format': 'mpegts', 'options': {'mpegts_m2ts_mode': '1'}},
    'a.flv': {},
    'a.mpg': {'codec': 'mpeg2video', 'time_base': CFR, 'sounds': ['mp2']},
    'a.ogv': {'codec': 'libvpx', 'time_base': CFR, 'sounds': ['libopus']},
    'a.wmv': {'codec': 'wmv2', 'time_base': CFR, 'sounds': ['libmp3lame'], 'format': 'asf'},
}


def write(path: Path, name: str, frames: int = 60) -> None:
    options = {'sounds': ['aac'], **KINDS[name]}
    sounds = [Sound(codec) for codec in options.pop('sounds')]
    made_times.write(path, even(30, frames), flash=None, sounds=sounds, noise=25, **options)


@pytest.mark.parametrize('name', KINDS)
def test_file_that_was_cut_off(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write(path, name)
    data = path.read_bytes()
    assert decoding.probe(path).frames == 60
    assert len(list(decoding.iter_frames(path))) == 60
    rng, config = np.random.default_rng(0), ClipsConfig(frames=4, height=32, width=48, detector='none', margin=0)
    for length in [len(data) - 1, *(int(len(data) * share) + int(rng.integers(40)) for share in (0.9, 0.5))]:
        if name.endswith('ts') and length % (192 if name == 'a.m2ts' else 188) == 0:
            length += 1
        path.write_bytes(data[:length])
        for function in (decoding.probe, decoding.decode):
            with pytest.raises(ValueError, match=rf'{name}: .*the file is cut off at byte {length}\)$'):
                function(path)
        # The frames before are there, and `prepare` uses them.
        info = decoding.probe(path, damaged=True)
        selection = clips.scan_file(path, config, info)
        assert f'the file is cut off at byte {length}' in selection.damage
        if length == int(len(data) * 0.9):
            assert selection.clips


@pytest.mark.parametrize('name', KINDS)
def test_bytes_after_the_end_are_no_damage(tmp_path: Path, name: str) -> None:
    """Tools append tags and padding."""
    path = tmp_path / name
    write(path, name, frames=10)
    if name in ('a.ts', 'a.m2ts', 'a.flv', 'a.ogv'):
        return  # these have no end of their own
    path.write_bytes(path.read_bytes() + bytes(1000))
    assert decoding.probe(path).frames == 10
    assert len(list(decoding.iter_frames(path))) == 10


def test_file_that_cannot_be_opened_since_it_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / 'a.mp4'
    made_times.write(path, even(30, 60), flash=None)  # the index is at the end
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    message = rf'a.mp4: not a video that can be read \(the file is cut off at byte {len(data) // 2}\)$'
    with pytest.raises(ValueError, match=message):
        decoding.probe(path)
