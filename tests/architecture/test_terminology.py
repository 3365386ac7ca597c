"""The field's words: names, flags, messages, docstrings, comments and the guides contain none of the refused words.

A name is compared word by word: `test_run_goes_on`, `RunGoesOn` and `--goes-on` contain 'goes on'. A single word also
matches its plural in -s. What is refused where:

    names       that we define: modules, functions, classes, arguments, variables, fields, attributes that are assigned
    flags       of `add_argument`, and of the options of the shell scripts
    messages    strings with a space that are not docstrings: log formats, errors, help
    prose       docstrings and comments; README.md and the guides, outside of code
"""

import ast
import io
import pathlib
import re
import tokenize
from collections.abc import Iterator

import pytest

from tests.architecture.test_imports import ROOT
from tests.architecture.test_stage_names import docstrings
from tests.docs.guides import guides, prose

FOLDERS = ('fv_jax', 'configs', 'launch', 'tests')
# Word or phrase -> what to write instead.
REFUSED = {
    'film': 'video, clip',
    'picture': 'image, frame',
    'twin': 'degraded clip, LQ-HQ pair',
    'without numbers': 'abstract, ShapeDtypeStruct',
    'vote': 'cross-host flag',
    'ledger': 'throughput metrics',
    'walk': 'iterate, sample, integrate',
    'transport': 'integrate',
    'seal': 'write checksums',
    'stamp': 'provenance, timestamp',
    'alarm': 'collapse monitor',
    'stuck': 'stalled',
    'surrounding': 'environment',
    'judge': 'check, reference',
    'rival': 'baseline',
    'told': 'given, read',
    'tells': 'returns, shows',
    'said': 'reported, stated',
    'say so': 'report it',
    'came of': 'the result of',
    'anew': 'again',
    'aside': 'quarantined',
    'gone': 'missing, freed',
    'goes on': 'continues, resumes',
    'go on': 'continue, resume',
    'went wrong': 'failed, non-finite',
    'computed again': 'recomputed',
    'computes again': 'recomputes',
    'what helps': 'suggestions',
    'is there': 'exists',
    'is not there': 'does not exist',
    'let go': 'freed',
    'taken to be': 'assumed to be',
    'leave it out': 'remove it',
    'left out': 'skipped, omitted',
    'looked for': 'searched',
    'learns': 'trainable, is trained',
    'learnt': 'learned, trained',
    'forget': 'reset, drop',
    'leaf by leaf': 'array by array',
    'paid for': 'rented',
    'where they live': 'shardings',
    'lives where': 'sharding rules',
    'stands in': 'replaces',
    'searched to the bottom': 'searched recursively',
    'bell': 'Gaussian',
    'swing': 'ping-pong',
    'glide': 'pan, linear motion',
    'misshapen': 'shape mismatch',
    'cut short': 'truncated',
    'half written': 'incomplete',
    'owed': 'pending',
    'there and back': 'round trip',
    'wholly': 'completely',
    'unasked': 'unless asked',
}
# (path, refused word) -> why it is right there.
EXCEPTIONS = {
    ('fv_jax/data/synthetic/sprites.py', 'glide'): 'a word of captions: they are training data',
    ('tests/architecture/test_terminology.py', '*'): 'the list itself',
    ('tests/docs/test_blocks.py', 'alarm'): 'a name that must not exist',
    ('tests/docs/test_names.py', 'alarm'): 'a name that must not exist',
    ('tests/small_text.py', 'glide'): 'a text that a tokenizer is trained on',
}


def make_pattern(phrase: str) -> re.Pattern[str]:
    """Matches the phrase as whole words, over line breaks too; a single word also in the plural."""
    plural = '' if ' ' in phrase else 's?'
    return re.compile(r'\b' + r'\s+'.join(phrase.split()) + plural + r'\b', re.IGNORECASE)


PATTERNS = {phrase: make_pattern(phrase) for phrase in REFUSED}

Found = Iterator[tuple[int, str, str]]  # line, kind, text


def split_name(name: str) -> str:
    """Splits an identifier or a flag into lower-case words: 'TestGoesOn', 'test_goes_on' are 'test goes on'."""
    words = re.sub(r'(?<=[a-z0-9])(?=[A-Z])', ' ', name)
    return ' '.join(re.findall('[A-Za-z0-9]+', words)).lower()


def defined_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yields (line, name) of everything that a module defines or assigns."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.alias) and node.asname:
            yield node.lineno, node.asname


def texts_of_module(path: pathlib.Path) -> Found:
    source = path.read_text(encoding='utf-8')
    tree = ast.parse(source, str(path))
    apart = docstrings(tree)
    yield 1, 'name', split_name(path.stem)
    for line, name in defined_names(tree):
        yield line, 'name', split_name(name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) in apart:
                yield node.lineno, 'docstring', node.value
            elif node.value.startswith('--'):
                yield node.lineno, 'flag', split_name(node.value)
            elif ' ' in node.value:
                yield node.lineno, 'message', node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], 'comment', token.string


