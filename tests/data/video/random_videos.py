"""Random videos made by FFmpeg, decoded by us and by FFmpeg's own filters: equal, or refused for a reason that holds.

A frame is a grid of colours, other ones in every frame, so that colours, orientation, order and times are all seen.
Its YUV is computed from the formulas of ITU-T H.273, so that a fault of the scaler shows too.
"""

import dataclasses
import io
import itertools
import re
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from fv_jax.data.video import decoding
from fv_jax.data.video.tone_mapping import bt1886_eotf, to_bt709
from tests.data.video import made_videos
from tests.data.video.test_tone_mapping import encode_light

ROWS, COLUMNS, FRAMES = 2, 3, 5
# Codec: the containers, the formats of pixels and the options that it is used with.
CODECS = {
    'libx264': ('mp4 mov matroska mpegts flv', 'yuv420p yuv422p yuv444p yuv420p10le yuv422p10le', {'crf': '4'}),
    'libx265': ('mp4 matroska mpegts', 'yuv420p yuv420p10le', {'x265-params': 'crf=4:bframes=0:log-level=none'}),
    'libvpx-vp9': ('webm matroska mp4', 'yuv420p yuv444p', {'crf': '6', 'b': '0', 'cpu-used': '8'}),
    'libsvtav1': ('mp4 webm matroska', 'yuv420p yuv420p10le', {'crf': '6', 'preset': '8', 'g': '1'}),
    'mpeg2video': ('mpegts vob matroska', 'yuv420p yuv422p', {'qmax': '2', 'g': '3'}),
    'mpeg4': ('avi mp4', 'yuv420p', {'b': '20000000', 'qmax': '3'}),
    'prores_ks': ('mov', 'yuv422p10le yuv444p10le', {}),
    'ffv1': ('matroska avi', 'yuv420p yuv444p yuv420p10le yuv422p12le gbrp10le bgra', {}),
}
# Matrix of H.273: the weights of red and blue.
WEIGHTS = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087)}
WEIGHTS |= {9: (0.2627, 0.0593)}
SCALE_NAMES = {1: 'bt709', 4: 'fcc', 5: 'bt470', 6: 'smpte170m', 7: 'smpte240m', 9: 'bt2020'}
# Chroma is beside the left of two pixels; the scale filter does not ask the frame.
LEFT = ('libx264', 'libx265', 'mpeg2video', 'mpeg4')
ONE = 1 << 16
# The filters that show a frame as its display matrix says, in FFmpeg's command line.
DISPLAY = {
    (1, 0, 0, 1): '',
    (0, 1, -1, 0): 'transpose=clock',
    (-1, 0, 0, -1): 'hflip,vflip',
    (0, -1, 1, 0): 'transpose=cclock',
    (-1, 0, 0, 1): 'hflip',
    (1, 0, 0, -1): 'vflip',
    (0, 1, 1, 0): 'transpose=cclock_flip',
    (0, -1, -1, 0): 'transpose=clock_flip',
}
REFUSED = {
    'YCgCo': {'colorspace': 8},
    'ICtCp': {'colorspace': 14},
    'linear': {'color_trc': 8},
    'DCI-P3': {'color_primaries': 11},
}


@dataclasses.dataclass(frozen=True)
class Case:
    """What a video is made of; tags are those that it is to have, and may not be stored."""

    codec: str
    container: str
    pixels: str
    size: tuple[int, int]
    rate: Fraction
    offset: int
    aspect: Fraction
    terms: tuple[int, int, int, int]
    matrix: int
    full: bool
    transfer: str
    primaries: str
    tagged: bool
    field: str
    refused: str
    colours: np.ndarray = dataclasses.field(repr=False)


