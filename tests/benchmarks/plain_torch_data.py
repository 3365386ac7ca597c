"""What a practitioner writes in PyTorch for stage 2's data: a Dataset that decodes with PyAV and degrades with OpenCV,
and a DataLoader. It draws from the same ranges as `configs/degradations.py`, in the same order, step by step over whole
clips, with OpenCV's and NumPy's own functions.
"""

import io
import math
from fractions import Fraction

import av
import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

INTERPOLATIONS = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC)


class Clips(Dataset):
    """mp4 bytes -> (high, low), float32 (F, 3, H, W) in [-1, 1]. strong: the published ranges; None is weak alone."""

    def __init__(self, videos: list[bytes], strong: dict | None, length: int):
        self.videos, self.strong, self.length = videos, strong, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng(index)
        with av.open(io.BytesIO(self.videos[index % len(self.videos)])) as container:
            frames = [frame.to_ndarray(format='rgb24') for frame in container.decode(video=0)]
        if rng.random() < 0.5:
            frames = [np.ascontiguousarray(frame[:, ::-1]) for frame in frames]
        high = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
        if self.strong is not None and rng.random() < 0.5:
            return high, self._strong(frames, rng)
        return high, _weak(high, rng)

    def _strong(self, frames: list[np.ndarray], rng: np.random.Generator) -> torch.Tensor:
        size = frames[0].shape[:2]
        factor = rng.uniform(4, 8)
        target = [max(2 * round(side / factor / 2), 16) for side in size]
        images = [frame.astype(np.float32) for frame in frames]
        images = _codec(_round(images, self.strong['first'], rng), self.strong['video'], rng)
        images = _round(images, self.strong['second'], rng)
        interpolation = INTERPOLATIONS[rng.integers(3)]

        def shrink(images: list[np.ndarray]) -> list[np.ndarray]:
            images = [cv2.resize(image, target[::-1], interpolation=interpolation) for image in images]
            if rng.random() >= self.strong['sinc']['probability']:
                return images
            kernel = _sinc(rng.choice(np.arange(7, 22, 2)), rng.uniform(*self.strong['sinc']['omega']))
            return [cv2.filter2D(image, -1, kernel) for image in images]

        if rng.random() < 0.5:
            images = shrink(_codec(images, self.strong['video'], rng))
        else:
            images = _codec(shrink(images), self.strong['video'], rng)
        up = [cv2.resize(np.clip(image, 0, 255).round(), size[::-1]) for image in images]
        return torch.from_numpy(np.stack(up)).permute(0, 3, 1, 2) / 127.5 - 1


def _weak(high: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    size, factor = high.shape[-2:], rng.uniform(4, 8)
    small = [int(side / factor) for side in size]
    resize = torch.nn.functional.interpolate
    low = resize(high, size=small, mode='bilinear', antialias=True)
    return resize(low, size=size, mode='bilinear', antialias=True)


def _round(images: list[np.ndarray], ranges: dict, rng: np.random.Generator) -> list[np.ndarray]:
    blur, resize, noise = ranges['blur'], ranges['resize'], ranges['noise']
    if rng.random() < blur['probability']:
        kernel = _kernel(blur, rng)
        images = [cv2.filter2D(image, -1, kernel) for image in images]
    mode = rng.choice(3, p=resize['modes'])
    if mode < 2:
        scale = rng.uniform(1, resize['scale'][1]) if mode == 0 else rng.uniform(resize['scale'][0], 1)
        size = [max(2 * round(side * scale / 2), 16) for side in images[0].shape[:2]]
        interpolation = INTERPOLATIONS[rng.integers(3)]
        images = [cv2.resize(image, size[::-1], interpolation=interpolation) for image in images]
    grey, poisson = rng.random() < noise['grey'], rng.random() < noise['poisson']
    if poisson:
        scale = rng.uniform(*noise['poisson_scale'])
        images = [_poisson(image, scale, grey, rng) for image in images]
    else:
        sigma = rng.uniform(*noise['gaussian_sigma'])
        shapes = [(*image.shape[:2], 1 if grey else 3) for image in images]
        images = [
            np.clip(image + sigma * rng.standard_normal(shape, np.float32), 0, 255)
            for image, shape in zip(images, shapes, strict=True)
        ]
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(ranges['quality'][0], ranges['quality'][1] + 1))]
    return [_jpeg(image, quality) for image in images]


