"""Folders as people have them: links, loops, trash, hidden files, every suffix of the formats that are read."""

import itertools
import os
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from fv_jax import prepare
from fv_jax.data import pipeline, sources
from fv_jax.data.config import DataConfig
from fv_jax.data.folders import find_media
from fv_jax.data.loader import LoaderConfig, load_mixed_batches
from fv_jax.data.shards.bad_records import BadRecordConfig, BadRecords
from fv_jax.data.shards.shard_files import list_shards, read_records
from fv_jax.data.video import containers, decoding
from fv_jax.models.vae import OFFICIAL
from tests.data import odd_videos, sample_videos
from tests.data.video import made_videos

TRASH = ('.Trash', '.Trash-1000/files', '.git', '@eaDir', '__MACOSX', '$RECYCLE.BIN', '$Recycle.Bin/S-1', '#recycle')


def names(folder: Path) -> list[str]:
    return list(find_media(folder, ('.mp4',), ('.swf', '.part')).files)


def touch(folder: Path, *paths: str) -> None:
    for name in paths:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b'')


def test_trash_and_hidden_files_are_not_read(tmp_path: Path) -> None:
    touch(
        tmp_path,
        'a.mp4',
        'More/b.MP4',
        '._a.mp4',
        '.hidden.mp4',
        'a.txt',
        'recycled.mp4',
        *(f'{name}/x.mp4' for name in TRASH),
    )
    touch(tmp_path, *(f'More/{name}/x.mp4' for name in TRASH))
    assert names(tmp_path) == ['More/b.MP4', 'a.mp4', 'recycled.mp4']
    assert names(tmp_path / '@eaDir') == ['x.mp4']  # what a user names is read


def test_order_is_that_of_the_parts_of_names(tmp_path: Path) -> None:
    touch(tmp_path, 'b.mp4', 'a/z.mp4', 'a.mp4', 'a b/c.mp4', 'a/b/c.mp4', '10.mp4', '9.mp4')
    assert names(tmp_path) == ['10.mp4', '9.mp4', 'a/b/c.mp4', 'a/z.mp4', 'a b/c.mp4', 'a.mp4', 'b.mp4']


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    root, outside = tmp_path / 'root', tmp_path / 'outside'
    touch(root, 'z/a.mp4')
    touch(outside, 'b.mp4', 'deeper/c.mp4')
    (root / 'again').symlink_to('z')  # a folder that is read under its own name
    (root / 'linked').symlink_to(outside)
    (root / 'twice').symlink_to(outside)
    (root / 'file.mp4').symlink_to(outside / 'b.mp4')
    assert names(root) == ['file.mp4', 'linked/b.mp4', 'linked/deeper/c.mp4', 'z/a.mp4']
    (tmp_path / 'link').symlink_to(root)
    assert names(tmp_path / 'link') == names(root)


@pytest.mark.parametrize('target', ['.', '..', 'ROOT', 'loop'])
def test_loops_of_links_end(tmp_path: Path, target: str) -> None:
    root = tmp_path / 'above' / 'root'
    touch(root, 'a.mp4', 'more/b.mp4')
    touch(tmp_path, 'above/other.mp4')
    (root / 'loop').symlink_to(target.replace('ROOT', str(root)))
    (root / 'more' / 'up').symlink_to('..')
    assert names(root) == ['a.mp4', 'more/b.mp4']


def test_two_folders_that_link_to_each_other(tmp_path: Path) -> None:
    touch(tmp_path, 'root/a/1.mp4', 'x/2.mp4', 'y/3.mp4')
    (tmp_path / 'root' / 'x').symlink_to(tmp_path / 'x')
    (tmp_path / 'x' / 'y').symlink_to(tmp_path / 'y')
    (tmp_path / 'y' / 'x').symlink_to(tmp_path / 'x')
    assert names(tmp_path / 'root') == ['a/1.mp4', 'x/2.mp4', 'x/y/3.mp4']


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    touch(tmp_path, 'a.mp4', 'b.swf', 'c.mp4.part', 'notes.txt')
    (tmp_path / 'lost.mp4').symlink_to('nowhere.mp4')
    (tmp_path / 'lost.txt').symlink_to('nowhere.txt')
    os.mkfifo(tmp_path / 'pipe.mp4')
    media = find_media(tmp_path, ('.mp4',), ('.swf', '.part'))
    assert list(media.files) == ['a.mp4'] and media.skipped == {
        'b.swf': 'swf is not among the formats that are read; convert it',
        'c.mp4.part': 'part is not among the formats that are read; convert it',
        'lost.mp4': 'No such file or directory',
        'pipe.mp4': 'is not a regular file',
    }


