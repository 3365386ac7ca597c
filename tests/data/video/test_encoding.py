import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fv_jax.data.video import encoding
from tests import runs
from tests.data import sample_videos


def test_encode_refuses_invalid_frames() -> None:
    with pytest.raises(ValueError, match=r'cannot encode 33x48: .* even height and width; crop to 32x48'):
        encoding.encode_bytes(np.zeros((1, 33, 48, 3), np.uint8), 24)
    with pytest.raises(ValueError, match='no frames'):
        encoding.encode_bytes([], 24)
    with pytest.raises(ValueError, match='expected uint8'):
        encoding.encode_bytes(np.zeros((1, 32, 48, 3), np.float32), 24)
    with pytest.raises(ValueError, match='fps=0'):
        encoding.encode_bytes(np.zeros((1, 32, 48, 3), np.uint8), 0)
    with pytest.raises(ValueError, match='frame 1 is 32x32, the first 32x48'):
        encoding.encode_bytes([np.zeros((32, 48, 3), np.uint8), np.zeros((32, 32, 3), np.uint8)], 24)


# What `malloc` returns is filled with a byte by MALLOC_PERTURB_, where the C library is glibc.
ENCODE = """
import hashlib
import numpy as np
from fv_jax.data.video import encoding
from tests.data import sample_videos
noise = np.random.default_rng(0).integers(-10, 10, (256, 480, 3))
clip = np.clip(sample_videos.pattern(17, 256, 480) + noise, 0, 255).astype(np.uint8)
data = encoding.encode_bytes(clip, 24, reproducible=True)
print(hashlib.sha256(data).hexdigest())
"""


def test_reproducible_encode_depends_on_no_uninitialized_memory() -> None:
    def encode(byte: int) -> str:
        environment = os.environ | {'MALLOC_PERTURB_': str(byte), 'PYTHONPATH': str(runs.ROOT)}
        command = [sys.executable, '-c', ENCODE]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert encode(85) == encode(170)


def test_interrupted_encode_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / 'a.mp4'
    encoding.encode(path, sample_videos.pattern(2), 24)
    before = path.read_bytes()

    def frames():
        yield from sample_videos.pattern(100)  # more than the encoder holds back, so that the file has been begun
        assert len(list(tmp_path.iterdir())) == 2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoding.encode(path, frames(), 24)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
