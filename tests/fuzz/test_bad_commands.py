"""The short form of the fuzzing command."""

import itertools

import numpy as np
import pytest

from tests.fuzz import bad_commands, world
from tests.fuzz.mistakes import Mistake, draw

LINES = 400


def test_random_usage_errors_are_one_line_that_names_the_field(tmp_path):
    world.make_programs(tmp_path)
    mistakes = draw(tmp_path, np.random.default_rng(1), parsed_only=True)
    found, wrong = bad_commands.check_in_this_process(tmp_path, itertools.islice(mistakes, LINES))
    assert not wrong and len(found) == LINES
    assert {mistake.command for mistake, _ in found} == set(bad_commands.COMMANDS)


def test_valid_commands_are_not_counted_as_errors():
    degrade = Mistake('degrade', ('--input=x.mp4', '--output=x.png', '--help'), ())
    with bad_commands.stop_before_work(), pytest.raises(AssertionError, match='raised'):
        bad_commands.run_in_this_process(degrade)
