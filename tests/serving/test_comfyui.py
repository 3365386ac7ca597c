"""The nodes for ComfyUI against a running server; `comfy_api` is replaced by the parts of it that they use."""

import asyncio
import enum
import importlib.util
import inspect
import shutil
import socket
import sys
import threading
import time
import types

import pytest
import uvicorn

from fv_jax.serving.http_api import create_app
from fv_jax.serving.job_server import JobServer
from fv_jax.serving.keys import Keys
from tests import runs
from tests.serving.fake_runner import FakeRunner

PASSWORD = 'correct horse'


class Interrupted(Exception):
    """What ComfyUI expects of a node that its user has interrupted."""


class Interrupt:
    """The flag that ComfyUI's button sets; the task of a node is not cancelled, but has to look."""

    def __init__(self):
        self.requested = False

    def throw_exception_if_processing_interrupted(self):
        if self.requested:
            self.requested = False
            raise Interrupted


def make_comfy_api(progress, interrupt):
    """The modules that the nodes import, with the parameters of those of ComfyUI.

    Args:
      progress: gets the values that nodes show.
      interrupt: the flag.
    """

    def custom(_):
        def make_input(id, *, tooltip=None):
            return id

        return types.SimpleNamespace(Input=make_input, Output=make_output)

    def make_output(*, display_name=None):
        return display_name

    def make_integer(id, *, tooltip=None, default=None, min=None, max=None, control_after_generate=None):
        assert min <= default <= max
        return id

    def make_string(id, *, tooltip=None, multiline=False, default=None):
        return id

    def make_schema(node_id, *, display_name, category, description, inputs, outputs):
        assert len({*inputs}) == len(inputs)
        return types.SimpleNamespace(node_id=node_id, inputs=inputs, outputs=outputs)

    class Container(enum.StrEnum):
        MP4 = 'mp4'

    class Video:
        def __init__(self, file):
            self.data = file.getvalue()

        def save_to(self, path, format):
            assert format is Container.MP4
            path.write(self.data)

    async def set_progress(value, max_value):
        progress(value)

    io = types.SimpleNamespace(
        Int=types.SimpleNamespace(Input=make_integer),
        String=types.SimpleNamespace(Input=make_string),
        Video=custom('VIDEO'),
        Custom=custom,
        Schema=make_schema,
        ComfyNode=object,
        Input=object,
        NodeOutput=lambda *found: found,
    )
    execution = types.SimpleNamespace(set_progress=set_progress)
    latest = types.ModuleType('comfy_api.latest')
    latest.io, latest.ComfyExtension = io, object
    latest.ComfyAPI = lambda: types.SimpleNamespace(execution=execution)
    latest.Input = types.SimpleNamespace(Video=Video)
    latest.InputImpl = types.SimpleNamespace(VideoFromFile=Video)
    latest.Types = types.SimpleNamespace(VideoContainer=Container)
    management = types.ModuleType('comfy.model_management')
    management.throw_exception_if_processing_interrupted = interrupt.throw_exception_if_processing_interrupted
    packages = {name: types.ModuleType(name) for name in ('comfy', 'comfy_api')}
    return packages | {module.__name__: module for module in (latest, management)}


@pytest.fixture
def nodes(tmp_path, monkeypatch):
    """The nodes by name, copied to another folder as users do, the values of progress that they show, and the flag."""
    shown, interrupt = [], Interrupt()
    for name, module in make_comfy_api(shown.append, interrupt).items():
        monkeypatch.setitem(sys.modules, name, module)
    folder = shutil.copytree(runs.ROOT / 'fv_jax' / 'serving' / 'comfyui', tmp_path / 'custom_nodes' / 'flashvideo')
    spec = importlib.util.spec_from_file_location('flashvideo_nodes', folder / '__init__.py')
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, 'flashvideo_nodes', module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys.modules['flashvideo_nodes.client'], 'POLL_SECONDS', 0.02)
    monkeypatch.setenv('FV_JAX_PASSWORD', PASSWORD)
    extension = asyncio.run(module.comfy_entrypoint())
    found = {node.define_schema().node_id: node for node in asyncio.run(extension.get_node_list())}
    return found, shown, interrupt


@pytest.fixture
def serve(tmp_path):
    """Starts a server with a runner; returns its address."""
    started = []

    def start(runner):
        server = JobServer(tmp_path / 'jobs', runner)
        app = create_app(server, Keys(server.store.read_secret('keys'), PASSWORD))
        listening = socket.create_server(('127.0.0.1', 0))
        http = uvicorn.Server(uvicorn.Config(app, log_level='error'))
        thread = threading.Thread(target=http.run, kwargs={'sockets': [listening]}, daemon=True)
        thread.start()
        started.append((http, thread))
        while not http.started:
            time.sleep(0.01)
        return f'http://127.0.0.1:{listening.getsockname()[1]}', server

    yield start
    for http, thread in started:
        http.should_exit = True
        thread.join(20)


def test_nodes_make_enhance_and_enhance_videos(nodes, serve):
    found, shown, _ = nodes
    address, _ = serve(FakeRunner(step_seconds=0.01))
    video, preview = asyncio.run(found['FlashVideoPreview'].execute('a dog', 3, 0, address))
    assert video.data == b"preview of 'a dog', seed 3" and shown[-1] == 100
    (enhanced,) = asyncio.run(found['FlashVideoEnhance'].execute(preview, 4, 2))
    assert enhanced.data == b"enhance of 'a dog', seed 4"
    (clip,) = asyncio.run(found['FlashVideoEnhanceVideo'].execute(enhanced, 5, 0, address))
    assert clip.data == b"clip of '', seed 5"


def test_errors_of_the_server_are_raised(nodes, serve, monkeypatch):
    found, _, _ = nodes
    preview = found['FlashVideoPreview']
    address, _ = serve(FakeRunner())
    for prompt, message in (('', 'is empty'), ('this fails', 'failed: the video has values that are not finite')):
        with pytest.raises(ValueError, match=message):
            asyncio.run(preview.execute(prompt, 0, 0, address))
    with pytest.raises(ValueError, match='does not answer'):
        asyncio.run(preview.execute('a dog', 0, 0, 'http://127.0.0.1:9'))
    monkeypatch.setenv('FV_JAX_PASSWORD', 'wrong')
    with pytest.raises(ValueError, match='the password is wrong'):
        asyncio.run(preview.execute('a dog', 0, 0, address))


def wait_until_cancelled(server, job):
    deadline = time.monotonic() + 10
    while server.store.find(job.user, job.id).status != 'cancelled':
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize('by', ['button', 'end'])
def test_interrupting_cancels_the_job(nodes, serve, by):
    """By the button, and where another node fails: ComfyUI then cancels the tasks that are left."""
    found, shown, interrupt = nodes
    address, server = serve(FakeRunner(step_seconds=0.02))

    async def interrupted():
        task = asyncio.create_task(found['FlashVideoPreview'].execute('a dog', 0, 100, address))
        while not shown:
            await asyncio.sleep(0.01)
        (job,) = server.store.list_active()
        if by == 'button':
            interrupt.requested = True
        else:
            task.cancel()
        with pytest.raises(Interrupted if by == 'button' else asyncio.CancelledError):
            await task
        return job

    wait_until_cancelled(server, asyncio.run(interrupted()))


def test_nodes_name_their_inputs(nodes):
    found, _, _ = nodes
    for node in found.values():
        names = inspect.signature(node.execute).parameters
        assert list(names) == node.define_schema().inputs
