"""Tables of captions: captions.json, .jsonl, .csv and .tsv, and the metadata.jsonl and .csv of Hugging Face's folders.

A table that cannot be read raises ValueError with one line that names the file and the row.
"""

import csv
import dataclasses
import io
import itertools
import json
import posixpath
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from fv_jax.core.checks import require
from fv_jax.core.files import parse_json, read_text
from fv_jax.core.paths import StoragePath, absolute, real_path

FILE_KEYS = ('file', 'file_name', 'filename', 'video', 'path', 'name')
TEXT_KEYS = ('caption', 'text', 'prompt')
_DELIMITERS = {',': 'commas', ';': 'semicolons', '\t': 'tabs'}

# Where a row is in its file ('row 2'), and its values by column.
Row = tuple[str, Mapping[str, object]]


@dataclasses.dataclass(frozen=True)
class CaptionTable:
    """The captions of one file.

    Attributes:
      path: of the file.
      texts: normalized file name -> caption. Of several rows of one file the last is used.
      repeated: normalized file name -> where its rows are, of files that have several.
      unused: where the rows of a metadata file without a file name or a text are.
    """

    path: StoragePath
    texts: dict[str, str]
    repeated: dict[str, list[str]]
    unused: list[str]


def read_table(path: StoragePath) -> CaptionTable:
    """Reads a file of one of the names in TABLES. Raises ValueError."""
    places: dict[str, list[str]] = {}
    texts, unused, folders = {}, [], (absolute(path.parent), real_path(path.parent))
    for where, row in TABLES[path.name](path):
        name, text = (next((row[key] for key in keys if key in row), None) for keys in (FILE_KEYS, TEXT_KEYS))
        if _is_metadata(path) and (name is None or text is None):
            unused.append(where)
            continue
        _check_row(path, where, row, isinstance(name, str) and isinstance(text, str))
        key = normalize_name(name, folders)
        places.setdefault(key, []).append(where)
        texts[key] = text.strip()
    return CaptionTable(path, texts, {name: found for name, found in places.items() if len(found) > 1}, unused)


def normalize_name(name: str, folders: Sequence[StoragePath] = ()) -> str:
    """Returns the name by which files are compared: NFC, with slashes, without './', relative to one of `folders`."""
    name = unicodedata.normalize('NFC', name.strip())
    for folder in folders:
        name = name.removeprefix(f'{unicodedata.normalize("NFC", str(folder)).rstrip("/")}/')
    return posixpath.normpath(name.replace('\\', '/'))


def read_caption_file(path: StoragePath) -> str:
    """Reads a UTF-8 text, whose line ends become newlines. Raises ValueError."""
    try:
        return read_text(path)
    except UnicodeDecodeError as error:
        raise ValueError(f'{path}: not UTF-8 text ({error.reason} at byte {error.start})') from None


def _is_metadata(path: StoragePath) -> bool:
    """Returns whether a file may be about something else than captions."""
    return path.stem == 'metadata'


def _check_row(path: StoragePath, where: str, row: Mapping[str, object], is_valid: bool) -> None:
    keys = f'a file name ({", ".join(FILE_KEYS)}) and a text ({", ".join(TEXT_KEYS)})'
    require(is_valid, f'{path}: every row needs {keys}, one has {", ".join(map(str, row))} ({where})')


