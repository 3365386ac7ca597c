"""Runs the code blocks of the guides below README.md: a part of launch/check_long.sh."""

from pathlib import Path

import pytest

from tests.docs.guides import guides
from tests.docs.test_blocks import blocks_that_run, name, run_blocks


@pytest.mark.parametrize('guide', [guide for guide in guides()[1:] if blocks_that_run(guide)], ids=name)
def test_blocks_run(guide: Path, tmp_path: Path) -> None:
    run_blocks(guide, tmp_path)