def test_prepare_names_what_it_does_not_read(tmp_path: Path, capsys) -> None:
    (tmp_path / 'in').mkdir()
    odd_videos.write(tmp_path / 'in' / 'a.mp4', frames=9)
    touch(tmp_path / 'in', 'b.swf', '.Trash/c.mp4', '@eaDir/a.mp4')
    (tmp_path / 'in' / 'lost.mp4').symlink_to('nowhere.mp4')
    flags = '--config.frames=9', '--config.height=64', '--config.width=96', '--config.preset=ultrafast'
    code = prepare.main([f'--input={tmp_path / "in"}', f'--output={tmp_path / "out"}', *flags])
    out = capsys.readouterr().out
    assert code == prepare.SKIPPED and 'skipped: 2 file(s)' in out
    assert '  b.swf: swf is not among the formats' in out and '  lost.mp4: No such file' in out


def test_images_of_a_folder_with_links_trash_and_unreadable_files(tmp_path: Path, log_lines: list[str]) -> None:
    image = Image.fromarray(sample_videos.pattern(1, 20, 30)[0])
    for name in (
        'root/b.png',
        'root/.Trash/x.png',
        'root/@eaDir/x.png',
        'root/._b.png',
        'outside/c.jfif',
        'root/a/d.webp',
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / name, format={'png': 'PNG', 'jfif': 'JPEG', 'webp': 'WEBP'}[name.rpartition('.')[2]])
    root = tmp_path / 'root'
    (root / 'linked').symlink_to(tmp_path / 'outside')
    (root / 'loop').symlink_to('..')
    touch(root, 'zero.png', 'photo.heic')
    shutil.copy(Path(__file__).parent / 'video' / 'cases' / 'images' / 'big_text.png', root)
    found = sources.ImageFolder(root)
    shown = [os.path.relpath(found.record_name(i), root) for i in range(len(found))]
    assert shown == ['a/d.webp', 'b.png', 'big_text.png', 'linked/c.jfif', 'zero.png']
    assert found.sizes().to_array()[:2].tolist() == [[1, 20, 30]] * 2 and found.sizes().to_array()[4].tolist() == [
        1,
        0,
        0,
    ]
    assert found[2]['video'].shape[0] == 1
    with pytest.raises(ValueError, match=r'zero\.png: not an image that can be read'):
        found[4]
    logged = '\n'.join(log_lines)
    assert 'photo.heic: heic is not among the formats' in logged and 'zero.png: not an image that can be read' in logged


def test_training_skips_images_that_cannot_be_read(tmp_path: Path, log_lines: list[str]) -> None:
    """One whose header is read and whose pixels are not is a bad record, within the limit of the policy."""
    for name in 'abc':
        Image.fromarray(sample_videos.pattern(1, 64, 96)[0]).save(tmp_path / f'{name}.png')
    (tmp_path / 'b.png').write_bytes((tmp_path / 'b.png').read_bytes()[:200])
    (tmp_path / 'zero.png').write_bytes(b'')
    config = DataConfig(
        LoaderConfig(batch_size=3, num_threads=0), train=f'images:{tmp_path}', frames=1, height=64, width=96,
        bad_records=BadRecordConfig('skip', max_bad_records=1),
    )  # fmt: skip
    bad = BadRecords(config.bad_records)
    groups = pipeline.group_by_bucket(pipeline.training_sources(config, bad), config, OFFICIAL.latent_spec)
    streams = pipeline.make_streams(groups, config, low_res=True)
    batches = load_mixed_batches(streams, config.loader, bad=bad)
    assert all(batch['high_res_BFHWC'].shape == (3, 1, 64, 96, 3) for batch in itertools.islice(batches, 4))
    assert (
        list(bad.found) == [f'{tmp_path}/b.png'] and 'not an image that can be read' in bad.found[f'{tmp_path}/b.png']
    )
    assert any(f'{tmp_path}/zero.png: not an image that can be read' in line for line in log_lines)


