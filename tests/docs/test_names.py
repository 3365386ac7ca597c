"""Everything that a guide names in backticks exists in the code, and its links lead somewhere."""

import re
from pathlib import Path

import pytest

from tests.architecture.test_imports import COMMANDS, LEVELS
from tests.docs import names
from tests.docs.guides import ROOT, anchors, code_spans, guides, links, prose

MAX_README_LINES = 180
MODELS = 'fv_jax/models/README.md'
# (guide, pattern of a whole code span, why it is not in the code)
EXCEPTIONS = (
    ('configs/README.md', r'from configs\.common import \.\.\.|my/stage2\.py:tiny', 'examples of a user'),
    ('*', r'\w+/\.\.\.', 'the prefix of several metrics'),
    ('README.md', r'out/\S*|quickstart/|result/report.html', 'results of the commands in this guide'),
    ('fv_jax/data/README.md', r'(\._)?clip\.(mp4|txt)|captions\.tsv', 'an example of a user'),
    ('fv_jax/data/README.md', r'\.(git|Trash)', 'folders of other programs'),
    ('tests/README.md', r'<!-- .* -->', 'markers, see tests/docs/guides.py'),
    (MODELS, r'8de4ae2|a25fcc8', 'commits of the official repository'),
    (MODELS, r'tau = 1 - t|group_norm\(x\) .*', 'formulas'),
    (MODELS, r'int\(side \* upscale_factor\).*|align_corners=False|lora_alpha|ucg_rate', 'in the official code'),
    (MODELS, r'mixins\.pos_embed\.freqs_sin|freqs_cos|stage2\.yaml', 'official, and not read here'),
    (MODELS, r'encoder\.(block|final).*|b\.layer.*', 'keys of T5 files, which weights/layouts/t5_folder.py composes'),
    (MODELS, r'(img|vid|long|mem|q)_', 'prefixes of the recorded arrays'),
    (MODELS, r'\.\.\._traj51\.npz|\.[\w.]+', 'continues the name before it'),
)


def is_exception(guide: str, span: str) -> bool:
    return any(where in ('*', guide) and re.fullmatch(pattern, span) for where, pattern, _ in EXCEPTIONS)


def violations(guide: Path) -> list[str]:
    where, text, found = guide.relative_to(ROOT).as_posix(), guide.read_text(encoding='utf-8'), []
    for line, span in code_spans(text):
        problem = None if is_exception(where, span) else names.problem(span, guide)
        if problem:
            found.append(f'{where}:{line}: `{span}`: {problem}')
    for line, shown in prose(text):
        if shown.count('`') % 2:
            found.append(f'{where}:{line}: a code span must be on one line')
    for line, target in links(text):
        path, _, anchor = target.partition('#')
        to = guide.parent / path if path else guide
        if not target.startswith('https://') and not to.exists():
            found.append(f'{where}:{line}: link to {target}: does not exist')
        elif anchor and anchor not in anchors(to.read_text(encoding='utf-8')):
            found.append(f'{where}:{line}: link to {target}: no such heading')
    return found


@pytest.mark.parametrize('guide', guides(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_names_in_guides_exist(guide: Path) -> None:
    problems = violations(guide)
    assert not problems, '\n'.join(problems)


def test_readme_is_short() -> None:
    assert len((ROOT / 'README.md').read_text(encoding='utf-8').splitlines()) <= MAX_README_LINES


def test_every_exception_is_needed() -> None:
    spans = [(guide, span) for guide in guides() for _, span in code_spans(guide.read_text(encoding='utf-8'))]
    for where, pattern, _ in EXCEPTIONS:
        covered = [
            span
            for guide, span in spans
            if where in ('*', guide.relative_to(ROOT).as_posix())
            and re.fullmatch(pattern, span)
            and names.problem(span, guide)
        ]
        assert covered, (where, pattern)


def test_the_guide_of_the_package_shows_the_levels() -> None:
    rows = re.findall(r'^\| (\d+) \| ([^|]+) \|', (ROOT / 'fv_jax' / 'README.md').read_text(encoding='utf-8'), re.M)
    shown = {
        name.rstrip('/').removesuffix('.py').replace('/', '.'): int(level)
        for level, cell in rows
        for name in re.findall('`([^`]+)`', cell)
    }
    assert shown == LEVELS | dict.fromkeys(COMMANDS, max(LEVELS.values()) + 1)


@pytest.mark.parametrize(
    'span',
    [
        '--strong',
        '--config.loop.alarm.stop=true',
        '--config.optim.learning_rat=1',
        '--stage2.num_step=4',
        'loop.bad_steps.then',
        '.on_limit',
        'fv_jax.core.quality',
        'fv_jax.api.FlashVideos',
        'configs/stage2.py:tinny',
        'stage3.py:tiny',
        'stage2:tinny',
        '--config=stage3',
        'launch/quick_start.sh',
        'core/latents.py',
        'chunking.py',
        'tests.fuzz.kills',
        'python -m fv_jax.tune',
        'python -m fv_jax.evaluate --scales=2',
        'swing:NAME',
        'ALARM',
        'DiscreteNoiseTable',
        'blocks.attention.qkvs',
        'num_twins',
    ],
)
def test_unknown_name_in_a_guide_is_found(span: str) -> None:
    assert names.problem(span, ROOT / 'README.md')


@pytest.mark.parametrize(
    'text, problem',
    [
        ('[guide](fv_jax/guide.md)', 'does not exist'),
        ('![image](.github/images/other.webp)', 'does not exist'),
        ('[section](#sections)', 'no such heading'),
        ('[section](other.md#5-1-noise)', 'no such heading'),
        ('`python -m', 'a code span must be on one line'),
    ],
)
def test_broken_link_in_a_guide_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, problem: str
) -> None:
    monkeypatch.setattr('tests.docs.test_names.ROOT', tmp_path)
    (tmp_path / 'other.md').write_text('## 5.1 Noise')
    (tmp_path / 'README.md').write_text(f'# Section\n\n{text}, [section](#section), [noise](other.md#51-noise)\n')
    (found,) = violations(tmp_path / 'README.md')
    assert problem in found
