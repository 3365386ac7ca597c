"""Captions as people have them: line breaks, commas, Unicode, paths, and Hugging Face's folders of videos."""

import json
import shutil
import unicodedata
from pathlib import Path

import pytest

from fv_jax import prepare
from fv_jax.core import exit_codes
from fv_jax.data.shards.shard_files import list_shards, read_records
from fv_jax.data.video.captions import Captions
from tests.data import odd_videos

CASES = Path(__file__).parent / 'cases'
PARAGRAPHS = 'First paragraph.\n\nSecond paragraph: a "red" cat.'


def find(folder: Path, name: str = 'a.mp4') -> str | None:
    return Captions(folder).find(folder / name)


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def prepare_videos(folder: Path, output: Path, *more: str) -> int:
    flags = '--config.frames=9', '--config.height=64', '--config.width=96', '--config.detector=none', *more
    return prepare.main([f'--input={folder}', f'--output={output}', '--config.preset=ultrafast', *flags])


def test_quoted_line_breaks_belong_to_the_caption(tmp_path: Path) -> None:
    for name in 'ab':
        shutil.copy(CASES / 'job' / 'a.mp4', tmp_path / f'{name}.mp4')
    shutil.copy(CASES / 'captions' / 'multi_line' / 'captions.csv', tmp_path)
    assert prepare_videos(tmp_path, tmp_path / 'out') == 0
    captions = {record['source']: record['caption'] for record in read_records(list_shards(tmp_path / 'out'))}
    assert captions == {'a.mp4': PARAGRAPHS, 'b.mp4': 'plain'}


@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
@pytest.mark.parametrize('start', ['', '\ufeff'])
@pytest.mark.parametrize('delimiter', [',', ';', '\t', ', '])
def test_csv_dialects(tmp_path: Path, end: str, start: str, delimiter: str) -> None:
    rows = [
        ('file', 'caption'),
        ('b.mp4', 'one'),
        ('a.mp4', '"' + PARAGRAPHS.replace('"', '""') + '"'),
        ('c.mp4', '"x, y; z\t."'),
    ]
    text = start + ''.join(delimiter.join(row) + '\n' for row in rows)
    write(tmp_path, 'captions.csv', text.replace('\n', end))
    assert [find(tmp_path, f'{n}.mp4') for n in 'abc'] == [PARAGRAPHS, 'one', 'x, y; z\t.']


@pytest.mark.parametrize('character', ['\u2028', '\u2029', '\x0b', '\x0c', '\x1c', '\x1d', '\x1e', '\x85', '\u00a0'])
def test_characters_that_are_no_line_breaks(tmp_path: Path, character: str) -> None:
    text = f'one{character}two'
    for name, content in {
        'captions.csv': f'file,caption\na.mp4,{text}\nb.mp4,"{text}"\n',
        'captions.jsonl': ''.join(
            f'{{"file": "{n}.mp4", "caption": {json.dumps(text, ensure_ascii=False)}}}\n' for n in 'ab'
        ),
        'captions.json': json.dumps({'a.mp4': text, 'b.mp4': text}),
    }.items():
        write(tmp_path / name, name, content)
        assert [find(tmp_path / name, f'{n}.mp4') for n in 'ab'] == [text, text]
    assert find(write(tmp_path / 'txt', 'a.txt', text)) == text


