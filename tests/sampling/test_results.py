"""Results: saved with their metadata, shown in a notebook, stored and found unchanged."""

import base64
import dataclasses
import json
import re

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from fv_jax.data.video import contact_sheet, containers, decoding, encoding
from fv_jax.sampling import metadata, preview_store
from fv_jax.sampling.metadata import EnhanceMetadata, GenerationMetadata, PreviewMetadata, WeightDigests, WeightsOrigin
from fv_jax.sampling.results import Preview, Video
from fv_jax.sampling.settings import EnhanceSettings, PreviewSettings
from fv_jax.text.encoder import TextConfig
from tests.data import sample_videos

WEIGHTS = WeightDigests('a' * 16, 'b' * 16, '')
PROMPT = '<b>שלום</b> 🐞 "quoted"'
PREVIEWED = PreviewMetadata(PROMPT, 7, PreviewSettings(frames=9, size=(16, 32)), WEIGHTS)
RECORD = GenerationMetadata('1.2', WeightsOrigin(official='weights', text=TextConfig('t5', length=4)), PREVIEWED)
ENHANCED = EnhanceMetadata(8, EnhanceSettings(numerics='official', size=(64, 128)), WEIGHTS)


def preview(prompt=PROMPT):
    latents = np.random.default_rng(0).normal(size=(3, 2, 4, 4)).astype(np.float32)
    made = dataclasses.replace(RECORD, preview=dataclasses.replace(PREVIEWED, prompt=prompt))
    return Preview(latents, made, sample_videos.pattern(9, 16, 32))


def video():
    return Video(sample_videos.pattern(9, 64, 128), dataclasses.replace(RECORD, enhance=ENHANCED))


def test_metadata_round_trip():
    for made in (RECORD, dataclasses.replace(RECORD, enhance=ENHANCED, fps=12.5, crf=3)):
        text = made.to_json()
        assert text.isascii() and '\n' not in text
        assert metadata.from_json(text) == made


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('', 'contains no generation metadata'),
        ('a video about dogs', 'contains no generation metadata'),
        ('[1]', 'contains no generation metadata'),
        (
            RECORD.to_json().replace('"prompt"', '"promt"'),
            r'written by fv_jax 1\.2 .*\(metadata\.preview\.promt: unknown key',
        ),
        (RECORD.to_json().replace('51', '"many"'), r'metadata\.preview\.settings\.num_steps: expected int'),
        ('{"fv_jax": 3}', 'cannot be read here'),
    ],
)
def test_invalid_metadata_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        metadata.from_json(text)


@pytest.mark.parametrize('made', [preview(), video()], ids=['preview', 'video'])
def test_saved_video_has_metadata(made, tmp_path):
    path = tmp_path / 'x.mp4'
    made.save(path, fps=12, crf=20)
    info = decoding.probe(path)
    assert (info.height, info.width, info.fps, info.frames) == (*made.frames.shape[1:3], 12, 9)
    assert metadata.from_json(containers.read_comment(path)) == dataclasses.replace(made.metadata, fps=12.0, crf=20.0)
    assert [p.name for p in tmp_path.iterdir()] == ['x.mp4']


def test_saved_video_uses_the_official_encoding():
    assert metadata.FPS == 8


def test_save_refuses_invalid_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match='none does not exist'):
        preview().save(tmp_path / 'none' / 'x.mp4')
    with pytest.raises(ValueError, match='fps=0'):
        preview().save(tmp_path / 'x.mp4', fps=0)
    assert list(tmp_path.iterdir()) == []


def test_metadata_of_any_length():
    data = encoding.encode_bytes(sample_videos.pattern(2, 16, 16), 8, comment='x' * 50_000)
    assert containers.read_comment(data) == 'x' * 50_000
    assert containers.read_comment(encoding.encode_bytes(sample_videos.pattern(2, 16, 16), 8)) == ''


@pytest.mark.parametrize('made', [preview(), video()], ids=['preview', 'video'])
def test_results_are_shown_in_a_notebook(made):
    html = made._repr_html_()
    (data,) = re.findall(r'src="data:video/mp4;base64,([^"]+)"', html)
    assert decoding.decode(base64.b64decode(data)).frames.shape == made.frames.shape
    assert '&lt;b&gt;שלום&lt;/b&gt; 🐞 &quot;quoted&quot; (seed 7)' in html and '<b>' not in html
    assert f'9 frames of {made.frames.shape[1]}x{made.frames.shape[2]}' in repr(made)


# On disk.


