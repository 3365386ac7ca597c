"""Curves and matrices of wide gamuts and high dynamic range, against the values that the ITU publishes."""

import av
import numpy as np
import pytest

from fv_jax.data.video import tone_mapping
from fv_jax.data.video.colours import Colours
from fv_jax.data.video.tone_mapping import bt1886_eotf, compress_highlights, hlg_inverse_oetf, pq_eotf, to_bt709, to_sdr
from tests.data.video.made_charts import chart_error, draw_chart

LEVELS = 65280  # of white, after the scaler's conversion of limited range


def test_pq_has_the_luminances_of_the_recommendations() -> None:
    """BT.2408-7, table 1 and annex: 10-bit signals in per cent; ST 2084: 0.508 is 100 cd/m2."""
    for signal, luminance in ((0, 0), (0.5081, 100), (0.5807, 203), (0.7518, 1000), (0.9026, 4000), (1, 10000)):
        np.testing.assert_allclose(pq_eotf(np.array(signal)), luminance, rtol=0.002)
    assert abs(pq_eotf(np.array(0.38)) - 26) < 0.6  # the grey card of 18 %


def test_hlg_has_the_luminances_of_the_recommendations() -> None:
    """BT.2100-2, table 5: OETF(1/12) is 0.5; BT.2408, table 1: 75 % is 203 and 38 % is 26 cd/m2 of 1000."""
    np.testing.assert_allclose(hlg_inverse_oetf(np.array([0, 0.5, 1])), [0, 1 / 12, 1], atol=1e-6)
    luminance = 1000 * hlg_inverse_oetf(np.array([0.75, 0.38])) ** 1.2
    np.testing.assert_allclose(luminance, [203, 26], atol=1)


def test_primaries_have_the_matrices_of_the_recommendations() -> None:
    """BT.2407, 2 and BT.2087, 4 (its inverse); SMPTE EG 432-1."""
    expected = [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]
    np.testing.assert_allclose(to_bt709('BT.2020'), expected, atol=6e-5)
    inverse = [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]
    np.testing.assert_allclose(np.linalg.inv(to_bt709('BT.2020')), inverse, atol=6e-5)
    p3 = [[1.2249, -0.2247, 0], [-0.0420, 1.0419, 0], [-0.0197, -0.0786, 1.0979]]
    np.testing.assert_allclose(to_bt709('Display P3'), p3, atol=4e-4)
    luma = np.array([0.2627, 0.6780, 0.0593])  # BT.2020, table 4
    np.testing.assert_allclose(tone_mapping.rgb_to_xyz('BT.2020')[1], luma, atol=6e-5)
    np.testing.assert_allclose(tone_mapping.rgb_to_xyz('')[1], [0.2126, 0.7152, 0.0722], atol=6e-5)


@pytest.mark.parametrize('peak', [1.5, 1000 / 203, 10000 / 203])
def test_highlights_are_compressed_as_ffmpeg_does(peak) -> None:
    light = np.linspace(0, peak, 64, dtype=np.float32)
    frame = av.VideoFrame(64, 16, 'gbrpf32le')
    for plane in frame.planes:
        rows = np.zeros((16, plane.line_size // 4), np.float32)
        rows[:, :64] = light
        plane.update(rows.tobytes())
    frame.pts, frame.color_trc, frame.colorspace, frame.color_primaries = 0, 8, 0, 1  # linear BT.709
    graph = av.filter.Graph()
    source = graph.add_buffer(width=64, height=16, format='gbrpf32le', time_base='1/24')
    curve = graph.add('tonemap', f'tonemap=mobius:param={tone_mapping.KNEE}:desat=0:peak={peak}')
    sink = graph.add('buffersink')
    source.link_to(curve)
    curve.link_to(sink)
    graph.configure()
    graph.push(frame)
    expected = graph.pull().to_ndarray()[0, :, 0]
    np.testing.assert_allclose(compress_highlights(light, peak), expected, atol=2e-6)
    assert compress_highlights(np.array(peak), peak) == pytest.approx(1)


def test_sdr_content_in_hdr_is_not_compressed() -> None:
    light = np.linspace(0, 1, 9)
    np.testing.assert_array_equal(compress_highlights(light, 1.0), light)


def encode_light(light: np.ndarray, transfer: str) -> np.ndarray:
    """Computes the signals 0 to 1 of the light of a display, 1 for 203 cd/m2: the inverse of the EOTF, step by step."""
    luminance = np.maximum(light, 0) * 203
    if transfer == 'PQ':  # BT.2100, table 4, the inverse EOTF
        power = (luminance / 10000) ** (2610 / 16384)
        return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)
    # BT.2100, table 5, notes 5h and 5i: the inverse OOTF, then the OETF.
    displayed = luminance / 1000
    luma = (displayed @ [0.2627, 0.6780, 0.0593])[..., None]
    scene = displayed * luma ** ((1 - 1.2) / 1.2)
    logarithm = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), logarithm)


@pytest.mark.parametrize('transfer', ['PQ', 'HLG', ''])
@pytest.mark.parametrize('primaries', ['BT.2020', 'Display P3', ''])
def test_chart_of_wide_gamut_is_that_of_bt709(transfer, primaries) -> None:
    light = bt1886_eotf(draw_chart(64, 96) / 255) @ np.linalg.inv(to_bt709(primaries)).T
    signal = encode_light(light, transfer) if transfer else np.maximum(light, 0) ** (1 / 2.4)
    image = to_sdr(np.rint(LEVELS * signal).astype(np.uint16), LEVELS, Colours(primaries=primaries, transfer=transfer))
    # What is brighter than the knee, 232 of 255, is compressed.
    assert chart_error(image) < (0.7 if transfer else 0.02)


def test_levels_are_smooth_and_increase_up_to_white() -> None:
    """A grey ramp from 0 to 1000 cd/m2 uses the levels without gaps: no banding."""
    ramp = np.linspace(0, pq_to_level(1000), 65536).astype(np.uint16).reshape(256, 256, 1).repeat(3, -1)
    levels = to_sdr(ramp, LEVELS, Colours(primaries='BT.2020', transfer='PQ'))
    assert (levels == levels[..., :1]).all()
    steps = np.diff(levels[..., 0].ravel().astype(int))
    assert steps.min() >= 0 and steps.max() == 1 and levels.min() == 0 and levels.max() == 255


def pq_to_level(luminance: float) -> float:
    return LEVELS * float(encode_light(np.array(luminance / 203), 'PQ'))


def test_peak_of_metadata_is_white() -> None:
    for peak in (300.0, 1000.0, 4000.0):
        image = np.full((4, 4, 3), pq_to_level(peak), np.uint16)
        assert to_sdr(image, LEVELS, Colours(transfer='PQ', peak=peak)).min() == 255
    dim = np.full((4, 4, 3), pq_to_level(250), np.uint16)
    assert to_sdr(dim, LEVELS, Colours(transfer='PQ', peak=1000)).max() < 252
