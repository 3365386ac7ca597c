"""Frames of all kinds of files keep their times, as in `test_times`."""

from pathlib import Path

import pytest

from tests.data.video import test_times


@pytest.mark.parametrize('name', test_times.MADE)
def test_variable_frame_rate(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    test_times.assert_times_are_kept(tmp_path, name, caplog)


@pytest.mark.parametrize('row', test_times.CONSTANT, ids=lambda row: f'{row[0]}-{row[1]}')
def test_constant_rates_are_kept(tmp_path: Path, row: tuple) -> None:
    test_times.assert_rate_is_kept(tmp_path, *row)
