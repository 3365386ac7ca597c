"""Data sources by name: images, stills, remote shards; the sizes of their clips."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from fv_jax.core.config import ConfigError
from fv_jax.data import sources
from fv_jax.data.shards.bad_records import BadRecordConfig, BadRecords
from fv_jax.data.shards.record_writer import RecordWriter
from fv_jax.data.shards.shard_files import list_shards
from fv_jax.data.shards.source import Shards
from fv_jax.data.video import decoding, encoding
from tests.data import sample_videos


def strict() -> BadRecords:
    return BadRecords(BadRecordConfig('fail'))


def test_source_names_and_weights():
    assert sources.parse('a/b+embedded') == [('a/b', None), ('embedded', None)]
    assert sources.parse('sprites:500@3+images:x@0.5') == [('sprites:500', 3.0), ('images:x', 0.5)]
    with pytest.raises(ConfigError, match='some sources have a weight and some do not'):
        sources.parse('a@2+b')
    for name in ('a@0', 'a@x', 'a@-1', 'a@inf', 'gs://user@host/a', 'a@'):
        with pytest.raises(ConfigError, match=r'weight above 0 after the @; a name with .* in double quotes'):
            sources.parse(name)


def test_source_names_in_quotes_may_contain_separators():
    assert sources.parse('"/data/c++"') == [('/data/c++', None)]
    assert sources.parse('"a+b@2"@3+images:"photos@home"@1') == [('a+b@2', 3.0), ('images:photos@home', 1.0)]
    assert sources.parse('"s3://user@host/a"+stills:"x+y"') == [('s3://user@host/a', None), ('stills:x+y', None)]
    for names, words in (
        ('data/c++', 'a name is missing; a name with + or @ must be in double quotes'),
        ('', 'a name is missing'),
        ('a@b@3', 'has more than one @; a name with + or @'),
        ('"a+b', 'a double quote is not closed'),
    ):
        with pytest.raises(ConfigError) as error:
            sources.parse(names)
        assert words in str(error.value)


def test_image_folder_with_captions(tmp_path):
    (tmp_path / 'more').mkdir()
    image = sample_videos.pattern(1, 20, 30)[0]
    Image.fromarray(image).save(tmp_path / 'more' / 'a.png')
    Image.fromarray(image).convert('L').save(tmp_path / 'b.jpg')
    (tmp_path / 'broken.png').write_bytes((tmp_path / 'more' / 'a.png').read_bytes()[:60])
    (tmp_path / 'none.png').write_text('not an image')
    (tmp_path / 'captions.json').write_text(json.dumps({'more/a.png': 'waves'}))
    found = sources.ImageFolder(tmp_path)
    assert [os.path.basename(found.record_name(i)) for i in range(4)] == ['b.jpg', 'broken.png', 'a.png', 'none.png']
    assert found.sizes().to_array().tolist() == [[1, 20, 30], [1, 20, 30], [1, 20, 30], [1, 0, 0]]
    np.testing.assert_array_equal(found[2]['video'][0], image)
    assert found[2]['caption'] == 'waves' and found[0]['video'].shape == (1, 20, 30, 3) and 'caption' not in found[0]
    for i in (1, 3):
        with pytest.raises(ValueError, match=f'{found.record_name(i)}: not an image that can be read'):
            found[i]
    with pytest.raises(ValueError, match='no such folder'):
        sources.ImageFolder(tmp_path / 'x')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='holds no images'):
        sources.ImageFolder(tmp_path / 'empty')


def write(folder, count: int = 3) -> list[str]:
    with RecordWriter(folder, 'clips', shard_records=2) as writer:
        for i in range(count):
            video = encoding.encode_bytes(sample_videos.pattern(9 + 8 * (i == 2), 32, 48, seed=i), 24)
            writer.write({'video': video, 'frames': 9 + 8 * (i == 2), 'height': 32, 'width': 48})
    return list_shards(folder)


def test_shard_sizes_are_read_from_the_manifest_or_the_index_or_measured(tmp_path):
    paths = write(tmp_path)
    expected = [[9, 32, 48], [9, 32, 48], [17, 32, 48]]
    assert sources.read_sizes(Shards(paths)).to_array().tolist() == expected
    assert sources.read_sizes(Shards(paths[1:])).to_array().tolist() == expected[2:]  # a shard was removed
    (tmp_path / 'clips.parquet').unlink()  # as earlier versions wrote it
    old = {'name': 'clips', 'records': 3, 'shards': dict(zip(map(os.path.basename, paths), (2, 1), strict=True))}
    (tmp_path / 'clips.json').write_text(json.dumps(old | {'sizes': [[9, 32, 48, 2], [17, 32, 48, 1]]}))
    assert sources.read_sizes(Shards(paths)).to_array().tolist() == expected
    assert sources.read_sizes(Shards(paths[1:])).to_array().tolist() == expected[2:]
    (tmp_path / 'clips.json').write_text(json.dumps(old))
    assert sources.read_sizes(Shards(paths)).to_array().tolist() == expected
    old['config'] = {'frames': 5, 'height': 6, 'width': 7}  # as older sets tell it
    (tmp_path / 'clips.json').write_text(json.dumps(old))
    assert sources.read_sizes(Shards(paths)).to_array().tolist() == [[5, 6, 7]] * 3
    (tmp_path / 'clips.json').unlink()
    assert sources.read_sizes(Shards(paths)).to_array().tolist() == expected
    bare = [{'video': encoding.encode_bytes(sample_videos.pattern(9, 32, 48), 24)}, {'caption': 'no video'}]
    assert sources.read_sizes(bare).to_array().tolist() == [[9, 32, 48], [0, 0, 0]]


def test_stills_source_has_first_frames(tmp_path):
    shards = Shards(write(tmp_path))
    stills = sources.FirstFrames(shards)
    first = decoding.decode(shards[2]['video']).frames[:1]
    np.testing.assert_array_equal(stills[2]['video'], first)
    assert stills.sizes().to_array().tolist() == [[1, 32, 48]] * 3 and stills[2]['frames'] == 1
    assert stills.record_name(2) == f'{shards.paths[1]}, record 0'


def test_pingpong_source_plays_forwards_and_backwards(tmp_path):
    shards = Shards(write(tmp_path))
    pingpong = sources.PingPong(shards)
    forth = decoding.decode(shards[2]['video']).frames
    frames = pingpong[2]['video']
    assert len(frames) == pingpong[2]['frames'] == 3 * len(forth) - 2
    np.testing.assert_array_equal(frames[: len(forth)], forth)
    period = 2 * (len(forth) - 1)
    np.testing.assert_array_equal(frames[period:], forth)
    np.testing.assert_array_equal(frames[: period + 1], frames[period::-1])
    assert pingpong.sizes().to_array()[:, 0].tolist() == [len(pingpong[i]['video']) for i in range(3)]
    one = sources.PingPong([{'video': forth[:1]}])
    assert len(one[0]['video']) == 1 and one.sizes().to_array()[0, 0] == 1
    with pytest.raises(ValueError, match='record 0: has no video'):
        _ = sources.PingPong([{'caption': 'a'}])[0]
