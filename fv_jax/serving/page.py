"""The page, made with Gradio: forms of new jobs. What it shows of jobs, `static/jobs.js` reads from the HTTP interface.

Results are never files of Gradio: the browser loads them from `/v1/videos`, which knows whose they are. Gradio keeps
uploads alone, until their job is created.
"""

import html
import importlib.resources
import os
from typing import Any

import gradio
from fastapi import FastAPI
from fastapi.responses import Response

from fv_jax.core import files
from fv_jax.core.checks import require
from fv_jax.core.command_line import format_error
from fv_jax.core.paths import as_path
from fv_jax.data.images import IMAGE_SUFFIXES
from fv_jax.data.video.containers import VIDEO_SUFFIXES
from fv_jax.sampling.prompts import MAX_SEED
from fv_jax.serving.http_api import STATUS
from fv_jax.serving.job_server import JobServer
from fv_jax.serving.job_view import format_size, parse_size
from fv_jax.serving.keys import Keys
from fv_jax.serving.login import add_login

MAX_PREVIEWS = 8  # of one click
_STATIC = {  # name -> package, path in it, media type
    'comparison.js': ('fv_jax.core.report', 'comparison.js', 'text/javascript'),
    'comparison.css': ('fv_jax.core.report', 'comparison.css', 'text/css'),
    'job_text.js': ('fv_jax.serving', 'static/job_text.js', 'text/javascript'),
    'job_comparison.js': ('fv_jax.serving', 'static/job_comparison.js', 'text/javascript'),
    'jobs.js': ('fv_jax.serving', 'static/jobs.js', 'text/javascript'),
    'jobs.css': ('fv_jax.serving', 'static/jobs.css', 'text/css'),
}
_FONTS = ('system-ui', '-apple-system', 'Segoe UI', 'Liberation Sans', 'sans-serif')  # none is downloaded
_UPLOAD_SECONDS = 3600  # after which Gradio removes an upload that no job was made of
_ADDING = "() => window.dispatchEvent(new Event('fv-adding'))"
_REFRESH = "() => window.dispatchEvent(new Event('fv-refresh'))"
ERRORS = tuple(STATUS)
_QUIETLY = {'queue': False, 'show_progress': 'hidden', 'api_visibility': 'private'}


def add_page(app: FastAPI, server: JobServer, keys: Keys, *, secure: bool = False) -> FastAPI:
    """Returns the application with the page at `/`, and the page that asks for the password if there is one.

    Args:
      app: of the HTTP interface.
      server, keys, secure: as in `http_api.create_app`.
    """
    if keys.needs_password:
        add_login(app, keys, secure=secure)

    @app.get('/page/{name}')
    def static(name: str) -> Response:
        if name not in _STATIC:
            return Response(status_code=404)
        package, path, media = _STATIC[name]
        text = importlib.resources.files(package).joinpath(path).read_text(encoding='utf-8')
        return Response(text, media_type=media, headers={'Cache-Control': 'no-cache'})

    folder = server.folder / 'gradio'
    os.environ['GRADIO_TEMP_DIR'] = str(folder)  # Gradio has no argument for it
    head = ''.join(f'<script defer src="/page/{name}"></script>' for name in _STATIC if name.endswith('.js'))
    head += ''.join(f'<link rel="stylesheet" href="/page/{name}">' for name in _STATIC if name.endswith('.css'))
    theme = gradio.themes.Default(font=_FONTS, font_mono=('ui-monospace', 'monospace'), radius_size='sm')
    return gradio.mount_gradio_app(
        app,
        build_page(server),
        path='/',
        theme=theme,
        head=head,
        footer_links=[],
        run_history=False,
        blocked_paths=[str(server.folder / 'jobs.sqlite3'), str(server.folder / 'results')],
        max_file_size=server.limits.upload_bytes,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
    )


def build_page(server: JobServer) -> gradio.Blocks:
    """Returns the page of a server."""
    kinds = server.describe()
    with gradio.Blocks(title='fv_jax', analytics_enabled=False, delete_cache=(600, _UPLOAD_SECONDS)) as page:
        gradio.HTML(
            '<h1>fv_jax</h1><p>Text to video in two stages: make small previews, which are quick, then enhance those '
            'you like.</p>'
        )
        with gradio.Tabs():
            if 'preview' in kinds:
                with gradio.Tab('Text', render_children=True):
                    _build_previews(server, kinds['preview'])
            if 'clip' in kinds:
                with gradio.Tab('Clip or image', render_children=True):
                    _build_clips(server, kinds['clip'])
            with gradio.Tab('History', render_children=True):
                gradio.HTML('<div id="fv-history"></div>')
    return page


