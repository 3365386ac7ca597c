"""Copies the audio of a video file into another one, in time with its frames.

The first frame that is shown is at time 0 of the target. Packets are copied with their times moved by as much. What a
decoder needs before time 0 is copied too, a codec's priming included, and hidden by the edit list that FFmpeg writes
for negative times. Audio that an mp4 cannot hold is converted to AAC.
"""

import heapq
import itertools
import logging
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np

from fv_jax.core.files import atomic_write
from fv_jax.core.paths import StoragePath, as_path
from fv_jax.data.video import decoding
from fv_jax.data.video.containers import VideoFile, format_reason, open_container
from fv_jax.data.video.timing import Clock

log = logging.getLogger(__name__)

# Codecs (by the names of FFmpeg's decoders) that are copied. FFmpeg writes others too, which few players read.
_PCM = tuple(f'pcm_{kind}{order}' for kind in ('s16', 's24', 's32', 'f32') for order in ('le', 'be'))
_COPIED = ('aac', 'mp3', 'mp3float', 'ac3', 'eac3', 'opus', 'libopus', 'alac', 'flac', *_PCM)
_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
_AAC_LAYOUTS = {1: 'mono', 6: '5.1', 8: '7.1'}
_AAC_FRAME = 1024  # samples
_BITS_PER_CHANNEL = 96_000
# Seconds before the first frame of a video whose packets are copied: MP3 and Opus refer to earlier packets.
_PREROLL = Fraction(1, 4)
# Times that are off by less are rounded: the samples follow one another.
_ROUNDED = Fraction(4, 1000)


def can_copy(source: str | StoragePath) -> bool:
    """Returns whether a video has audio that `copy_audio` copies. Logs a line if it is converted or cannot be read.

    Raises ValueError if the video cannot be read.
    """
    with open_container(source) as file:
        if file.audio is None and file.container.streams.audio:
            log.info(f'note: {source}: no decoder for its audio; the output will be silent')
        if file.audio is not None and not _is_copied(file.audio):
            log.info(f'note: {source}: its audio ({file.audio.codec_context.name}) is converted to AAC for the mp4')
        return file.audio is not None


def copy_audio(source: str | StoragePath, target: str | StoragePath) -> bool:
    """Copies the audio stream of `source` into the mp4 `target`, in time with its frames, cut to their length.

    Args:
      source: the video whose first shown frame is the first frame of `target`.
      target: an mp4 without audio.

    Returns:
      Whether there was audio. `target` is untouched if not, and replaced atomically if so.

    Raises:
      ValueError: one of them cannot be read.
    """
    with open_container(source) as file, open_container(target) as video_file:
        if file.audio is None:
            return False
        start, end = decoding.start_time(source), _end_time(target)  # on different clocks
        with atomic_write(as_path(target)) as partial:
            try:
                with av.open(str(partial), 'w', format='mp4') as out:
                    if 'comment' in video_file.container.metadata:
                        out.metadata['comment'] = video_file.container.metadata['comment']
                    shown = out.add_stream_from_template(video_file.stream)
                    # The template sets hev1 for hvc1, which Apple's players show.
                    shown.codec_context.codec_tag = video_file.stream.codec_context.codec_tag
                    video = _packets(shown, video_file, video_file.stream)
                    copy_or_encode = _copy if _is_copied(file.audio) else _encode
                    audio = copy_or_encode(out, file, start, end)
                    for packet in heapq.merge(video, audio, key=lambda packet: packet.dts * packet.time_base):
                        out.mux(packet)
            except (av.FFmpegError, ValueError) as error:
                codec = file.audio.codec_context.name
                raise ValueError(f'{source}: its audio ({codec}) cannot be copied ({format_reason(error)})') from None
    return True


def _is_copied(stream: av.AudioStream) -> bool:
    return stream.codec_context.name in _COPIED


def _end_time(source: str | StoragePath) -> Fraction:
    with open_container(source) as file:
        packets = (packet for packet in file.container.demux(file.stream) if packet.size)
        return max((packet.pts + (packet.duration or 0)) * packet.time_base for packet in packets)


def _packets(output: av.stream.Stream, file: VideoFile, stream: av.stream.Stream) -> Iterator[av.Packet]:
    for packet in file.container.demux(stream):
        if packet.size and packet.pts is not None:
            packet.stream = output
            yield packet


def _copy(out: av.container.OutputContainer, file: VideoFile, start: Fraction, end: Fraction) -> Iterator[av.Packet]:
    """Returns the packets of the audio up to `end`, with their times counted from `start`."""
    output = out.add_stream_from_template(file.audio)

    def placed() -> Iterator[av.Packet]:
        clock = Clock(_ROUNDED)
        for packet in _packets(output, file, file.audio):
            unit = packet.time_base
            time = clock.follow(packet.pts * unit) - start
            length = (packet.duration or 0) * unit
            if time >= end:
                return
            if time + length > -_PREROLL:
                packet.pts = packet.dts = round(time / unit)
                packet.duration = round(min(length, end - time) / unit)
                yield packet

    return placed()


def _encode(out: av.container.OutputContainer, file: VideoFile, start: Fraction, end: Fraction) -> Iterator[av.Packet]:
    """Returns packets of AAC of the audio from `start` to `end`."""
    source = file.audio.codec_context
    rate = source.sample_rate if source.sample_rate in _AAC_RATES else 48000
    layout = _AAC_LAYOUTS.get(source.layout.nb_channels, 'stereo')
    output = out.add_stream('aac', rate=rate, layout=layout)
    output.bit_rate = _BITS_PER_CHANNEL * output.codec_context.layout.nb_channels

    def packets() -> Iterator[av.Packet]:
        count = 0
        for samples in _blocks(_samples(file, start, end, rate, layout), _AAC_FRAME):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format='fltp', layout=layout)
            frame.rate, frame.pts, frame.time_base = rate, count, Fraction(1, rate)
            count += samples.shape[1]
            yield from output.encode(frame)
        yield from output.encode()

    return packets()


def _samples(file: VideoFile, start: Fraction, end: Fraction, rate: int, layout: str) -> Iterator[np.ndarray]:
    """Decodes the audio from `start` to `end` to float32 (channels, samples) at `rate`; gaps are silent."""
    resampler = av.AudioResampler(format='fltp', layout=layout, rate=rate)
    clock, count, limit = Clock(_ROUNDED), 0, round(end * rate)
    for frame in itertools.chain(file.container.decode(file.audio), [None]):
        for piece in resampler.resample(frame):
            position = round((clock.follow(piece.pts * piece.time_base) - start) * rate)
            gap = position - count
            if count and abs(gap) < _ROUNDED * rate:
                gap = 0
            samples = np.pad(piece.to_ndarray(), ((0, 0), (max(gap, 0), 0)))
            samples = samples[:, max(-gap, 0) :][:, : limit - count]
            count += samples.shape[1]
            yield samples
            if count >= limit:
                return


def _blocks(arrays: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Yields the samples in blocks of `size`; the last one is what remains."""
    held = None
    for array in arrays:
        held = array if held is None else np.concatenate([held, array], axis=1)
        whole = held.shape[1] // size * size
        yield from np.split(held[:, :whole], whole // size, axis=1) if whole else ()
        held = held[:, whole:]
    if held is not None and held.shape[1]:
        yield held
