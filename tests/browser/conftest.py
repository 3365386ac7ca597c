"""Headless Chromium without a network: skipped where it is missing, and `launch/check_services.sh` fails there."""

import shutil
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture(scope='session')
def browser() -> Iterator:
    """A running Chromium."""
    sync_api = pytest.importorskip('playwright.sync_api', reason='needs the extra services')
    chromium = shutil.which('chromium-headless-shell')
    if chromium is None:
        pytest.skip('needs chromium-headless-shell')
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=['--no-sandbox'])
        yield started
        started.close()


@pytest.fixture
def open_page(browser) -> Iterator[Callable]:
    """Opens a file in a window of a size and colour scheme; at the end, nothing may have failed on any page."""
    contexts, problems = [], []

    def open_file(path, width=1280, scheme='light'):
        context = browser.new_context(viewport={'width': width, 'height': 900}, color_scheme=scheme, offline=True)
        contexts.append(context)
        page = context.new_page()
        allowed = path.as_uri()
        page.on('console', lambda message: problems.append(f'{message.type}: {message.text}'))
        page.on('pageerror', lambda error: problems.append(f'error: {error}'))
        page.on('requestfailed', lambda request: problems.append(f'failed: {request.url[:80]}'))
        page.on(
            'request',
            lambda request: (
                None
                if request.url.startswith((allowed, 'data:', 'blob:'))
                else problems.append(f'request: {request.url[:80]}')
            ),
        )
        page.goto(allowed)
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert not problems, problems
