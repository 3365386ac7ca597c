"""Prompts and seeds: what is taken, and one clear line for what is not."""

import numpy as np
import pytest

from fv_jax.sampling.prompts import check_prompt, check_prompts, check_seeds, quote_prompt, read_prompts


def test_prompts_are_stripped_and_kept():
    for text in ('a dog', 'سلحفاة تسبح في البحر', '🐞 moves over a 🏖️', 'x' * 10_000, 'two\nlines'):
        assert check_prompt(f' {text}\n') == text
    assert check_prompts(['a', ' b ']) == ['a', 'b']


@pytest.mark.parametrize(
    ('prompt', 'words'),
    [
        ('', "prompt='': is empty"),
        (' \n', 'is empty; describe what the video shows'),
        (7, 'prompt=7: must be a string, not a int'),
        (None, 'must be a string, not a NoneType'),
        ('half \ud83d', 'is not valid Unicode'),
    ],
)
def test_invalid_prompts_are_refused(prompt, words):
    with pytest.raises(ValueError, match=words):
        check_prompt(prompt)
    with pytest.raises(ValueError, match='prompt 1'):
        check_prompts(['a dog', prompt])


def test_empty_list_of_prompts_is_refused():
    with pytest.raises(ValueError, match='prompts: must not be empty'):
        check_prompts([])


@pytest.mark.parametrize(
    ('seed', 'rows', 'seeds'),
    [
        (5, 1, [5]),
        (5, 3, [5, 6, 7]),
        (np.int64(2), 2, [2, 3]),
        (np.array(2), 1, [2]),
        ([9, 1], 2, [9, 1]),
        (np.array([9, 1]), 2, [9, 1]),
        (range(2), 2, [0, 1]),
        (2**32 - 1, 1, [2**32 - 1]),
    ],
)
def test_seeds(seed, rows, seeds):
    assert check_seeds(seed, rows) == seeds


@pytest.mark.parametrize(
    ('seed', 'words'),
    [
        ('7', "seed='7': must be an integer from 0 to 4294967295"),
        (1.5, 'seed=1.5'),
        (True, 'seed=True'),
        (None, 'seed=None'),
        (-1, 'seed=-1'),
        (2**32, 'seed=4294967296'),
        (2**32 - 1, 'seed=4294967296'),  # of the second prompt
        ([1], '1 seeds for 2'),
        ([1, 'x'], "seed 1='x'"),
    ],
)
def test_invalid_seeds_are_refused(seed, words):
    with pytest.raises(ValueError, match=words):
        check_seeds(seed, 2)


def test_read_prompts_from_a_file(tmp_path):
    path = tmp_path / 'prompts.txt'
    path.write_text('\ufeffa dog \n\n  a cat\r\n🐞\n', encoding='utf-8')
    assert read_prompts(path) == ['a dog', 'a cat', '🐞']
    path.write_text(' \n\n')
    with pytest.raises(ValueError, match=r'prompts\.txt: contains no prompts'):
        read_prompts(path)
    path.write_bytes('über'.encode('latin-1'))
    with pytest.raises(ValueError, match=r'is not UTF-8 \(byte 0\)'):
        read_prompts(path)
    for missing in (tmp_path / 'none', tmp_path):
        with pytest.raises(ValueError, match=str(missing)):
            read_prompts(missing)


def test_quote_prompt_is_one_short_line():
    assert quote_prompt('a\n  dog') == "'a dog'"
    assert len(quote_prompt('x' * 10_000)) < 50
