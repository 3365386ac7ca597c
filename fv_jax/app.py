"""Serves previews and videos: a page in the browser and an HTTP interface: `python -m fv_jax.app`.

    python -m fv_jax.app                              http://127.0.0.1:7860, with the small weights in the package
    python -m fv_jax.app --official FILES             with the official weights
    python -m fv_jax.app --host 0.0.0.0 --password-file FILE      for other machines

Jobs, uploads and results are kept in `--folder`; the same command continues the queue after an end of any kind. One
process works on a folder, and one job runs at a time, on all devices. Every browser, and every key of the HTTP
interface (`fv_jax/serving/http_api.py`), has jobs of its own.

Weights are named as in `sample`; `--stage1.FIELD=VALUE` and `--stage2.FIELD=VALUE` set the defaults of the jobs.

Exit codes: 0 success; 1 failure; 2 wrong usage; 130 and 143 ended by Ctrl-C and SIGTERM.
"""

import argparse
import importlib.util
import ipaddress
import os
import socket
import sys
from collections.abc import Sequence

from fv_jax import api
from fv_jax.checkpoints.errors import CheckpointError
from fv_jax.core import exit_codes, files, paths
from fv_jax.core.checks import error_context, require
from fv_jax.core.command_line import Parser, UsageError, override_settings, path_flag
from fv_jax.core.commands import run_command
from fv_jax.core.console import print_result
from fv_jax.core.devices import check_devices
from fv_jax.sampling.parallel_flags import HELP, PARALLEL, name_flags, read_parallel
from fv_jax.sampling.weights_flags import add_weights_flags, read_origin
from fv_jax.serving.requests import Limits

PROG = 'python -m fv_jax.app'
PASSWORD = 'FV_JAX_PASSWORD'
_PACKAGES = ('fastapi', 'uvicorn', 'multipart')
_MB = 10**6


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments (without the program's name) and returns its exit code."""
    errors = {CheckpointError: exit_codes.USAGE}
    return run_command('app', _app, argv, errors=errors, left='; the queue is kept, and continues at the next start')


def _app(argv: Sequence[str]) -> int:
    arguments, overrides = _parser().parse_with_overrides(argv, ('config', *api.STAGES, PARALLEL))
    if found := overrides.pop('config'):
        raise UsageError(f'--config.{found[0][0]}: a checkpoint carries its config, which cannot be changed here')
    needed = (*_PACKAGES, *(() if arguments.api_only else ('gradio',)))
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    require(not missing, f"needs {', '.join(missing)}; install them: pip install 'fv_jax[app]'", UsageError)
    password, limits = _read_password(arguments), _read_limits(arguments)
    check_devices()
    with name_flags():
        pipeline = api.FlashVideo.from_origin(read_origin(arguments), parallel=read_parallel(overrides.pop(PARALLEL)))
    pipeline.preview_settings, pipeline.enhance_settings = (
        override_settings(settings, stage, overrides[stage])
        for stage, settings in zip(api.STAGES, (pipeline.preview_settings, pipeline.enhance_settings), strict=True)
    )
    if pipeline.preview_stage is not None and pipeline.enhancement_stage is not None:
        pipeline.check(pipeline.preview_settings, pipeline.enhance_settings)
    _serve(arguments, pipeline, limits, password)
    return 0


def _parser() -> Parser:
    groups = *api.STAGES, PARALLEL
    settings = f'Settings: {", ".join(f"--{group}.FIELD=VALUE" for group in groups)}.'
    parser = Parser(PROG, f'Serves previews and videos: a page and an HTTP interface. {HELP}', settings)
    add = parser.add_argument
    add('--folder', type=path_flag, default='fv_jax_jobs', help='of jobs, uploads, results (default: %(default)s)')
    add('--host', default='127.0.0.1', help='the address to listen on; others than this machine need a password')
    add('--port', type=int, default=7860, help='0 chooses a free one (default: %(default)s)')
    add('--password-file', type=path_flag, help=f'its first line is the password (default: ${PASSWORD}, or none)')
    add('--https', action='store_true', help='behind a proxy that speaks HTTPS: cookies are sent over it alone')
    add('--api-only', action='store_true', help='without the page')
    default = Limits()
    upload_mb = default.upload_bytes // _MB
    add('--max-upload-mb', type=int, default=upload_mb, help='of an uploaded file (default: %(default)s)')
    add('--max-clip-frames', type=int, default=default.clip_frames, help='of an upload (default: %(default)s)')
    pixels = 'of a frame of an enhanced upload (default: those of an enhanced preview)'
    add('--max-result-pixels', type=int, help=pixels)
    jobs = 'queued or in progress, of one user (default: %(default)s)'
    add('--max-waiting-jobs', type=int, default=default.waiting_jobs, help=jobs)
    add_weights_flags(parser)
    return parser


def _read_limits(arguments: argparse.Namespace) -> Limits:
    names = ('max_upload_mb', 'max_clip_frames', 'max_result_pixels', 'max_waiting_jobs')
    for name in names:
        value = getattr(arguments, name)
        require(value is None or value >= 1, f'--{name.replace("_", "-")}={value}: must be at least 1', UsageError)
    return Limits(
        upload_bytes=arguments.max_upload_mb * _MB,
        clip_frames=arguments.max_clip_frames,
        result_pixels=arguments.max_result_pixels,
        waiting_jobs=arguments.max_waiting_jobs,
    )


def _read_password(arguments: argparse.Namespace) -> str | None:
    """Returns the password, if there is one. Raises UsageError where one is needed, or is too short."""
    from fv_jax.serving.keys import Keys

    if arguments.password_file:
        with error_context('--password-file=', OSError, UsageError):
            password = files.read_text(arguments.password_file).partition('\n')[0].strip()
    else:
        password = os.environ.get(PASSWORD)
    if password is not None:
        with error_context(f'--password-file, ${PASSWORD}: ', error=UsageError):
            Keys(b'', password)
    needs = f'--host={arguments.host}: other machines can reach it; give a password with --password-file'
    require(password is not None or _is_loopback(arguments.host), needs, UsageError)
    return password


def _is_loopback(host: str) -> bool:
    try:
        return host == 'localhost' or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _serve(arguments: argparse.Namespace, pipeline: api.FlashVideo, limits: Limits, password: str | None) -> None:
    """Serves until a signal ends it. Raises ValueError, OSError."""
    import uvicorn

    from fv_jax.serving.http_api import create_app
    from fv_jax.serving.job_server import JobServer
    from fv_jax.serving.keys import Keys
    from fv_jax.serving.pipeline_runner import PipelineRunner

    host, port, folder = arguments.host, arguments.port, paths.absolute(paths.as_path(str(arguments.folder)))
    with error_context(f'--host={host} --port={port}: ', OSError, OSError):
        listening = socket.create_server((host, port))
    server = JobServer(folder, PipelineRunner(pipeline, limits), limits)
    keys = Keys(server.store.read_secret('keys'), password)
    hosts = [host, '127.0.0.1', 'localhost'] if _is_loopback(host) else None
    app = create_app(server, keys, allowed_hosts=hosts, secure=arguments.https)
    if not arguments.api_only:
        from fv_jax.serving.page import add_page

        app = add_page(app, server, keys, secure=arguments.https)
    shown = f'http://{host}:{listening.getsockname()[1]}'
    print_result(f'{shown}, jobs in {folder}; Ctrl-C ends the server')
    config = uvicorn.Config(app, log_level='warning', access_log=False, timeout_graceful_shutdown=5)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == '__main__':
    sys.exit(main())
