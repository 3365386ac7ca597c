"""The page of an evaluation in headless Chromium: media, the slider, playing, themes, widths."""

import io

import numpy as np
import pytest
from PIL import Image

from fv_jax.core.report.page import to_html
from fv_jax.evaluation.report_page import build_report
from tests.evaluation.report_data import HOSTILE, make_data, make_videos, write_media

NAMES = ('city', HOSTILE)
FRAMES = 9
READY = 'video => video.readyState >= 2 && !video.seeking && video.error === null'


@pytest.fixture(scope='module')
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp('report')
    media = write_media(folder / 'media', NAMES, make_videos((96, 144), FRAMES))
    path = folder / 'report.html'
    path.write_text(to_html(build_report(make_data(NAMES), media)), encoding='utf-8')
    for clip in media:  # what the page shows is in the page
        clip.strip.unlink()
        for video in clip.videos.values():
            video.unlink()
    return path


def wait_for_videos(comparison):
    comparison.scroll_into_view_if_needed()
    comparison.page.wait_for_function(
        f'root => [...root.querySelectorAll("video")].every({READY})', arg=comparison.element_handle()
    )


def wait_for_time(comparison, seconds):
    """Waits until both videos are at a time."""
    at = '([root, time]) => [...root.querySelectorAll("video")].every(v => Math.abs(v.currentTime - time) < 1e-3)'
    comparison.page.wait_for_function(at, arg=[comparison.element_handle(), seconds])


