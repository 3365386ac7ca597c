"""The short form of the fuzzing command."""

import itertools

import numpy as np
import pytest

from tests.fuzz import bad_commands, world
from tests.fuzz.mistakes import Mistake, draw

LINES = 400


def test_made_up_mistakes_are_one_line_that_names_the_field(tmp_path):
    world.make_programs(tmp_path)
    mistakes = draw(tmp_path, np.random.default_rng(1), parsed_only=True)
    found, wrong = bad_commands.in_one_process(tmp_path, itertools.islice(mistakes, LINES))
    assert not wrong and len(found) == LINES
    assert {mistake.command for mistake, _ in found} == set(bad_commands.COMMANDS)


def test_a_line_that_is_right_is_told_from_a_mistake():
    degrade = Mistake('degrade', ('--input=x.mp4', '--output=x.png', '--help'), ())
    with bad_commands.nothing_begins(), pytest.raises(AssertionError, match='raised'):
        bad_commands.here(degrade)