@pytest.mark.parametrize(
    ('content', 'row', 'fields'),
    [
        ('file,caption\na.mp4,x, y, z\n', 'row 2 has 4 field(s) and the header 2: ', 'a.mp4,x, y, z'),
        ('caption,file\nx,b.mp4\nx, y,a.mp4\n', 'row 3 has 3 field(s) and the header 2: ', 'x, y,a.mp4'),
        ('file;caption\na.mp4;a cat; a dog\n', 'row 2 has 3 field(s) and the header 2: ', 'a.mp4;a cat; a dog'),
        ('file,caption\nb.mp4,"x\ny"\na.mp4,one\ntwo\n', 'row 4 has 1 field(s) and the header 2: ', "'two'"),
        ('file,caption\na.mp4\n', 'row 2 has 1 field(s) and the header 2: ', 'a.mp4'),
        ('file,caption\na.mp4,"a "red" cat"\n', 'row 2: ', 'a.mp4,"a "red" cat"'),
        ('file,caption\nb.mp4,fine\na.mp4,"never closed\n', 'row 3: ', 'never closed'),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_read_are_refused_with_number_and_text(
    tmp_path: Path, content: str, row: str, fields: str
) -> None:
    write(tmp_path, 'captions.csv', content)
    with pytest.raises(ValueError) as error:
        find(tmp_path)
    assert str(error.value).startswith(f'{tmp_path}/captions.csv: {row}') and fields in str(error.value)
    assert '\n' not in str(error.value)


def test_unquoted_commas_are_refused_before_a_video_is_read(tmp_path: Path, capsys) -> None:
    shutil.copy(CASES / 'job' / 'a.mp4', tmp_path)
    shutil.copy(CASES / 'captions' / 'comma' / 'captions.csv', tmp_path)
    assert prepare_videos(tmp_path, tmp_path / 'out') == exit_codes.USAGE
    error = capsys.readouterr().err
    assert "captions.csv: row 2 has 4 field(s) and the header 2: 'a.mp4,a cat, a dog, and a bird'" in error
    assert error.count('\n') == 1 and not (tmp_path / 'out').exists()


def test_spreadsheets_leave_empty_fields_and_rows(tmp_path: Path) -> None:
    write(tmp_path, 'captions.csv', 'File , Caption,split\n\na.mp4,waves,train,,\n,,\nb.mp4,beach\n')
    assert [find(tmp_path, f'{name}.mp4') for name in 'abc'] == ['waves', 'beach', None]
    assert Captions(tmp_path).describe_problems([tmp_path / 'a.mp4', tmp_path / 'b.mp4']) == []


@pytest.mark.parametrize(
    'row',
    [
        'caf\u00e9/a.mp4', 'cafe\u0301/a.mp4', './caf\u00e9/a.mp4', 'caf\u00e9\\a.mp4', '.\\cafe\u0301\\a.mp4',
        'caf\u00e9//a.mp4', 'caf\u00e9/a', 'ROOT/caf\u00e9/a.mp4', 'LINK/cafe\u0301/a.mp4',
    ],
)  # fmt: skip
@pytest.mark.parametrize('form', ['NFC', 'NFD'])
@pytest.mark.parametrize('table', ['captions.json', 'captions.csv', 'metadata.jsonl'])
def test_names_are_compared_in_one_form(tmp_path: Path, row: str, form: str, table: str) -> None:
    root, link = tmp_path / 'root', tmp_path / 'link'
    video = root / unicodedata.normalize(form, 'caf\u00e9') / 'a.mp4'
    write(video.parent, 'a.mp4', '')
    link.symlink_to(root)
    row = row.replace('ROOT', str(root)).replace('LINK', str(link))
    content = {
        'captions.json': json.dumps({row: 'x'}),
        'captions.csv': f'file,caption\n"{row}",x\n',
        'metadata.jsonl': json.dumps({'file_name': row, 'text': 'x'}),
    }[table]
    write(root, table, content)
    seen = link if row.startswith(str(link)) else root
    captions = Captions(seen)
    assert captions.find(seen / video.relative_to(root)) == 'x'
    assert captions.describe_problems([seen / video.relative_to(root)]) == []


def test_sidecar_of_the_other_form(tmp_path: Path) -> None:
    write(tmp_path, 'cafe\u0301.txt', 'x')
    assert find(tmp_path, 'caf\u00e9.mp4') == 'x'


def test_hugging_face_folders(tmp_path: Path) -> None:
    """metadata.csv or .jsonl with a column file_name, in the folder of the videos or above."""
    write(tmp_path / 'csv', 'metadata.csv', 'file_name,text\na.mp4,"one, two"\nmore/b.mp4,three\n')
    write(
        tmp_path / 'jsonl',
        'metadata.jsonl',
        '{"file_name": "a.mp4", "text": "one, two"}\n\n{"text": "three", "file_name": "more/b.mp4"}\n',
    )
    write(
        tmp_path / 'captions',
        'captions.jsonl',
        '{"file": "a.mp4", "caption": "one, two"}\r\n{"video": "more/b.mp4", "prompt": "three"}',
    )
    for name in ('csv', 'jsonl', 'captions'):
        assert [find(tmp_path / name, video) for video in ('a.mp4', 'more/b.mp4', 'c.mp4')] == [
            'one, two',
            'three',
            None,
        ]


def test_metadata_about_something_else_is_not_used_and_named(tmp_path: Path) -> None:
    write(tmp_path / 'csv', 'metadata.csv', 'file_name,label\na.mp4,3\n')
    write(
        tmp_path / 'jsonl',
        'metadata.jsonl',
        '{"file_name": "a.mp4", "text": "x"}\n{"file_name": "b.mp4", "text": null}\n{"id": 3}\n',
    )
    captions = [Captions(tmp_path / name) for name in ('csv', 'jsonl')]
    videos = [[tmp_path / name / f'{video}.mp4' for video in 'ab'] for name in ('csv', 'jsonl')]
    assert [[c.find(v) for v in some] for c, some in zip(captions, videos, strict=True)] == [[None, None], ['x', None]]
    for c, some, rows in zip(captions, videos, ('row 2', 'line 2, line 3'), strict=True):
        (line,) = c.describe_problems(some)
        assert line.endswith(f'row(s) have no file name or no text and are not used: {rows}')


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('{"file": "a.mp4", "caption": "x"}\n{"file"\n', 'line 2'),
        ('[1]\n', 'line 1: expected'),
        ('{"file": "a.mp4"}', 'line 1'),
    ],
)  # fmt: skip
def test_json_lines_that_cannot_be_read_name_the_line(tmp_path: Path, content: str, message: str) -> None:
    write(tmp_path, 'captions.jsonl', content)
    with pytest.raises(ValueError, match=rf'captions\.jsonl: .*{message}'):
        find(tmp_path)