def test_stored_preview_round_trip(tmp_path):
    made = preview()
    preview_store.save(tmp_path / '3', made, fps=8, crf=18)
    assert sorted(p.name for p in (tmp_path / '3').iterdir()) == ['latents.safetensors', 'preview.mp4']
    stored = preview_store.load(tmp_path / '3')
    np.testing.assert_array_equal(stored.latents, made.latents)
    assert stored.metadata == made.metadata and stored.prompt == PROMPT and stored.seed == 7
    # The mp4 is never read.
    (tmp_path / '3' / 'preview.mp4').write_text('edited')
    np.testing.assert_array_equal(preview_store.load(tmp_path / '3').latents, made.latents)


def test_stored_preview_with_changed_files_is_refused(tmp_path):
    preview_store.save(tmp_path / '0', preview(), fps=8, crf=18)
    path = tmp_path / '0' / 'latents.safetensors'
    whole = path.read_bytes()
    tensors = load_file(path)
    edits = {
        'a latent': whole[:-1] + bytes([whole[-1] ^ 1]),
        'the prompt': whole.replace(b'quoted', b'quotes'),
        'the seed': whole.replace(rb'\"seed\": 7', rb'\"seed\": 8'),
    }
    for what, edited in edits.items():
        assert edited != whole, what
        path.write_bytes(edited)
        with pytest.raises(ValueError, match=r'/0: was modified since it was stored: .*fail the integrity check'):
            preview_store.load(tmp_path / '0')
    path.write_bytes(whole[:100])
    with pytest.raises(ValueError, match=r'was modified since it was stored: .* cannot be read'):
        preview_store.load(tmp_path / '0')
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r'was modified since it was stored: .* has no metadata'):
        preview_store.load(tmp_path / '0')


def test_load_without_a_stored_preview_is_an_error(tmp_path):
    with pytest.raises(ValueError, match='none: holds no stored preview'):
        preview_store.load(tmp_path / 'none')
    preview_store.save(tmp_path / '4', preview(), fps=8, crf=18)
    with pytest.raises(ValueError, match=rf'did you mean {tmp_path}/4'):
        preview_store.load(tmp_path)


def test_previews_of_an_earlier_run_are_removed(tmp_path):
    for name in ('0', '1', '2'):
        preview_store.save(tmp_path / name, preview(), fps=8, crf=18)
    (tmp_path / '5').mkdir()
    (tmp_path / 'notes').mkdir()
    preview_store.remove_from(tmp_path, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['0', '5', 'notes']


def test_contact_sheet_of_previews(tmp_path):
    folders = tmp_path / '0', tmp_path / '1'
    for folder, made in zip(folders, (preview(), preview('two\nlines ' * 1000)), strict=True):
        preview_store.save(folder, made, fps=8, crf=0)
    preview_store.write_sheet(tmp_path / 'sheet.png', folders)
    sheet = np.asarray(Image.open(tmp_path / 'sheet.png'))
    zoom, row = 800 // (4 * 32), 22 + 16 * (800 // (4 * 32)) + 4
    assert sheet.shape == (2 * row, 4 * 32 * zoom + 3 * 4, 3)
    frames = decoding.decode(folders[0] / 'preview.mp4').frames
    shown = sheet[22 : 22 + 16 * zoom : zoom, : 32 * zoom : zoom]
    np.testing.assert_array_equal(shown, frames[0])
    last = sheet[22 : 22 + 16 * zoom : zoom, 3 * (32 * zoom + 4) :: zoom]
    np.testing.assert_array_equal(last, frames[8])
    assert (sheet[:22] == 255).any()  # the prompt


def test_contact_sheet_of_large_single_frames():
    sheet = contact_sheet.preview_sheet([('0', np.zeros((1, 16, 900, 3), np.uint8))])
    assert sheet.size == (900, 22 + 16 + 4)
    video = np.arange(4, dtype=np.uint8)[:, None, None, None].repeat(16, 1).repeat(900, 2).repeat(3, 3)
    small = contact_sheet.preview_sheet([('0', video)], shrink=True)
    assert small.size == (4 * 225 + 3 * 4, 22 + 4 + 4) and small.getpixel((911, 25)) == (3, 3, 3)
    assert contact_sheet.preview_sheet([('0', video[:, :, :32])], shrink=True).size[0] == 4 * 32 * 6 + 3 * 4


def test_metadata_json_has_every_setting():
    values = json.loads(dataclasses.replace(RECORD, enhance=ENHANCED).to_json())['fv_jax']
    assert values['preview']['settings'].keys() == {f.name for f in dataclasses.fields(PreviewSettings)}
    assert values['enhance']['settings'].keys() == {f.name for f in dataclasses.fields(EnhanceSettings)}
