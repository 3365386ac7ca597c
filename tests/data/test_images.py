"""Images as they are meant to be shown: orientation, transparency, bit depths, colour profiles, large texts."""

import io
import logging
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from fv_jax.data import images, sources
from tests.data.video.made_charts import CASES, CHART, chart_error, draw_chart, find_mark, read_patches

IMAGES = CASES / 'images'
# What is stored for each EXIF orientation, as a function of the upright image.
STORED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x, -1),
}


def upright_with_mark() -> np.ndarray:
    image = draw_chart(64, 96)
    image[:16, :16] = 255
    return image


def test_exif_case_is_upright() -> None:
    image = images.read_image(IMAGES / 'exif6.jpg')
    assert image.shape == (192, 320, 3)
    assert image.shape[:2] == images.read_size(IMAGES / 'exif6.jpg')
    assert find_mark(image) == ('upper', 'left')


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'webp'])
def test_every_orientation_of_every_format_is_upright(suffix, tmp_path) -> None:
    for orientation, store in STORED.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f'{orientation}.{suffix}'
        Image.fromarray(np.ascontiguousarray(store(upright_with_mark()))).save(path, exif=exif, quality=95)
        image = images.read_image(path)
        assert images.read_size(path) == (64, 96) and image.shape == (64, 96, 3), orientation
        assert np.abs(image.astype(int) - upright_with_mark()).mean() < 3, orientation
    folder = sources.ImageFolder(tmp_path)
    assert folder.sizes().to_array().tolist() == [[1, 64, 96]] * 8


def test_exif_behind_the_pixels_of_a_png_is_read(tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(np.rot90(upright_with_mark()))).save(buffer, 'png')
    data, content = buffer.getvalue(), exif.tobytes().removeprefix(b'Exif\0\0')
    chunk = struct.pack('>I', len(content)) + b'eXIf' + content + struct.pack('>I', zlib.crc32(b'eXIf' + content))
    (tmp_path / 'a.png').write_bytes(data[:-12] + chunk + data[-12:])
    assert images.read_size(tmp_path / 'a.png') == (64, 96)
    np.testing.assert_array_equal(images.read_image(tmp_path / 'a.png'), upright_with_mark())


