"""The page of the job server in headless Chromium, with the small weights of the package and few steps."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from tests import compiling, runs

pytest.importorskip('gradio', reason='needs the extra app')

from fv_jax.data.synthetic import sprites
from fv_jax.data.video import containers, encoding
from fv_jax.sampling import metadata

PROMPT = 'a red car moves from right to left over a meadow'
WIDTH = 384  # of an enhanced preview, half the usual one
STEPS = '--stage1.num_steps=3', '--stage2.num_steps=2'
FLAGS = '--port=0', *STEPS, f'--stage2.size=(256,{WIDTH})', '--max-upload-mb=1', '--max-clip-frames=40'
LONG = 240_000  # milliseconds, with compilation


@contextlib.contextmanager
def running(folder, *flags) -> Iterator[tuple[subprocess.Popen, str]]:
    """A server on a folder, and its address."""
    command = [sys.executable, '-m', 'fv_jax.app', f'--folder={folder}', *FLAGS, *flags]
    environment = os.environ | compiling.AS_IN_USE
    process = subprocess.Popen(command, cwd=runs.ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        yield process, re.match(r'http://\S+\d', process.stdout.readline())[0]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@pytest.fixture(scope='module')
def address(tmp_path_factory):
    with running(tmp_path_factory.mktemp('server') / 'jobs') as (_, found):
        yield found


@pytest.fixture
def open_browser(browser):
    """Opens the page of a server as a new user; at the end, no script may have failed and nothing else was loaded."""
    contexts, problems = [], []

    def open_page(url, width=1280, scheme='light'):
        context = browser.new_context(viewport={'width': width, 'height': 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on('pageerror', lambda error: problems.append(f'error: {error}'))
        page.on('request', lambda request: problems.append(request.url[:80]) if is_foreign(request.url) else None)
        page.goto(url)
        page.locator('#fv-make').wait_for()
        return page

    def is_foreign(url):
        return not url.startswith(('http://127.0.0.1', 'data:', 'blob:'))

    yield open_page
    for context in contexts:
        context.close()
    assert not problems, problems


def make_previews(page, prompt, count=1, seed=0):
    page.locator('#fv-prompt textarea').fill(prompt)
    page.locator('#fv-count input[type=number]').fill(str(count))
    page.locator('#fv-seed input').fill(str(seed))
    page.locator('#fv-make').click()


def cards(page, where, status='completed'):
    return page.locator(f'{where} article[data-status={status}]')


def wait_for(page, where, count, status='completed'):
    found = cards(page, where, status)
    found.nth(count - 1).wait_for(timeout=LONG)
    assert found.count() == count
    return found


def seed(card):
    return card.locator('.fv-note').inner_text().partition(' ·')[0]


def fetch(page, method, path, body=None):
    """Returns the status and the JSON of a request that the page makes."""
    script = """async ([method, path, body]) => {
        const response = await fetch(path, { method, body });
        return [response.status, await response.json()];
    }"""
    return page.evaluate(script, [method, path, body])


def test_from_a_prompt_to_a_video(address, open_browser, tmp_path):
    page = open_browser(address)
    make_previews(page, PROMPT, 2, seed=5)
    previews = wait_for(page, '#fv-previews', 2)
    assert [seed(previews.nth(i)) for i in range(2)] == ['seed 5', 'seed 6']
    assert page.locator('#fv-cost').inner_text().startswith('2 previews: about')
    assert 'a ladybug moves from left to right over a beach' in page.locator('p.fv-note').first.inner_text()
    video = previews.first.locator('video')
    page.wait_for_function('video => video.readyState >= 2 && !video.paused', arg=video.element_handle())

    previews.first.get_by_text('Re-roll').click()
    assert seed(wait_for(page, '#fv-previews', 3).first) not in ('seed 5', 'seed 6')
    previews.nth(2).get_by_text('Edit').click()
    assert page.locator('#fv-prompt textarea').input_value() == PROMPT
    assert page.locator('#fv-seed input').input_value() == '6'

    enhance = page.locator('#fv-toolbar button')
    assert enhance.is_disabled()
    previews.nth(1).locator('video').click()
    assert previews.nth(1).get_by_label('Choose').is_checked()
    assert 'chip-seconds' in page.locator('#fv-toolbar').inner_text()
    enhance.click()
    card = wait_for(page, '#fv-enhanced', 1).first
    comparison = card.locator('.comparison')
    ready = 'root => [...root.querySelectorAll("video")].every(video => video.readyState >= 2 && !video.error)'
    page.wait_for_function(ready, arg=comparison.element_handle())
    assert comparison.evaluate('root => root.getBoundingClientRect().top < innerHeight'), 'the page has scrolled to it'
    widths = comparison.evaluate('root => [...root.querySelectorAll("video")].map(video => video.videoWidth)')
    assert widths == [sprites.PREVIEW[2], WIDTH]
    comparison.locator('.slider').press('Home')
    assert comparison.locator('.slider').get_attribute('aria-valuenow') == '0'

    with page.expect_download() as download:
        card.get_by_text('Download').click()
    download.value.save_as(tmp_path / 'video.mp4')
    assert download.value.suggested_filename == 'a_red_car_moves_from_right_to_left_over__enhanced_seed5.mp4'
    made = metadata.from_json(containers.read_comment(tmp_path / 'video.mp4'))
    assert (made.preview.prompt, made.preview.seed, made.enhance.seed) == (PROMPT, 5, 5)

    page.get_by_role('tab', name='History').click()
    history = wait_for(page, '#fv-history', 4)
    history.first.get_by_text('Make again').click()
    wait_for(page, '#fv-history', 5)
    history.first.get_by_text('Delete').click()
    history.first.get_by_text('Really?').click()
    page.wait_for_function('document.querySelectorAll("#fv-history article").length === 4')


def test_cancel_and_reload_while_a_job_runs(address, open_browser):
    page = open_browser(address)
    page.get_by_text('More settings').click()
    page.get_by_label('number input for Steps of the sampler').fill('100')
    make_previews(page, PROMPT, 4)  # so many that one is still queued after a reload that takes long
    running = cards(page, '#fv-previews', 'in_progress')
    running.wait_for(timeout=LONG)
    queued = cards(page, '#fv-previews', 'queued')
    queued.first.wait_for()
    page.reload()
    running.wait_for()
    queued.last.get_by_text('Cancel').click()
    cards(page, '#fv-previews', 'cancelled').wait_for()
    page.wait_for_function('Number(document.querySelector("#fv-previews progress").value) > 0', timeout=LONG)
    running.get_by_text('Cancel').click()
    wait_for(page, '#fv-previews', 2, 'cancelled')
    while left := cards(page, '#fv-previews', 'queued').count() + running.count():
        page.locator('#fv-previews article').get_by_text('Cancel').first.click()
        page.wait_for_function(
            'left => document.querySelectorAll("#fv-previews article:is([data-status=queued], '
            '[data-status=in_progress])").length < left',
            arg=left,
            timeout=LONG,
        )


def test_users_see_their_own_jobs(address, open_browser):
    one, other = open_browser(address), open_browser(address)
    make_previews(one, 'mine')
    name = wait_for(one, '#fv-previews', 1).get_attribute('data-id')
    other.wait_for_timeout(1000)
    assert other.locator('article').count() == 0
    for path in ('', '/content'):
        assert fetch(other, 'GET', f'/v1/videos/{name}{path}')[0] == 404
    assert fetch(other, 'DELETE', f'/v1/videos/{name}')[0] == 404
    assert fetch(one, 'GET', f'/v1/videos/{name}')[1]['prompt'] == 'mine'


def upload(page, path):
    page.get_by_role('tab', name='Clip or image').click()
    page.locator('#fv-upload input[type=file]').set_input_files(path)
    page.locator('#fv-upload').get_by_text(path.name[:3]).first.wait_for()
    page.locator('#fv-enhance-upload').click()


def test_clip_and_image_are_enhanced(address, open_browser, tmp_path):
    page = open_browser(address)
    frames = np.random.default_rng(0).integers(0, 255, (17, 64, 96, 3), np.uint8)
    encoding.encode(tmp_path / 'my clip (1).mp4', frames, 8.0)
    upload(page, tmp_path / 'my clip (1).mp4')
    card = wait_for(page, '#fv-clips', 1)
    assert card.locator('.fv-title').inner_text() == 'my clip (1).mp4'
    assert card.locator('.fv-note').inner_text().endswith('2 steps · from 96 x 64')
    _, made = fetch(page, 'GET', f'/v1/videos/{card.get_attribute("data-id")}/content?variant=metadata')
    assert made['fv_jax']['clip']['name'] == 'my clip (1).mp4'
    Image.fromarray(frames[0]).save(tmp_path / 'image.png')
    upload(page, tmp_path / 'image.png')
    stage = wait_for(page, '#fv-clips', 2).first.locator('.stage')
    page.wait_for_function('image => image.naturalWidth === 384', arg=stage.locator('img').last.element_handle())
    box = stage.bounding_box()
    page.mouse.click(box['x'] + box['width'] / 4, box['y'] + box['height'] / 2)
    split = stage.evaluate('stage => parseFloat(stage.style.getPropertyValue("--split"))')
    assert split == pytest.approx(25, abs=1), 'a click moves the boundary'


def test_upload_says_what_of_it_is_cropped(address, open_browser, tmp_path):
    page = open_browser(address)
    page.get_by_text('More settings').click()
    page.get_by_label('number input for Steps of the sampler').fill('100')
    make_previews(page, PROMPT)  # so that the upload waits, and needs no compilation
    running = cards(page, '#fv-previews', 'in_progress')
    running.wait_for(timeout=LONG)
    encoding.encode(tmp_path / 'clip.mp4', np.zeros((9, 34, 48, 3), np.uint8), 8.0)
    upload(page, tmp_path / 'clip.mp4')
    queued = cards(page, '#fv-clips', 'queued')
    assert 'from 48 x 34, cropped to its centre, 48 x 32' in queued.locator('.fv-note').inner_text()
    queued.get_by_text('Cancel').click()
    cards(page, '#fv-clips', 'cancelled').wait_for()
    page.get_by_role('tab', name='Text').click()
    running.get_by_text('Cancel').click()
    wait_for(page, '#fv-previews', 1, 'cancelled')


def test_wrong_and_large_uploads_are_refused(address, open_browser, tmp_path):
    page = open_browser(address)
    (tmp_path / 'text.mp4').write_text('no video')
    upload(page, tmp_path / 'text.mp4')
    problem = page.get_by_role('alert')
    problem.get_by_text('text.mp4: not a video that can be read').wait_for()
    page.reload()
    encoding.encode(tmp_path / 'long.mp4', np.zeros((41, 16, 16, 3), np.uint8), 8.0)
    upload(page, tmp_path / 'long.mp4')
    problem.get_by_text('has 41 frames; upload at most 40').wait_for()
    page.reload()
    (tmp_path / 'huge.mp4').write_bytes(bytes(2_000_000))
    page.get_by_role('tab', name='Clip or image').click()
    page.locator('#fv-upload input[type=file]').set_input_files(tmp_path / 'huge.mp4')
    page.get_by_text(re.compile('maximum allowed size|is larger than', re.IGNORECASE)).first.wait_for()
    assert page.locator('article').count() == 0


def test_no_file_outside_of_results_is_served(address, open_browser):
    page = open_browser(address)
    make_previews(page, 'a dog')
    name = wait_for(page, '#fv-previews', 1).get_attribute('data-id')
    cookie = '; '.join(f'{each["name"]}={each["value"]}' for each in page.context.cookies())
    folder = runs.ROOT
    for path in (
        '/v1/videos/..%2f..%2fjobs.sqlite3/content',
        f'/v1/videos/{name}%2f..%2f..%2fjobs.sqlite3/content',
        '/page/..%2fpage.py',
        '/page/%2e%2e/page.py',
        '/gradio_api/file=/etc/passwd',
        f'/gradio_api/file={folder}/README.md',
        '/gradio_api/file=jobs.sqlite3',
        '/gradio_api/file=../../etc/passwd',
        '/file=/etc/passwd',
    ):
        with pytest.raises(urllib.error.HTTPError) as raised:
            request = urllib.request.Request(address + path, headers={'Cookie': cookie})
            urllib.request.urlopen(request, timeout=10)
        assert raised.value.code in (400, 403, 404), path
        raised.value.close()


def test_password_is_asked_for(tmp_path, browser):
    (tmp_path / 'password').write_text('correct horse\n')
    with running(tmp_path / 'jobs', f'--password-file={tmp_path}/password') as (_, url):
        page = browser.new_context().new_page()
        page.goto(url)
        page.get_by_label('Password').fill('wrong')
        page.get_by_role('button').click()
        page.get_by_text('The password is wrong').wait_for()
        page.get_by_label('Password').fill('correct horse')
        page.get_by_role('button').click()
        page.locator('#fv-make').wait_for()
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(f'{url}/gradio_api/info', timeout=10)
        assert raised.value.code == 401
        assert 'no valid key' in json.load(raised.value)['error']['message']
        page.context.close()


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [390, 1280])
def test_page_fits_the_window_in_its_colours(address, open_browser, width, scheme):
    page = open_browser(address, width, scheme)
    make_previews(page, PROMPT)
    wait_for(page, '#fv-previews', 1)
    for tab in page.get_by_role('tab').all():
        tab.click()
        page.wait_for_timeout(200)
        assert page.evaluate('document.documentElement.scrollWidth') <= width
    corner = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert('RGB'))[5, 5]
    assert corner.min() > 230 if scheme == 'light' else corner.max() < 40