def _build_previews(server: JobServer, settings: dict[str, Any]) -> None:
    most = server.limits
    if 'note' in settings:
        gradio.HTML(f'<p class="fv-note">{html.escape(settings["note"])}</p>')
    prompt = gradio.Textbox(
        label='Prompt',
        placeholder='a ladybug moves from left to right over a beach',
        lines=2,
        max_length=most.prompt_characters,
        elem_id='fv-prompt',
    )
    with gradio.Row():
        count = gradio.Slider(1, MAX_PREVIEWS, 4, step=1, label='Number of previews', min_width=260, elem_id='fv-count')
        seed = gradio.Number(
            0,
            label='First seed',
            info='Each further preview has the next seed',
            precision=0,
            minimum=0,
            maximum=MAX_SEED,
            min_width=260,
            elem_id='fv-seed',
        )
    with gradio.Accordion('More settings', open=False), gradio.Row():
        steps = gradio.Slider(1, most.num_steps, settings['num_steps'], step=1, label='Steps of the sampler')
        size = gradio.Textbox(format_size(settings['size']), label='Size', info='width x height in pixels')
    with gradio.Row(elem_classes='fv-submit'):
        make = gradio.Button('Make previews', variant='primary', elem_id='fv-make', scale=0, min_width=180)
        gradio.HTML('<p id="fv-cost" class="fv-note" aria-live="polite"></p>')
    problem = gradio.HTML()
    gradio.HTML('<div id="fv-previews"></div>')
    gradio.HTML('<div id="fv-enhanced"></div>')

    def create(prompt: str, count: int, seed: int, steps: int, size: str, request: gradio.Request) -> str:
        user = request.request.state.user
        try:
            chosen = parse_size(size.strip().replace(' ', ''))
            for i in range(int(count)):
                server.create_preview(user, prompt, int(seed or 0) + i, chosen, num_steps=int(steps))
        except ERRORS as error:
            return _format_problem(error)
        return ''

    for event in (make.click, prompt.submit):
        event(None, None, None, js=_ADDING)
        event(create, [prompt, count, seed, steps, size], problem, **_QUIETLY).then(None, None, None, js=_REFRESH)


def _build_clips(server: JobServer, settings: dict[str, Any]) -> None:
    limits, scale = server.limits, settings['scale']
    shown = f'{files.format_bytes(limits.upload_bytes)}, {limits.clip_frames} frames'
    gradio.Markdown(
        f'A video or an image, at most {shown}. It is enlarged {scale:g} times, or less: to at most '
        f'{settings["pixels"]:,} pixels a frame. A few pixels at its edges may be cropped, as its card then says.'
    )
    known = [*VIDEO_SUFFIXES, *IMAGE_SUFFIXES]
    upload = gradio.File(label='Clip or image', file_types=known, height=160, elem_id='fv-upload')
    with gradio.Row():
        seed = gradio.Number(0, label='Seed', precision=0, minimum=0, maximum=MAX_SEED, min_width=160)
        steps = gradio.Slider(1, limits.num_steps, settings['num_steps'], step=1, label='Steps of the sampler')
    with gradio.Row(elem_classes='fv-submit'):
        make = gradio.Button('Enhance it', variant='primary', elem_id='fv-enhance-upload', scale=0, min_width=180)
    problem = gradio.HTML()
    gradio.HTML('<div id="fv-clips"></div>')

    def create(path: str | None, seed: int, steps: int, request: gradio.Request) -> tuple[str, Any]:
        user = request.request.state.user
        try:
            require(path is not None, 'choose a video or an image first')
            with (uploaded := as_path(path)).open('rb') as file:
                server.create_clip(user, uploaded.name, file, int(seed or 0), num_steps=int(steps))
        except ERRORS as error:
            return _format_problem(error), gradio.skip()
        return '', None

    done = make.click(create, [upload, seed, steps], [problem, upload], **_QUIETLY)
    done.then(None, None, None, js=_REFRESH)


def _format_problem(error: Exception) -> str:
    """Returns the HTML that shows an error which a user can mend, below the form."""
    return f'<p class="fv-form-problem" role="alert">{html.escape(format_error(error))}</p>'