@pytest.mark.parametrize('orientation', [0, 9, 65535])
def test_unknown_orientation_shows_the_image_as_stored(orientation, tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(upright_with_mark()).save(tmp_path / 'a.png', exif=exif)
    np.testing.assert_array_equal(images.read_image(tmp_path / 'a.png'), upright_with_mark())
    assert images.read_size(tmp_path / 'a.png') == (64, 96)


def test_broken_exif_is_named_and_the_image_read(tmp_path, caplog) -> None:
    path = tmp_path / 'a.png'
    Image.fromarray(upright_with_mark()).save(path, exif=b'Exif\0\0nonsense')
    np.testing.assert_array_equal(images.read_image(path), upright_with_mark())
    assert f'{path}: its EXIF data cannot be read' in caplog.text


def test_transparent_parts_show_the_background() -> None:
    image = images.read_image(IMAGES / 'cutout.png')
    assert (image[:, 164:] == images.BACKGROUND).all()
    assert (image[:, :156] != 255).any()


@pytest.mark.parametrize('kind', ['png', 'webp', 'palette', 'grey', 'colour key', 'grey key'])
def test_alpha_of_every_kind_is_composited(kind, tmp_path) -> None:
    path = tmp_path / ('a.webp' if kind == 'webp' else 'a.png')
    chart = draw_chart(64, 96)
    shown = np.where((np.arange(96) < 48)[None, :, None], chart, 255)
    alpha = Image.fromarray(np.where(np.arange(96) < 48, 255, 0).astype(np.uint8)[None].repeat(64, 0))
    image = Image.fromarray(chart)
    if kind in ('png', 'webp'):
        image.putalpha(alpha)
        image.save(path, lossless=True, exact=True)
    elif kind == 'palette':
        table = np.concatenate([CHART.reshape(-1, 3), np.zeros((1, 3), np.uint8)])
        index = (chart[..., None, :] == table).all(-1).argmax(-1).astype(np.uint8)
        index[:, 48:] = 16
        image = Image.fromarray(index, 'P')
        image.putpalette(table.tobytes())
        image.save(path, transparency=bytes([255] * 16 + [0]))
    elif kind == 'grey':
        image = Image.merge('LA', (image.convert('L'), alpha))
        image.save(path)
        shown = np.where((np.arange(96) < 48)[None, :, None], np.asarray(image.convert('RGB')), 255)
    elif kind == 'colour key':
        keyed = chart.copy()
        keyed[:, 48:] = (1, 2, 3)
        Image.fromarray(keyed).save(path, transparency=(1, 2, 3))
    else:
        keyed = chart[..., 0].copy()
        keyed[:, 48:] = 7
        Image.fromarray(keyed).save(path, transparency=7)
        shown = np.where((np.arange(96) < 48)[None, :, None], chart[..., :1], 255)
    np.testing.assert_array_equal(images.read_image(path), np.broadcast_to(shown, (64, 96, 3)))


def test_half_transparent_pixels_are_mixed_with_white(tmp_path) -> None:
    Image.new('RGBA', (8, 8), (10, 100, 200, 128)).save(tmp_path / 'a.png')
    weight = 128 / 255
    expected = [weight * level + (1 - weight) * 255 for level in (10, 100, 200)]
    np.testing.assert_allclose(images.read_image(tmp_path / 'a.png')[0, 0], expected, atol=1)


def test_16_bit_grey_keeps_its_levels(tmp_path) -> None:
    case = read_patches(images.read_image(IMAGES / 'gray16.png'))
    np.testing.assert_allclose(case[1, [0, 1, 2, 3, 4, 7]], CHART[1, [0, 1, 2, 3, 4, 7]], atol=1)
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(ramp).save(tmp_path / 'ramp.png')
    image = images.read_image(tmp_path / 'ramp.png')
    np.testing.assert_array_equal(image, np.rint(ramp / 257).astype(np.uint8)[..., None].repeat(3, -1))
    # Written by hand: Pillow writes no transparent level of 16 bits.
    data = (tmp_path / 'ramp.png').read_bytes()
    key = b'tRNS' + struct.pack('>H', 300)
    chunk = struct.pack('>I', 2) + key + struct.pack('>I', zlib.crc32(key))
    (tmp_path / 'key.png').write_bytes(data[:33] + chunk + data[33:])
    keyed = images.read_image(tmp_path / 'key.png')
    assert (keyed[ramp == 300] == 255).all() and (keyed[ramp != 300] == image[ramp != 300]).all()


def test_16_bit_colour_and_bitmaps(tmp_path) -> None:
    levels = draw_chart(64, 96).astype('>u2') * 257
    rows = b''.join(b'\0' + row.tobytes() for row in levels)
    chunks = [
        (b'IHDR', struct.pack('>IIBBBBB', 96, 64, 16, 2, 0, 0, 0)),
        (b'IDAT', zlib.compress(rows)),
        (b'IEND', b''),
    ]
    encoded = [struct.pack('>I', len(c)) + k + c + struct.pack('>I', zlib.crc32(k + c)) for k, c in chunks]
    (tmp_path / 'rgb.png').write_bytes(b'\x89PNG\r\n\x1a\n' + b''.join(encoded))
    np.testing.assert_array_equal(images.read_image(tmp_path / 'rgb.png'), draw_chart(64, 96))
    Image.fromarray(np.eye(16, dtype=bool)).save(tmp_path / 'bits.png')
    np.testing.assert_array_equal(images.read_image(tmp_path / 'bits.png')[..., 1], np.eye(16) * 255)


def rgb_profile(gamma: float) -> bytes:
    """An ICC profile with the primaries of sRGB in another order (R and B exchanged) and a gamma curve."""
    srgb = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes())
    count = struct.unpack_from('>I', srgb, 128)[0]
    tags = {bytes(srgb[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, blue = (srgb[tags[k] + 4 : tags[k] + 12] for k in (b'rXYZ', b'bXYZ'))
    srgb[tags[b'rXYZ'] + 4 : tags[b'rXYZ'] + 12], srgb[tags[b'bXYZ'] + 4 : tags[b'bXYZ'] + 12] = blue, red
    curve = b'curv' + bytes(4) + struct.pack('>IH', 1, round(gamma * 256)) + bytes(2)
    offset = len(srgb)
    for name in (b'rTRC', b'gTRC', b'bTRC'):
        srgb[tags[name] + 4 : tags[name] + 12] = struct.pack('>II', offset, 14)
    description = struct.unpack_from('>II', srgb, tags[b'desc'] + 4)
    srgb[description[0] : description[0] + description[1]] = bytes(
        srgb[description[0] : description[0] + description[1]]
    ).replace('sRGB'.encode('utf-16-be'), 'mine'.encode('utf-16-be'))
    srgb += curve
    srgb[0:4] = struct.pack('>I', len(srgb))
    return bytes(srgb)


def srgb_eotf(levels: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1."""
    x = levels / 255
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'webp'])
def test_colour_profile_is_converted_to_srgb(suffix, tmp_path) -> None:
    """The chart is stored with R and B exchanged and with gamma 1.8, as the profile says; it is shown as it is."""
    stored = np.rint(255 * srgb_eotf(draw_chart(64, 96)) ** (1 / 1.8)).astype(np.uint8)[..., ::-1]
    image = Image.fromarray(np.ascontiguousarray(stored))
    path = tmp_path / f'a.{suffix}'
    options = {'jpg': {'quality': 98, 'subsampling': 0}, 'png': {}, 'webp': {'lossless': True}}[suffix]
    image.save(path, icc_profile=rgb_profile(1.8), **options)
    assert chart_error(images.read_image(path)) < 2
    if suffix != 'jpg':
        image.putalpha(255)
        image.save(path, icc_profile=rgb_profile(1.8), **options)
        assert chart_error(images.read_image(path)) < 2


def test_srgb_profile_changes_nothing(tmp_path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    Image.fromarray(draw_chart(64, 96)).save(tmp_path / 'a.png', icc_profile=profile)
    np.testing.assert_array_equal(images.read_image(tmp_path / 'a.png'), draw_chart(64, 96))


def test_profile_that_does_not_fit_is_named(tmp_path, caplog) -> None:
    for name, profile in (('a', b'nonsense' * 40), ('b', rgb_profile(1.8))):
        mode = 'RGB' if name == 'a' else 'L'
        Image.fromarray(draw_chart(64, 96)).convert(mode).save(tmp_path / f'{name}.png', icc_profile=profile)
        assert images.read_image(tmp_path / f'{name}.png').shape == (64, 96, 3)
        assert f'{name}.png: its colour profile does not fit' in caplog.text


def test_cmyk_without_a_profile_is_converted_and_named(tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO)
    Image.fromarray(draw_chart(64, 96)).convert('CMYK').save(tmp_path / 'a.jpg', quality=98, subsampling=0)
    assert chart_error(images.read_image(tmp_path / 'a.jpg')) < 2
    assert 'a.jpg: CMYK without a colour profile' in caplog.text


def cmyk_profile(corners: dict[tuple[int, int, int, int], tuple[int, int, int]]) -> bytes:
    """An ICC profile (ICC.1, lut8Type) from CMYK to Lab that knows the corners of the cube, black where not given.

    Args:
      corners: (C, M, Y, K), each 0 or 1, to (L, a, b).
    """
    lab = [corners.get(tuple(int(bit) for bit in f'{index:04b}'), (0, 0, 0)) for index in range(16)]
    table = bytes(x for L, a, b in lab for x in (round(L * 2.55), a + 128, b + 128))
    identity = struct.pack('>9i', *(65536 if i % 4 == 0 else 0 for i in range(9)))
    lut = b'mft1' + bytes(4) + bytes([4, 3, 2, 0]) + identity + bytes(range(256)) * 4 + table + bytes(range(256)) * 3
    white = b'XYZ ' + bytes(4) + struct.pack('>3i', 63190, 65536, 54061)
    description = b'desc' + bytes(4) + struct.pack('>I', 6) + b'press\0' + bytes(78)
    tags, start = [(b'A2B0', lut), (b'desc', description), (b'wtpt', white)], 132 + 3 * 12
    directory, body = struct.pack('>I', len(tags)), b''
    for name, content in tags:
        directory += name + struct.pack('>II', start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = bytes(4) + struct.pack('>I', 0x02400000) + b'prtrCMYKLab ' + bytes(12) + b'acsp' + bytes(28)
    head += struct.pack('>3i', 63190, 65536, 54061) + bytes(48)
    return struct.pack('>I', 4 + len(head + directory + body)) + head + directory + body


def test_cmyk_with_a_profile_is_converted_by_it(tmp_path) -> None:
    """The profile's cyan ink is as red as sRGB's (54, 81, 70 of CIE Lab, D50), and its black is grey."""
    inks = np.zeros((8, 32, 4), np.uint8)
    inks[:, 8:16, 0], inks[:, 16:24, 3] = 255, 255
    corners = {(0, 0, 0, 0): (100, 0, 0), (1, 0, 0, 0): (54, 81, 70), (0, 0, 0, 1): (50, 0, 0)}
    path = tmp_path / 'a.jpg'
    Image.fromarray(inks, 'CMYK').save(path, quality=100, subsampling=0, icc_profile=cmyk_profile(corners))
    image = images.read_image(path)
    for column, colour in ((4, (255, 255, 255)), (12, (255, 0, 0)), (20, (119, 119, 119)), (28, (255, 255, 255))):
        np.testing.assert_allclose(image[4, column].astype(int), colour, atol=4)


@pytest.mark.parametrize('kind', ['zTXt', 'iTXt', 'behind'])
def test_large_texts_of_a_png_are_not_read(kind, tmp_path) -> None:
    texts = PngImagePlugin.PngInfo()
    text = 'x' * (PngImagePlugin.MAX_TEXT_CHUNK + 1)
    texts.add_itxt('key', text, zip=True) if kind == 'iTXt' else texts.add_text('key', text, zip=True)
    path = tmp_path / 'a.png'
    Image.fromarray(draw_chart(64, 96)).save(path, pnginfo=texts)
    if kind == 'behind':  # as some programs write: after the pixels
        data = path.read_bytes()
        start = data.index(b'zTXt') - 4
        end = start + 12 + struct.unpack_from('>I', data, start)[0]
        path.write_bytes(data[:start] + data[end:-12] + data[start:end] + data[-12:])
    np.testing.assert_array_equal(images.read_image(path), draw_chart(64, 96))
    assert images.read_size(path) == (64, 96)


def test_large_text_case_is_read() -> None:
    assert images.read_image(IMAGES / 'big_text.png').shape == (96, 160, 3)
    assert images.read_size(IMAGES / 'big_text.png') == (96, 160)


@pytest.mark.parametrize('suffix', ['webp', 'png'])
def test_first_frame_of_an_animation(suffix, tmp_path) -> None:
    first, second = (Image.fromarray(x) for x in (draw_chart(64, 96), 255 - draw_chart(64, 96)))
    first.save(tmp_path / f'a.{suffix}', save_all=True, append_images=[second], lossless=True)
    np.testing.assert_array_equal(images.read_image(tmp_path / f'a.{suffix}'), draw_chart(64, 96))


def test_files_that_cannot_be_read_are_named(tmp_path) -> None:
    bomb = struct.pack('>IIBBBBB', 40000, 40000, 8, 2, 0, 0, 0)
    header = struct.pack('>I', 13) + b'IHDR' + bomb + struct.pack('>I', zlib.crc32(b'IHDR' + bomb))
    (tmp_path / 'bomb.png').write_bytes(b'\x89PNG\r\n\x1a\n' + header + bytes(4) + b'IDAT' + bytes(4))
    (tmp_path / 'empty.png').write_bytes(b'')
    buffer = io.BytesIO()
    Image.fromarray(draw_chart(64, 96)).save(buffer, 'png')
    (tmp_path / 'cut.png').write_bytes(buffer.getvalue()[:120])
    for name, reason in (('bomb', 'pixels'), ('empty', ''), ('cut', '')):
        with pytest.raises(ValueError, match=rf'{name}\.png: not an image that can be read: .*{reason}'):
            images.read_image(tmp_path / f'{name}.png')
    with pytest.raises(ValueError, match=r'bomb\.png: not an image that can be read'):
        images.read_size(tmp_path / 'bomb.png')
