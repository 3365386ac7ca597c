"""Nodes for ComfyUI: previews and videos of a job server. The folder is copied to `custom_nodes`, and needs no fv_jax.

The nodes are clients of the HTTP interface, so that PyTorch and JAX never share a process. The address of the server
is an input; the password, if it has one, is read from the environment variable FV_JAX_PASSWORD.
"""

import io as bytes_io
import os

from comfy.model_management import throw_exception_if_processing_interrupted
from comfy_api.latest import ComfyAPI, ComfyExtension, Input, InputImpl, Types, io

from .client import Client

_ADDRESS = 'http://127.0.0.1:7860'
_CATEGORY = 'FlashVideo'
_MAX_SEED = 2**32 - 1
_Preview = io.Custom('FLASHVIDEO_PREVIEW')  # the address of a server, the key of its user, the id of a job


def _address() -> io.Input:
    return io.String.Input('address', default=_ADDRESS, tooltip='Of the server: python -m fv_jax.app')


def _seed() -> io.Input:
    return io.Int.Input('seed', default=0, min=0, max=_MAX_SEED, control_after_generate=True)


def _steps() -> io.Input:
    return io.Int.Input('steps', default=0, min=0, max=100, tooltip='Of the sampler; 0 is the default of the weights')


async def _show_progress(percent: int) -> None:
    """Shows the progress of a node. Raises what ComfyUI expects of a node that its user has interrupted."""
    throw_exception_if_processing_interrupted()  # ComfyUI does not cancel the task of a node
    await ComfyAPI().execution.set_progress(value=percent, max_value=100)


def _client(address: str, key: str | None = None) -> Client:
    return Client(address, os.environ.get('FV_JAX_PASSWORD'), key, _show_progress)


class FlashVideoPreview(io.ComfyNode):
    """Text to a low-resolution preview."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id='FlashVideoPreview',
            display_name='FlashVideo preview',
            category=_CATEGORY,
            description='Makes a low-resolution preview of a prompt on a job server.',
            inputs=[io.String.Input('prompt', multiline=True), _seed(), _steps(), _address()],
            outputs=[io.Video.Output(display_name='video'), _Preview.Output(display_name='preview')],
        )

    @classmethod
    async def execute(cls, prompt: str, seed: int, steps: int, address: str) -> io.NodeOutput:
        async with _client(address) as client:
            job = await client.create_preview(prompt, seed, steps)
            data = await client.download(job)
            return io.NodeOutput(_video(data), (address, client.key, job))


class FlashVideoEnhance(io.ComfyNode):
    """A preview to a high-resolution video, from its latents."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id='FlashVideoEnhance',
            display_name='FlashVideo enhance',
            category=_CATEGORY,
            description='Enhances a preview, from its latents, on the server that made it.',
            inputs=[_Preview.Input('preview'), _seed(), _steps()],
            outputs=[io.Video.Output(display_name='video')],
        )

    @classmethod
    async def execute(cls, preview: tuple[str, str, str], seed: int, steps: int) -> io.NodeOutput:
        address, key, identifier = preview
        async with _client(address, key) as client:
            job = await client.enhance(identifier, seed, steps)
            return io.NodeOutput(_video(await client.download(job)))


class FlashVideoEnhanceVideo(io.ComfyNode):
    """Any video to a larger one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id='FlashVideoEnhanceVideo',
            display_name='FlashVideo enhance video',
            category=_CATEGORY,
            description='Enhances a video on a job server.',
            inputs=[io.Video.Input('video'), _seed(), _steps(), _address()],
            outputs=[io.Video.Output(display_name='video')],
        )

    @classmethod
    async def execute(cls, video: Input.Video, seed: int, steps: int, address: str) -> io.NodeOutput:
        file = bytes_io.BytesIO()
        video.save_to(file, format=Types.VideoContainer.MP4)  # a string is not enough for a buffer in all releases
        async with _client(address) as client:
            job = await client.enhance_video(file.getvalue(), seed, steps)
            return io.NodeOutput(_video(await client.download(job)))


def _video(data: bytes) -> Input.Video:
    return InputImpl.VideoFromFile(bytes_io.BytesIO(data))


class FlashVideoExtension(ComfyExtension):
    """The nodes of this folder."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [FlashVideoPreview, FlashVideoEnhance, FlashVideoEnhanceVideo]


async def comfy_entrypoint() -> ComfyExtension:
    """Returns the extension; ComfyUI calls it."""
    return FlashVideoExtension()
