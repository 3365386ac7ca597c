"""The short form of the fuzzing command."""

import re
from pathlib import Path

from tests.fuzz import damaged_files


def test_damaged_shards_are_errors(tmp_path: Path) -> None:
    output = damaged_files.fuzz_shards(tmp_path, 40, seed=1)
    unopened, lost = (int(number) for number in re.findall(r'\d+', output)[1:])
    assert unopened > 3 and lost > 3, output


def test_damaged_videos_are_errors(tmp_path: Path) -> None:
    output = damaged_files.fuzz_videos(tmp_path, 12, seed=1)
    skipped, parts, used = (int(number) for number in re.findall(r'\d+', output)[1:])
    assert skipped + parts > 3 and skipped + parts + used == 12, output