def draw_case(seed: int) -> Case:
    rng = np.random.default_rng(seed)

    def draw(choices: Sequence):
        return choices[int(rng.integers(len(choices)))]

    codec = draw(list(CODECS))
    containers, pixels, _ = CODECS[codec]
    container, pixels = draw(containers.split()), draw(pixels.split())
    large = draw([None, None, None, (80, 1280), (592, 96)])
    size = large or tuple(int(x) for x in 16 * rng.integers(5, 11, 2))
    stores_tags = codec != 'mpeg4' and container != 'avi' and not (codec == 'ffv1' and container == 'avi')
    is_rgb = pixels in ('gbrp10le', 'bgra')
    wide = (
        stores_tags and not is_rgb and container not in ('vob', 'flv') and codec != 'mpeg2video' and rng.random() < 0.4
    )
    transfer, primaries = draw([('PQ', 'BT.2020'), ('HLG', 'BT.2020'), ('', 'BT.2020'), ('', 'Display P3')])
    if not wide:
        transfer = primaries = ''
    matrix = 9 if primaries == 'BT.2020' else 1 if wide else draw([1, 4, 5, 6, 7])
    refused = draw(list(REFUSED)) if stores_tags and not wide and not is_rgb and rng.random() < 0.12 else ''
    if codec in ('mpeg2video', 'prores_ks', 'libvpx-vp9') or container == 'flv':  # do not store all tags
        refused = ''
    field = draw(['tff', 'bff']) if codec in ('libx264', 'mpeg2video') and rng.random() < 0.2 else ''
    return Case(
        codec=codec,
        container=container,
        pixels=pixels,
        size=size,
        rate=draw([Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(50), Fraction(60000, 1001)]),
        offset=0 if container == 'avi' else draw([0, 0, 7, 90]),  # AVI fills it with empty frames
        aspect=Fraction(draw(['1', '1', '32/27', '16/11', '10/11', '8/9', '4/3', '1/2'])),
        terms=draw(list(DISPLAY)) if container in ('mp4', 'mov') else (1, 0, 0, 1),
        matrix=matrix,
        full=bool(rng.random() < 0.3) and codec not in ('mpeg2video', 'mpeg4', 'prores_ks'),
        transfer=transfer,
        primaries=primaries,
        tagged=wide or bool(refused) or rng.random() < 0.7,
        field=field,
        refused=refused,
        colours=rng.integers(25, 225, (FRAMES, ROWS, COLUMNS, 3)),
    )


def make_frames(case: Case) -> list[av.VideoFrame]:
    height, width = case.size
    rows, columns = np.arange(height) * ROWS // height, np.arange(width) * COLUMNS // width
    frames = []
    for colours in case.colours:
        image = colours[rows][:, columns].astype(np.uint8)
        if case.pixels in ('gbrp10le', 'bgra'):
            rgb = av.VideoFrame.from_ndarray(image, format='rgb24')
            frame = rgb.reformat(format=case.pixels)
        else:
            frame = quantize(case, image)
        frames.append(made_videos.through(frame, [f'setfield={case.field}']) if case.field else frame)
    return frames