def pixels(locator):
    """Takes a screenshot of an element: (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert('RGB')).astype(int)


def difference(a, b):
    """Returns the mean absolute difference per column."""
    return np.abs(a - b).mean((0, 2))


def test_no_image_is_broken(open_page, report):
    page = open_page(report)
    widths = page.evaluate('[...document.images].map(image => image.naturalWidth)')
    assert len(widths) == len(NAMES) and all(width > 0 for width in widths)
    assert page.locator('h3').all_inner_texts() == list(NAMES)
    assert page.title() == 'Evaluation of runs/a'


def test_every_video_can_be_shown_on_both_sides(open_page, report):
    page = open_page(report)
    comparisons = page.locator('.comparison')
    assert comparisons.count() == len(NAMES)
    for comparison in comparisons.all():
        wait_for_videos(comparison)
        for side in ('left', 'right'):
            select = comparison.locator(f'select.{side}')
            for label in select.locator('option').all_inner_texts():
                select.select_option(label)
                wait_for_videos(comparison)
                assert comparison.locator(f'.name.{side}').inner_text() == label
        assert comparison.evaluate('root => [...root.querySelectorAll("video")].map(v => v.videoWidth)') == [144, 144]
        assert comparison.locator('.problem').count() == 0


def test_slider_moves_the_boundary(open_page, report):
    comparison = open_page(report).locator('.comparison').first
    wait_for_videos(comparison)
    stage, slider = comparison.locator('.stage'), comparison.locator('.slider')
    at_half = pixels(stage)
    box = stage.bounding_box()
    mouse = comparison.page.mouse
    mouse.move(box['x'] + box['width'] / 2, box['y'] + box['height'] / 2)
    mouse.down()
    mouse.move(box['x'] + box['width'] * 0.2, box['y'] + box['height'] / 2, steps=4)
    mouse.up()
    assert slider.get_attribute('aria-valuenow') == '20'
    changed = difference(pixels(stage), at_half)
    width = len(changed)
    assert changed[int(0.25 * width) : int(0.45 * width)].mean() > 5, 'now of the right video'
    assert changed[int(0.6 * width) :].max() < 1, 'as before'
    slider.press('End')
    assert slider.get_attribute('aria-valuenow') == '100'
    left = pixels(stage)
    slider.press('Home')
    assert difference(pixels(stage), left)[int(0.1 * width) : int(0.9 * width)].mean() > 5
    slider.press('ArrowRight')
    slider.press('PageUp')
    assert slider.get_attribute('aria-valuenow') == '11'


def test_frames_are_stepped_in_both_videos(open_page, report):
    comparison = open_page(report).locator('.comparison').first
    wait_for_videos(comparison)
    frame = comparison.locator('.frame')
    assert frame.inner_text() == f'1 / {FRAMES}'
    first = pixels(comparison.locator('.stage'))
    for _ in range(3):
        comparison.locator('.forward').click()
    wait_for_videos(comparison)
    assert frame.inner_text() == f'4 / {FRAMES}'
    wait_for_time(comparison, 3.5 / 12)
    assert difference(pixels(comparison.locator('.stage')), first).mean() > 2
    for _ in range(4):
        comparison.locator('.back').click()
    assert frame.inner_text() == f'{FRAMES} / {FRAMES}', 'the loop continues at the end'
    comparison.locator('.position').fill('2')
    wait_for_time(comparison, 2.5 / 12)
    wait_for_videos(comparison)


def test_videos_play_together_and_in_a_loop(open_page, report):
    comparison = open_page(report).locator('.comparison').first
    wait_for_videos(comparison)
    comparison.locator('.play').click()
    assert comparison.locator('.play').inner_text() == 'Pause'
    # Over more than two rounds of 0.75 s: the largest distance of the two, and whether the time started again.
    distances, restarts = comparison.evaluate("""async root => {
        const [left, right] = root.querySelectorAll('video');
        let last = 0, restarts = 0;
        const distances = [];
        const end = performance.now() + 2500;
        while (performance.now() < end) {
            await new Promise(requestAnimationFrame);
            if (left.paused || left.seeking || right.seeking) continue;
            if (left.currentTime < last) restarts += 1;
            last = left.currentTime;
            distances.push(Math.abs(left.currentTime - right.currentTime));
        }
        return [distances, restarts];
    }""")
    assert restarts >= 1 and len(distances) > 20
    assert np.median(distances) < 1 / 12, 'within a frame'
    assert all(comparison.evaluate('root => [...root.querySelectorAll("video")].map(v => v.muted)'))
    comparison.locator('.play').click()
    wait_for_videos(comparison)
    assert comparison.evaluate('root => [...root.querySelectorAll("video")].every(v => v.paused)')
    comparison.locator('.loop').uncheck()
    comparison.locator('.play').click()
    comparison.page.wait_for_function(
        'root => root.querySelector(".play").textContent === "Play"', arg=comparison.element_handle()
    )
    assert comparison.locator('.frame').inner_text() == f'{FRAMES} / {FRAMES}'


def test_dark_and_light(open_page, report):
    light, dark = open_page(report), open_page(report, scheme='dark')
    of_light, of_dark = pixels(light.locator('body')), pixels(dark.locator('body'))
    assert of_light[5, 5].min() > 230 and of_dark[5, 5].max() < 40
    button = light.locator('#theme')
    assert button.inner_text() == 'Dark' and dark.locator('#theme').inner_text() == 'Light'
    button.press('Enter')
    assert button.inner_text() == 'Light'
    assert pixels(light.locator('body'))[5, 5].tolist() == of_dark[5, 5].tolist()
    button.press('Enter')
    assert pixels(light.locator('body'))[5, 5].tolist() == of_light[5, 5].tolist()


@pytest.mark.parametrize('width', [400, 800, 1280, 1600])
def test_page_is_no_wider_than_the_window(open_page, report, width):
    page = open_page(report, width=width)
    for comparison in page.locator('.comparison').all():
        wait_for_videos(comparison)
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    table = page.locator('.scroll').first
    if width == 400:
        assert table.evaluate('box => box.scrollWidth > box.clientWidth'), 'a wide table scrolls within itself'
    strip = page.locator('.enlarge').first
    shown = strip.locator('img').bounding_box()['width']
    strip.press('Enter')
    enlarged = strip.locator('img').bounding_box()['width']
    assert enlarged >= shown and enlarged == strip.locator('img').evaluate('image => image.naturalWidth')
    assert page.evaluate('document.documentElement.scrollWidth') <= width


def test_keyboard_reaches_every_control(open_page, report):
    page = open_page(report)
    wait_for_videos(page.locator('.comparison').first)
    reached = set()
    for _ in range(60):
        page.keyboard.press('Tab')
        reached.add(page.evaluate('document.activeElement.className || document.activeElement.id'))
    wanted = {'theme', 'scroll', 'enlarge', 'left', 'right', 'slider', 'play', 'back', 'forward', 'position', 'loop'}
    assert wanted <= reached


def test_a_damaged_video_is_reported(open_page, tmp_path):
    media = write_media(tmp_path / 'media', NAMES[:1], make_videos((32, 48), 2))
    report = build_report(make_data(NAMES[:1]), media)
    media[0].videos['4 steps'].write_bytes(b'no video')
    (tmp_path / 'report.html').write_text(to_html(report), encoding='utf-8')
    comparison = open_page(tmp_path / 'report.html').locator('.comparison')
    comparison.scroll_into_view_if_needed()
    comparison.locator('.problem').wait_for()