def _poisson(image: np.ndarray, scale: float, grey: bool, rng: np.random.Generator) -> np.ndarray:
    image = np.clip(image, 0, 255)
    mean = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None] if grey else image
    return np.clip(image + scale * (rng.poisson(mean) - mean), 0, 255).astype(np.float32)


def _jpeg(image: np.ndarray, quality: list[int]) -> np.ndarray:
    levels = np.clip(image, 0, 255).round().astype(np.uint8)
    data = cv2.imencode('.jpg', levels[..., ::-1], quality)[1]
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].astype(np.float32)


def _codec(images: list[np.ndarray], ranges: dict, rng: np.random.Generator) -> list[np.ndarray]:
    name = ('libx264', 'mpeg4')[rng.choice(2, p=ranges['codecs'])]
    height, width = images[0].shape[:2]
    buffer = io.BytesIO()
    with av.open(buffer, 'w', 'mp4') as container:
        stream = container.add_stream(name, rate=Fraction(24))
        stream.height, stream.width, stream.pix_fmt = height, width, 'yuv420p'
        stream.bit_rate = max(int(rng.uniform(*ranges['bits_per_pixel']) * height * width * 24), 1000)
        if name == 'libx264':
            stream.options = {'preset': 'veryfast', 'threads': '1'}
        for image in images:
            levels = np.ascontiguousarray(np.clip(image, 0, 255).round().astype(np.uint8))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(levels, format='rgb24')))
        container.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer) as container:
        return [frame.to_ndarray(format='rgb24').astype(np.float32) for frame in container.decode(video=0)]


def _kernel(blur: dict, rng: np.random.Generator) -> np.ndarray:
    size, shape = (
        int(rng.choice(np.arange(7, 22, 2))),
        rng.choice(7, p=np.asarray(blur['shapes']) / sum(blur['shapes'])),
    )
    if shape == 6:
        return _sinc(size, rng.uniform(math.pi / (3 if size < 13 else 5), math.pi))
    sigma = np.full(2, rng.uniform(*blur['sigma']))
    angle = 0.0
    if shape % 2:
        sigma[1], angle = rng.uniform(*blur['sigma']), rng.uniform(-math.pi, math.pi)
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    inverse = np.linalg.inv(rotation @ np.diag(sigma**2) @ rotation.T)
    half = size // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    points = np.stack([x, y], axis=-1)
    m = np.einsum('hwi,ij,hwj->hw', points, inverse, points)
    if shape < 2:
        kernel = np.exp(-m / 2)
    elif shape < 4:
        kernel = np.exp(-(m ** rng.uniform(*blur['generalized_beta'])) / 2)
    else:
        kernel = 1 / (1 + m ** rng.uniform(*blur['plateau_beta']))
    return (kernel / kernel.sum()).astype(np.float32)


def _sinc(size: int, omega: float) -> np.ndarray:
    half = size // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    radius = np.hypot(x, y)
    bessel = torch.special.bessel_j1(torch.from_numpy(omega * radius)).numpy()
    kernel = np.where(radius > 0, omega * bessel / np.maximum(2 * np.pi * radius, 1e-9), omega**2 / (4 * np.pi))
    return (kernel / kernel.sum()).astype(np.float32)


def loader(videos: list[bytes], strong: dict | None, *, length: int, workers: int) -> DataLoader:
    """Batches of one clip, in order."""
    return DataLoader(Clips(videos, strong, length), batch_size=1, num_workers=workers)
