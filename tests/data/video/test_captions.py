import json
from pathlib import Path

import pytest

from fv_jax.data.video.captions import Captions


def test_captions_are_found_beside_the_video_and_in_parent_folders(tmp_path: Path) -> None:
    inner = tmp_path / 'a' / 'b'
    inner.mkdir(parents=True)
    (inner / 'one.txt').write_text('  from the text \n', encoding='utf-8')
    (inner / 'captions.json').write_text(json.dumps({'one.mp4': 'no', 'two.mp4': 'from json', 'stem': 'by its stem'}))
    (inner / 'captions.csv').write_text('file,caption\ntwo.mp4,no\nthree.mp4,"from csv, quoted"\n')
    (tmp_path / 'captions.json').write_text(json.dumps([{'file_name': 'a/b/four.mp4', 'text': 'from above'}]))
    captions = Captions(tmp_path)
    found = {name: captions.find(inner / f'{name}.mp4') for name in ('one', 'two', 'stem', 'three', 'four', 'five')}
    assert found == {
        'one': 'from the text',
        'two': 'from json',
        'stem': 'by its stem',
        'three': 'from csv, quoted',
        'four': 'from above',
        'five': None,
    }


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('captions.json', b'{"a": ', 'captions.json: not JSON'),
        ('captions.json', b'"text"', 'captions.json: expected a map'),
        ('captions.json', b'{"a.mp4": 3}', 'captions.json: every row needs'),
        (
            'captions.csv',
            b'a.mp4,words\nb.mp4,words\n',
            'captions.csv: every row needs a file name .* one has a.mp4, words',
        ),
        ('a.txt', b'\xff\xfe', 'a.txt: not UTF-8'),
    ],
)
def test_captions_that_cannot_be_read_are_an_error_that_names_the_file(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Captions(tmp_path).find(tmp_path / 'a.mp4')
