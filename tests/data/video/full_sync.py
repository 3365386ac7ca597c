"""Sound of all kinds is in time with the first frame that is shown, as in `test_sync`."""

from pathlib import Path

import pytest

from tests.data.video import test_sync


@pytest.mark.parametrize('kind', test_sync.KINDS, ids='-'.join)
@pytest.mark.parametrize('offset', test_sync.OFFSETS)
def test_beep_is_on_the_flash(tmp_path: Path, kind: tuple[str, ...], offset: float, log_lines: list[str]) -> None:
    test_sync.assert_beep_is_on_the_flash(tmp_path, kind, offset, log_lines)


@pytest.mark.parametrize('codec', ['aac', 'libmp3lame', 'ac3', 'libopus', 'pcm_s16le'])
@pytest.mark.parametrize('first', [0.5, 0.7])
def test_lossless_trim(tmp_path: Path, codec: str, first: float) -> None:
    test_sync.assert_trim_is_in_sync(tmp_path, codec, first)