def _read_csv(path: StoragePath) -> Iterator[Row]:
    """Yields the rows of a CSV file with a header, whose fields are separated by commas, semicolons or tabs.

    Line breaks within double quotes belong to the field; other characters that some programs take for line breaks
    (U+2028, form feeds) belong to their field in any case.
    """
    text = read_caption_file(path)
    delimiter, header = _read_header(path, text)
    if not _is_metadata(path):
        columns = dict.fromkeys(header)
        _check_row(
            path, 'row 1', columns, any(k in columns for k in FILE_KEYS) and any(k in columns for k in TEXT_KEYS)
        )
    for number, fields, line in itertools.islice(_csv_rows(path, text, delimiter), 1, None):
        if not any(fields):
            continue
        while len(fields) > len(header) and not fields[-1]:
            fields.pop()
        missing = [key for key in header[len(fields) :] if key in (*FILE_KEYS, *TEXT_KEYS)]
        if missing or len(fields) > len(header):
            raise ValueError(
                f'{path}: row {number} has {len(fields)} field(s) and the header {len(header)}: '
                f'{line[:200]!r}; put a text with {_DELIMITERS[delimiter]} or line breaks in double '
                'quotes'
            )
        yield f'row {number}', dict(zip(header, fields, strict=False))


def _read_header(path: StoragePath, text: str) -> tuple[str, list[str]]:
    """Returns the delimiter by which the first row names the columns of files and texts, and its columns."""
    for delimiter in _DELIMITERS:
        _, fields, _ = next(_csv_rows(path, text, delimiter), (1, [], ''))
        header = [field.strip().lower() for field in fields]
        if any(key in header for key in FILE_KEYS) and any(key in header for key in TEXT_KEYS):
            return delimiter, header
    _, fields, _ = next(_csv_rows(path, text, ','), (1, [], ''))
    return ',', [field.strip() for field in fields]


def _csv_rows(path: StoragePath, text: str, delimiter: str) -> Iterator[tuple[int, list[str], str]]:
    """Yields (number, fields, text) of the rows, as a spreadsheet numbers them: the header is row 1."""
    lines: list[str] = []  # of the present row

    def read_lines() -> Iterator[str]:
        for line in io.StringIO(text, newline=''):
            lines.append(line)
            yield line

    rows = csv.reader(read_lines(), delimiter=delimiter, skipinitialspace=True, strict=True)
    for number in itertools.count(1):
        lines.clear()
        try:
            fields = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            row = f'row {number}: {"".join(lines).rstrip()[:200]!r}'
            raise ValueError(f'{path}: {row}: {error}; write "" for a quote within quotes') from None
        yield number, fields, ''.join(lines).rstrip('\n')


class _JsonObject(list[tuple[str, object]]):
    """The names and values of a JSON object, with those of equal names."""


def _parse_json(path: StoragePath, text: str, where: str = '') -> object:
    try:
        return parse_json(text, _JsonObject)
    except json.JSONDecodeError as error:
        raise ValueError(f'{path}: not JSON ({where or f"line {error.lineno}"}: {error.msg})') from None
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from None


def _read_json(path: StoragePath) -> Iterator[Row]:
    """Yields the entries of a map of file name to text, or of a list of objects."""
    content = _parse_json(path, read_caption_file(path))
    rows = content
    if isinstance(content, _JsonObject):
        rows = [_JsonObject([('file', name), ('caption', text)]) for name, text in content]
    if not isinstance(rows, list) or not all(isinstance(row, _JsonObject) for row in rows):
        raise ValueError(f'{path}: expected a map of file name to text, or a list of {{"file": ..., "caption": ...}}')
    for number, row in enumerate(rows, start=1):
        yield f'entry {number}', dict(row)


def _read_jsonl(path: StoragePath) -> Iterator[Row]:
    """Yields the objects of a file with one in each line."""
    for number, line in enumerate(read_caption_file(path).split('\n'), start=1):
        if line.strip():
            row = _parse_json(path, line, f'line {number}')
            wrong = f'{path}: line {number}: expected {{"file": ..., "caption": ...}}'
            require(isinstance(row, _JsonObject), wrong)
            yield f'line {number}', dict(row)


# By name, those that are used first at the front.
TABLES = {
    'captions.json': _read_json,
    'captions.jsonl': _read_jsonl,
    'captions.csv': _read_csv,
    'captions.tsv': _read_csv,
    'metadata.jsonl': _read_jsonl,
    'metadata.csv': _read_csv,
}
