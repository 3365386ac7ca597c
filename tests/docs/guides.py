"""The guides, which are README.md and the README.md files beside the code: their code blocks, code spans and links.

An HTML comment in the line above a code block is its marker:

    <!-- not run: REASON -->    the block is parsed only
    <!-- dry-run -->            its launch scripts run with --dry-run

A block without a marker runs as it stands.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ('configs', 'fv_jax', 'launch', 'tests')
NOT_RUN, DRY_RUN = 'not run', 'dry-run'
MARKER = re.compile(rf'<!-- ({DRY_RUN}|{NOT_RUN}: (\S.*)) -->')
FENCE = re.compile(r'^```(\w*)$')


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced code block.

    Attributes:
      line: number of its first line of code.
      language: what stands after the fence; '' for none.
      marker: NOT_RUN, DRY_RUN, or '' for a block that runs.
      code: its lines.
    """

    line: int
    language: str
    marker: str
    code: str

    @property
    def is_run(self) -> bool:
        return self.language in ('bash', 'python') and self.marker != NOT_RUN


def guides(root: Path = ROOT) -> list[Path]:
    """README.md and the guides below `root`."""
    return [root / 'README.md', *sorted(path for folder in FOLDERS for path in (root / folder).rglob('README.md'))]


def blocks(text: str) -> list[Block]:
    """The fenced code blocks of a guide. Raises ValueError for a marker without a block or a fence without an end."""
    found, marker, lines = [], '', enumerate(text.splitlines(), 1)
    for number, line in lines:
        fence, comment = FENCE.match(line), MARKER.fullmatch(line)
        if fence:
            code = []
            for _, inner in lines:
                if inner == '```':
                    break
                code.append(inner)
            else:
                raise ValueError(f'line {number}: the code block has no end')
            found.append(Block(number + 1, fence[1], marker, '\n'.join(code) + '\n'))
            marker = ''
        elif marker or (line.startswith('<!--') and not comment):
            raise ValueError(f'line {number}: expected a code block after the marker, or one of the markers')
        elif re.match(r' {4,}(python|bash|pip) ', line):
            raise ValueError(f'line {number}: put commands between fences, ```bash')
        elif comment:
            marker = DRY_RUN if comment[1] == DRY_RUN else NOT_RUN
    return found


def prose(text: str) -> Iterator[tuple[int, str]]:
    """(number, line) of the lines outside of code blocks."""
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith('```'):
            inside = not inside
        elif not inside and not line.startswith('    '):
            yield number, line


def code_spans(text: str) -> Iterator[tuple[int, str]]:
    """(line, text) of everything in backticks outside of code blocks."""
    return ((number, span) for number, line in prose(text) for span in re.findall(r'`([^`]+)`', line))


def links(text: str) -> Iterator[tuple[int, str]]:
    """(line, target) of every link and image."""
    return ((number, target) for number, line in prose(text) for target in re.findall(r'\]\(([^)\s]+)\)', line))


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a guide."""
    headings = [line.lstrip('# ') for _, line in prose(text) if line.startswith('#')]
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}
