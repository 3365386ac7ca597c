"""VBench's prompts, names and seeds; the command is tested in tests/test_sample_prompts."""

import json

import pytest

from fv_jax.sampling import vbench

ENTRIES = [
    {'prompt_en': 'a dog', 'dimension': ['color', 'scene'], 'auxiliary_info': {'color': 'red'}},
    {'prompt_en': 'a cat ', 'dimension': ['scene']},
    {'prompt_en': 'a dog', 'dimension': ['object_class']},
    {'prompt_en': 'a bee', 'dimension': ['temporal_flickering']},
]


def write(folder, entries):
    path = folder / 'VBench_full_info.json'
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries), errors='surrogateescape')
    return path


def test_read_prompts_of_a_text_file_keeps_the_order_and_drops_duplicates(tmp_path):
    (tmp_path / 'color.txt').write_text('a red dog\n\na cat, frozen in time.\n a red dog \n')
    assert vbench.read_prompts(tmp_path / 'color.txt') == ['a red dog', 'a cat, frozen in time.']


def test_read_prompts_of_the_full_information(tmp_path):
    path = write(tmp_path, ENTRIES)
    assert vbench.read_prompts(path) == ['a dog', 'a cat', 'a bee']
    assert vbench.read_prompts(path, ['scene']) == ['a dog', 'a cat']
    assert vbench.read_prompts(path, ['object_class', 'temporal_flickering']) == ['a dog', 'a bee']


@pytest.mark.parametrize(
    ('entries', 'dimensions', 'words'),
    [
        (ENTRIES, ['colour'], "has no dimension 'colour'; did you mean 'color'?"),
        ('[', [], 'is not JSON'),
        ('\udcff', [], 'is not JSON'),
        ('[' * 100_000, [], 'is not JSON'),
        ({}, [], 'must be a list'),
        ([], [], 'must be a list'),
        (['a dog'], [], 'entry 0: must have a "prompt_en"'),
        ([*ENTRIES, {'prompt_en': 'a fox'}], [], 'entry 4: must have'),
        ([{'prompt_en': 'a fox', 'dimension': 'color'}], [], 'entry 0: must have'),
        ([{'prompt_en': 3, 'dimension': []}], [], 'entry 0, prompt_en=3: must be a string'),
        ([{'prompt_en': ' ', 'dimension': []}], [], 'is empty'),
    ],
)
def test_read_prompts_refuses_other_json(entries, dimensions, words, tmp_path):
    path = write(tmp_path, entries)
    with pytest.raises(ValueError, match=rf'^{path}: ') as caught:
        vbench.read_prompts(path, dimensions)
    assert words in str(caught.value) and '\n' not in str(caught.value)


def test_seed_of_a_sample_depends_on_its_prompt_and_index_alone(tmp_path):
    first = vbench.list_samples(['a dog', 'a cat'], tmp_path, 5, 0)
    assert [s.output.name for s in first] == [f'{p}-{i}.mp4' for p in ('a dog', 'a cat') for i in range(5)]
    assert len({s.seed for s in first}) == 10 and all(0 <= s.seed < 2**32 for s in first)
    assert set(first) < set(vbench.list_samples(['a bee', 'a cat', 'a dog'], tmp_path, 25, 0))
    assert not {s.seed for s in first} & {s.seed for s in vbench.list_samples(['a dog', 'a cat'], tmp_path, 5, 1)}
    # Recorded: another version of fv_jax continues a folder.
    assert first[0].seed == 3570600110


@pytest.mark.parametrize(
    ('prompt', 'words'),
    [
        ('black and/or white', "'black and/or white': VBench names its files by it, which cannot hold '/'"),
        ('a\0b', r"cannot hold '\x00'"),
        ('a\nb', r"cannot hold '\n'"),
        ('x' * 250, 'with 256 bytes; they can have 255'),
        ('\U0001f41e' * 63, 'with 258 bytes'),
    ],
)
def test_prompt_that_no_file_can_be_named_after_is_refused(prompt, words, tmp_path):
    with pytest.raises(ValueError, match=r'^prompt ') as caught:
        vbench.list_samples(['a dog', prompt], tmp_path, 5, 0)
    assert words in str(caught.value) and '\n' not in str(caught.value)
    assert len(vbench.list_samples(['x' * 249], tmp_path, 10, 0)) == 10
    with pytest.raises(ValueError, match='256 bytes'):
        vbench.list_samples(['x' * 249], tmp_path, 11, 0)