def texts_of_script(path: pathlib.Path) -> Found:
    for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
        for flag in re.findall(r'--[a-z][a-z-]+', line):
            yield number, 'flag', split_name(flag)
        if not re.match(r'\s*#!', line):
            yield number, 'message', line.replace('--', ' ')


def texts_of_guide(path: pathlib.Path) -> Found:
    for number, line in prose(path.read_text(encoding='utf-8')):
        yield number, 'prose', re.sub(r'`[^`]*`|\]\([^)]*\)', ' ', line)


def sources(root: pathlib.Path) -> Iterator[tuple[pathlib.Path, Found]]:
    """Yields every file below `root` that is checked, and its texts."""
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob('*')):
            if path.suffix == '.py':
                yield path, texts_of_module(path)
            elif path.suffix == '.sh':
                yield path, texts_of_script(path)
    yield from ((path, texts_of_guide(path)) for path in guides(root) if path.exists())


def violations(root: pathlib.Path) -> dict[tuple[str, str], list[str]]:
    """Returns messages by (path, refused word)."""
    found: dict[tuple[str, str], list[str]] = {}
    for path, texts in sources(root):
        where = path.relative_to(root).as_posix()
        for line, kind, text in texts:
            for phrase, pattern in PATTERNS.items():
                if match := pattern.search(text):
                    line_of_match = line + (0 if kind in ('name', 'flag') else text[: match.start()].count('\n'))
                    message = f'{where}:{line_of_match}: {kind} with {phrase!r}; say {REFUSED[phrase]!r}: {text[:80]!r}'
                    found.setdefault((where, phrase), []).append(message)
    return found


def test_no_refused_word_is_used() -> None:
    allowed = {path for path, word in EXCEPTIONS if word == '*'}
    problems = [
        message
        for (path, word), messages in violations(ROOT).items()
        if (path, word) not in EXCEPTIONS and path not in allowed
        for message in messages
    ]
    assert not problems, '\n'.join(problems)


def test_every_exception_is_needed() -> None:
    found = violations(ROOT)
    unused = [key for key in EXCEPTIONS if key not in found and key[1] != '*']
    assert not unused, f'remove the exceptions {unused}'


def test_the_list_of_refused_words_is_short() -> None:
    assert len(REFUSED) <= 60 and all(REFUSED.values())


@pytest.mark.parametrize(
    ('where', 'text', 'message'),
    [
        ('fv_jax/films.py', '', "1: name with 'film'"),
        ('fv_jax/x.py', 'def test_run_goes_on(): pass', "1: name with 'goes on'"),
        ('fv_jax/x.py', 'class Films: pass', "1: name with 'film'"),
        ('fv_jax/x.py', 'def f(twin_FHWC): pass', "1: name with 'twin'"),
        ('fv_jax/x.py', 'class Config:\n    num_twins: int = 1', "2: name with 'twin'"),
        ('configs/x.py', 'config.picture_size = 1', "1: name with 'picture'"),
        ('fv_jax/x.py', 'pictures = 1', "1: name with 'picture'"),
        ('fv_jax/x.py', 'import numpy as twin', "1: name with 'twin'"),
        ('fv_jax/x.py', "parser.add_argument('--num-films', type=int)", "1: flag with 'film'"),
        ('launch/x.sh', 'case $1 in\n  --films=*) ;;\nesac', "2: flag with 'film'"),
        ('launch/x.sh', 'echo "the run goes on"', "1: message with 'goes on'"),
        ('fv_jax/x.py', "log.info(f'step {step}: the run goes on')", "1: message with 'goes on'"),
        ('fv_jax/x.py', "raise ValueError(f'{path}: is not there')", "1: message with 'is not there'"),
        ('fv_jax/x.py', "wrong = 'leave it out'\nrequire(x, wrong)", "1: message with 'leave it out'"),
        ('fv_jax/x.py', '"""A network\nwithout\nnumbers."""', "2: docstring with 'without numbers'"),
        ('tests/x.py', 'x = 1  # a picture', "1: comment with 'picture'"),
        ('README.md', 'Train on your\nown films.', "2: prose with 'film'"),
        ('fv_jax/data/README.md', 'A record that cannot be read is left out.', "1: prose with 'left out'"),
    ],
)
def test_refused_word_is_found(tmp_path: pathlib.Path, where: str, text: str, message: str) -> None:
    path = tmp_path / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    messages = [each for found in violations(tmp_path).values() for each in found]
    assert any(each.startswith(f'{where}:{message}') for each in messages), messages


@pytest.mark.parametrize(
    ('where', 'text'),
    [
        ('fv_jax/x.py', 'for root, _, files in os.walk(folder): pass\nsignal.alarm(1)'),  # names of libraries
        ('fv_jax/x.py', "film = record['film']".replace('film', 'filmed')),  # another word
        ('README.md', '```bash\nls films\n```\n\nSee `films` and [the guide](films.md).'),
    ],
)
def test_other_words_are_not_reported(tmp_path: pathlib.Path, where: str, text: str) -> None:
    path = tmp_path / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert not violations(tmp_path)