# Suffix -> (codec, FFmpeg's name of the container).
WRITTEN = {
    '.mp4': ('libx264', 'mp4'), '.m4v': ('libx264', 'mp4'), '.mov': ('libx264', 'mov'), '.qt': ('mpeg4', 'mov'),
    '.3gp': ('mpeg4', '3gp'), '.3g2': ('mpeg4', '3g2'), '.webm': ('libvpx-vp9', 'webm'),
    '.mkv': ('libx264', 'matroska'),
    '.avi': ('mpeg4', 'avi'), '.divx': ('mpeg4', 'avi'), '.ts': ('libx264', 'mpegts'), '.mts': ('libx264', 'mpegts'),
    '.m2ts': ('mpeg2video', 'mpegts'), '.mpg': ('mpeg1video', 'mpeg'), '.mpeg': ('mpeg2video', 'vob'),
    '.vob': ('mpeg2video', 'vob'), '.mod': ('mpeg2video', 'vob'), '.flv': ('flv', 'flv'), '.f4v': ('libx264', 'mp4'),
    '.ogv': ('libvpx', 'ogg'), '.gif': ('gif', 'gif'), '.wmv': ('wmv2', 'asf'), '.asf': ('msmpeg4', 'asf'),
    '.mxf': ('mpeg2video', 'mxf'), '.y4m': ('rawvideo', 'yuv4mpegpipe'), '.h264': ('libx264', 'h264'),
    '.m2v': ('mpeg2video', 'mpeg2video'), '.ivf': ('libvpx-vp9', 'ivf'), '.nut': ('mpeg4', 'nut'),
    '.rm': ('rv20', 'rm'),
    '.obu': ('libsvtav1', 'obu'), '.hevc': ('libx265', 'hevc'),
}  # fmt: skip


@pytest.mark.parametrize('suffix', WRITTEN)
def test_every_suffix_of_the_formats_is_read(tmp_path: Path, suffix: str) -> None:
    codec, name = WRITTEN[suffix]
    width, height = (128, 96) if suffix == '.rm' else (96, 64)
    pixels = sample_videos.pattern(12, height, width)
    path = tmp_path / f'A{suffix.upper()}'
    form = 'bgr8' if codec == 'gif' else 'yuv420p'
    frames = [av.VideoFrame.from_ndarray(image, format='rgb24').reformat(format=form) for image in pixels]
    path.write_bytes(made_videos.encode(frames, codec, name, rate=25))
    assert list(find_media(tmp_path, containers.VIDEO_SUFFIXES, ()).files) == [path.name]
    frames = decoding.decode(path).frames
    assert len(frames) in (11, 12) and np.abs(frames[5] - pixels[5].astype(int)).mean() < 20


def test_suffixes_are_of_one_kind() -> None:
    assert not set(containers.VIDEO_SUFFIXES) & set(containers.OTHER_VIDEO_SUFFIXES)
    assert not set(sources.IMAGE_SUFFIXES) & set(sources.OTHER_IMAGE_SUFFIXES)
    assert len(set(containers.VIDEO_SUFFIXES)) == len(containers.VIDEO_SUFFIXES)
    assert set(WRITTEN) <= set(containers.VIDEO_SUFFIXES)
    assert all(suffix == suffix.lower() and suffix.startswith('.') for suffix in containers.VIDEO_SUFFIXES)


def test_links_are_used_by_prepare(tmp_path: Path) -> None:
    (tmp_path / 'in').mkdir()
    (tmp_path / 'elsewhere').mkdir()
    odd_videos.write(tmp_path / 'elsewhere' / 'a.mp4', frames=9)
    (tmp_path / 'in' / 'linked').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'in' / 'captions.csv').write_text('file,caption\nlinked/a.mp4,x\n')
    flags = '--config.frames=9', '--config.height=64', '--config.width=96', '--config.preset=ultrafast'
    assert prepare.main([f'--input={tmp_path / "in"}', f'--output={tmp_path / "out"}', *flags]) == 0
    (record,) = read_records(list_shards(tmp_path / 'out'))
    assert record['source'] == 'linked/a.mp4' and record['caption'] == 'x'