def quantize(case: Case, image: np.ndarray) -> av.VideoFrame:
    """Computes YUV of RGB of BT.709 in 12 bits (H.273, 8.3), which is converted to the case's bits and chroma."""
    light = bt1886_eotf(image / 255) @ np.linalg.inv(to_bt709(case.primaries)).T
    signal = encode_light(light, case.transfer) if case.transfer else np.maximum(light, 0) ** (1 / 2.4)
    red, blue = WEIGHTS[case.matrix]
    luma = signal @ [red, 1 - red - blue, blue]
    chroma = [(signal[..., 2] - luma) / (2 - 2 * blue), (signal[..., 0] - luma) / (2 - 2 * red)]
    bits = int((re.findall(r'p(\d+)', case.pixels) or ['8'])[0])
    scale = 1 << (bits - 8)
    if case.full:
        top = (1 << bits) - 1
        planes = [top * luma, *(top * values + 128 * scale for values in chroma)]
    else:
        planes = [scale * (219 * luma + 16), *(scale * (224 * values + 128) for values in chroma)]
    kind = np.uint8 if bits == 8 else np.uint16
    frame = av.VideoFrame(image.shape[1], image.shape[0], 'yuv444p' if bits == 8 else f'yuv444p{bits}le')
    frame.color_range = 2 if case.full else 1
    for plane, values in zip(frame.planes, planes, strict=True):
        padded = np.zeros((image.shape[0], plane.line_size // kind().itemsize), kind)
        padded[:, : image.shape[1]] = np.clip(np.rint(values), 0, (1 << bits) - 1)
        plane.update(padded.tobytes())
    # Chroma alone is resampled: there is no conversion from a matrix to the same one.
    return frame.reformat(format=case.pixels, src_colorspace=1, dst_colorspace=1, interpolation=made_videos.EXACT)


def make_video(case: Case) -> bytes:
    tags = {}
    if case.tagged:
        trc = {'PQ': 16, 'HLG': 18, '': 1}[case.transfer]
        primaries = {'BT.2020': 9, 'Display P3': 12, '': 1}[case.primaries]
        tags = {'colorspace': case.matrix, 'color_primaries': primaries, 'color_trc': trc}
        if case.pixels in ('gbrp10le', 'bgra'):
            tags['colorspace'] = 0
    tags |= {'color_range': 2 if case.full else 1} | REFUSED.get(case.refused, {})
    a, b, c, d = (term * ONE for term in case.terms)
    return made_videos.encode(
        make_frames(case),
        case.codec,
        case.container,
        options=CODECS[case.codec][2] | ({'flags': '+ildct+ilme'} if case.field else {}),
        aspect=None if case.aspect == 1 else case.aspect,
        display_matrix=None if case.terms == (1, 0, 0, 1) else [a, b, 0, c, d, 0, 0, 0, 1 << 30],
        tags=tags,
        rate=case.rate,
        offset=case.offset,
    )


def convert_by_filters(data: bytes, case: Case) -> tuple[list[np.ndarray], list[float]]:
    """Decodes with FFmpeg and converts with its filters: images of a video of BT.709's primaries, and times."""
    images, seconds = [], []
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        first = frames[0]
        matrix = SCALE_NAMES.get(int(first.colorspace))
        if matrix is None:
            matrix = 'bt709' if first.width >= 1280 or first.height > 576 else 'smpte170m'
        square = 'lt(abs(sar-1),0.005)+eq(sar,0)'
        width = f"w='if({square}+lt(sar,1),iw,2*round(iw*sar/2))'"
        height = f"h='if({square}+gt(sar,1),ih,2*round(ih/sar/2))'"
        stretched = stream.sample_aspect_ratio and abs(stream.sample_aspect_ratio - 1) >= 0.005
        flags = f'flags={"bicubic" if stretched else "bilinear"}+accurate_rnd+full_chroma_int'
        source_range = {1: 'tv', 2: 'pc'}.get(int(first.color_range), 'auto')
        scale = f'scale={width}:{height}:in_color_matrix={matrix}:in_range={source_range}:{flags}'
        if case.codec in LEFT:
            scale += ':in_chroma_loc=left'
        filters = [f'setsar={stream.sample_aspect_ratio or 1}', scale, 'format=rgb24']
        filters = [*(['bwdif=mode=send_frame'] if first.interlaced_frame else []), *filters]
        filters += DISPLAY[case.terms].split(',') if DISPLAY[case.terms] else []
        graph = av.filter.Graph()
        last = graph.add_buffer(template=stream)
        for name, _, options in (text.partition('=') for text in (*filters, 'buffersink')):
            added = graph.add(name, options or None)
            last.link_to(added)
            last = added
        graph.configure()
        for frame in [*frames, None]:
            graph.push(frame)
        images = [graph.pull().to_ndarray() for _ in frames]
        seconds = (
            [float((frame.pts - first.pts) * stream.time_base) for frame in frames] if first.pts is not None else []
        )
    return images, seconds


def read_grid(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Computes the mean colours of the grid's inner parts."""
    edges = [np.linspace(0, side, count + 1) for side, count in zip(image.shape[:2], shape, strict=True)]
    inner = [[slice(round(a + (b - a) / 3), round(b - (b - a) / 3)) for a, b in itertools.pairwise(x)] for x in edges]
    return np.array([[image[row, column].mean((0, 1)) for column in inner[1]] for row in inner[0]])


def show_grid(case: Case, grid: np.ndarray) -> np.ndarray:
    """Rotates and mirrors a grid of colours as the display matrix says: (x, y) is shown at (a x + c y, b x + d y)."""
    a, b, c, d = case.terms
    shape = grid.shape[:2] if a else grid.shape[1::-1]
    shown = np.empty((*shape, 3))
    for y, x in np.ndindex(*grid.shape[:2]):
        column, row = a * x + c * y, b * x + d * y
        shown[row + (shape[0] - 1) * (b + d < 0), column + (shape[1] - 1) * (a + c < 0)] = grid[y, x]
    return shown


def check(seed: int) -> str:
    """Checks the video of a seed. Returns 'equal' or 'refused'. Raises AssertionError for a difference."""
    case = draw_case(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'video'
        data = make_video(case)
        path.write_bytes(data)
        if case.refused:
            try:
                decoding.decode(path)
            except ValueError as error:
                assert str(error).startswith(f'{path}: its ') and case.refused in str(error), error
                return 'refused'
            raise AssertionError(f'not refused: {case}')
        frames = list(decoding.iter_frames(path))
        images, info = [frame.pixels() for frame in frames], decoding.probe(path)
    assert len(images) == FRAMES, f'{len(images)} frames'
    assert abs(info.fps - case.rate) < 0.02 and info.frames == FRAMES, f'{info} for {case.rate}'
    expected, seconds = convert_by_filters(data, case)
    times = [frame.seconds for frame in frames]
    np.testing.assert_allclose(times, np.arange(FRAMES) / float(case.rate), atol=1.1e-3)
    if seconds and case.container != 'avi':
        np.testing.assert_allclose(times, seconds, atol=1e-6)
    _check_colours(case, data, images)
    for image, converted in zip(images, expected, strict=True):
        assert image.shape == converted.shape and image.shape[:2] == (info.height, info.width), image.shape
        if not case.primaries:
            difference = np.abs(image.astype(int) - converted)
            assert difference.max() <= 2 and difference.mean() < 0.3, f'from FFmpeg: {difference.max()}'
    return 'equal'


def _check_colours(case: Case, data: bytes, images: list[np.ndarray]) -> None:
    """Compares with the colours that were drawn, where the file's tags, or what is assumed without, are right."""
    with av.open(io.BytesIO(data)) as container:
        first = next(container.decode(video=0))
    assumed = 1 if case.size[1] >= 1280 or case.size[0] > 576 else 6
    found = int(first.colorspace) if int(first.colorspace) != 2 else assumed
    same = {4: 4, 5: 6}.get(found, found) == {4: 4, 5: 6}.get(case.matrix, case.matrix)
    is_rgb = case.pixels in ('gbrp10le', 'bgra')
    if case.primaries or case.transfer:
        assert int(first.color_primaries) == {'BT.2020': 9, 'Display P3': 12}[case.primaries], 'tags are not stored'
    elif not (same or is_rgb) or (case.full and int(first.color_range) != 2):
        return
    for image, colours in zip(images, case.colours, strict=True):
        shown = show_grid(case, colours.astype(float))
        error = np.abs(read_grid(image, shown.shape[:2]) - shown)
        # Eight bits are coarse where light is converted from a wide gamut.
        coarse = case.primaries and not re.search(r'p1[02]le', case.pixels)
        assert error.mean() < (6 if coarse else 2), f'from the source: {error.mean():.2f} of {error.max():.2f}'