def test_rows_without_a_video_and_videos_with_several_captions_are_named(tmp_path: Path, capsys) -> None:
    folder = tmp_path / 'in'
    folder.mkdir()
    for name in 'abcd':
        odd_videos.write(folder / f'{name}.mp4', frames=9)
    write(
        folder,
        'captions.csv',
        'file,caption\na.mp4,first\na.mp4,second\nb.mp4,in the csv\n' + ''.join(f'gone{i}.mp4,x\n' for i in range(7)),
    )
    write(folder, 'captions.json', '{"b.mp4": "in the json", "c.mp4": "one", "c": "one", "d": "x", "d": "y"}')
    write(folder, 'd.txt', 'in the text')
    assert prepare_videos(folder, tmp_path / 'out') == 0
    captions = {record['source']: record['caption'] for record in read_records(list_shards(tmp_path / 'out'))}
    assert captions == {'a.mp4': 'second', 'b.mp4': 'in the json', 'c.mp4': 'one', 'd.mp4': 'in the text'}
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if '/captions.' in line]
    assert lines == [
        f'{folder}/captions.json: 1 file(s) have several rows, the last of which is used: d (entry 4, entry 5)',
        f'{folder}/captions.csv: 7 row(s) have no file: '
        'gone0.mp4, gone1.mp4, gone2.mp4, gone3.mp4, gone4.mp4 and 2 more',
        f'{folder}/captions.csv: 1 file(s) have several rows, the last of which is used: a.mp4 (row 2, row 3)',
        f'{folder}/captions.csv: 1 file(s) have another caption in {folder}/captions.json, which is used: b.mp4',
        f'{folder}/captions.json: 1 file(s) also have a .txt, which is used: d.mp4',
    ]


def test_duplicate_rows_of_equal_text_are_named_too(tmp_path: Path) -> None:
    write(tmp_path, 'captions.csv', 'file,caption\na.mp4,x\n./a.mp4,x\nb,y\nb.mp4,z\n')
    captions = Captions(tmp_path)
    lines = captions.describe_problems([tmp_path / 'a.mp4', tmp_path / 'b.mp4'])
    assert 'have several rows, the last of which is used: a.mp4 (row 2, row 3)' in lines[0]
    assert 'have another caption in' in lines[1] and 'b.mp4' in lines[1]
    assert captions.find(tmp_path / 'b.mp4') == 'z'


def test_folder_named_like_a_sidecar_is_none(tmp_path: Path) -> None:
    (tmp_path / 'a.txt').mkdir()
    assert find(tmp_path) is None
