"""Copies the audio of a video file into another one."""

import av

from fv_jax.core.files import atomic_write
from fv_jax.core.paths import StoragePath, as_path
from fv_jax.data.video.containers import format_reason, open_container


def copy_audio(source: str | StoragePath, target: str | StoragePath) -> bool:
    """Copies the audio stream of `source` into the mp4 `target`, cut to the length of its video.

    Returns:
      Whether there was audio. `target` is untouched if not, and replaced atomically if so.

    Raises:
      ValueError: one of them cannot be read, or the audio's format cannot be stored in an mp4.
    """
    with open_container(source) as (audio_in, _), open_container(target) as (video_in, video):
        if not audio_in.streams.audio:
            return False
        audio = audio_in.streams.audio[0]
        with atomic_write(as_path(target)) as partial:
            try:
                with av.open(str(partial), 'w', format='mp4') as out:
                    _remux(out, video_in, video, audio_in, audio)
            except (av.FFmpegError, ValueError) as error:
                codec = audio.codec_context.name
                raise ValueError(
                    f'{source}: its audio ({codec}) cannot be stored in an mp4 ({format_reason(error)})'
                ) from None
    return True


def _remux(out, video_in, video, audio_in, audio) -> None:
    out_video, out_audio = out.add_stream_from_template(video), out.add_stream_from_template(audio)
    if 'comment' in video_in.metadata:
        out.metadata['comment'] = video_in.metadata['comment']
    end = 0.0
    for packet in video_in.demux(video):
        if packet.dts is None:
            continue
        end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        packet.stream = out_video
        out.mux(packet)
    # Both start at 0 here, without the offsets of the source's container.
    start = None
    for packet in audio_in.demux(audio):
        if packet.dts is None:
            continue
        start = packet.pts if start is None else start
        packet.pts, packet.dts = packet.pts - start, packet.dts - start
        if packet.pts * packet.time_base >= end:
            break
        packet.stream = out_audio
        out.mux(packet)
