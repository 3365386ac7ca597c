"""Whether what a guide names in backticks exists: files, modules, flags, config fields, and the words of the code."""

import ast
import difflib
import functools
import re
from pathlib import Path

from fv_jax.core import config as config_lib
from tests.docs import commands, python_names
from tests.docs.guides import FOLDERS, ROOT

PLACEHOLDER = re.compile(
    r'\b(BUCKET|COMMAND|DIR|FIELD|FILES?|FOLDER|GROUP|HOST|NAME|PORT|RUN|SHARE|STEP|VALUE|VARIANT|VIDEOS|WORD)\b'
)
# Where a path may start, besides the folder of its guide.
BASES = (ROOT, ROOT / 'fv_jax', ROOT / 'launch', ROOT / 'tests' / 'parity' / 'official_dev')
SUFFIX = r'\.(py|sh|md|json|lock|jsonl|npz|pt|toml|yaml|ipynb|txt|csv|webp|png|html|mp4|safetensors|array_record)'
FILE = re.compile(rf'[\w.-]*\w{SUFFIX}')
PATH = re.compile(r'\.?\w[\w.-]*(/[\w.-]+)*/?')
DOTTED = re.compile(r'[a-z]\w*(\.\w+)+')
CONFIG = re.compile(r'(configs/)?(\w+)(\.py)?(:[\w,=]+)')


def problem(span: str, guide: Path) -> str | None:
    """Returns why something that a code span of a guide names does not exist; None where everything does."""
    if re.match(r'\.\w', span) and not re.fullmatch(SUFFIX, span):
        return f'{span}: write the whole name'
    command = re.match(r'python -m fv_jax\.([a-z]+)\b', span)
    if command and command[1] not in commands.COMMANDS:
        return f'{command[0]}: no such command'
    for word in span.split():
        try:
            if word.startswith('--'):
                _check_flag(word, commands.flags(command[1]) if command else flags())
            elif not command and not re.fullmatch(SUFFIX, word):
                _check(word.strip(','), guide)
        except ValueError as error:
            return str(error)
    return None


def _check(word: str, guide: Path) -> None:
    if (match := CONFIG.fullmatch(word)) and (match[3] or match[2] in configs()):
        commands.check_config_file(match[2] + match[4])
    elif PLACEHOLDER.search(word):
        _check_words(word)
    elif word.startswith('fv_jax.'):
        python_names.find(word.rstrip('.'))
    elif word.startswith('tests.') and DOTTED.fullmatch(word):
        _check_path(f'{word.replace(".", "/")}.py', guide)
    elif FILE.fullmatch(word) or ('/' in word and PATH.fullmatch(word)):
        _check_path(word, guide)
    elif DOTTED.fullmatch(word.partition('=')[0]):
        name = word.partition('=')[0]
        if not re.search(rf'(?<!\w){re.escape(name)}(?!\w)', parameter_names()):
            _check_known(word, name.removeprefix('config.'), config_fields(), 'config field or parameter')
    else:
        _check_words(word)


def _check_flag(word: str, known: frozenset[str]) -> None:
    flag, _, value = word.partition('=')
    group, _, field = flag.removeprefix('--').partition('.')
    if PLACEHOLDER.fullmatch(field):
        return
    if group == 'config' and field:
        _check_known(word, field, config_fields(), 'config field')
    elif group in commands.SETTINGS:
        _check_known(word, field, frozenset(config_lib.to_dict(commands.SETTINGS[group]())), 'setting')
    else:
        _check_known(word, flag, known, 'flag')
    if flag.endswith('config') and value and not PLACEHOLDER.search(value):
        commands.check_config_file(value)


def _check_known(word: str, name: str, known: frozenset[str], what: str) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        raise ValueError(f'{word}: no such {what}{f"; did you mean {close[0]}?" if close else ""}')


def _check_path(path: str, guide: Path) -> None:
    """A file or folder of the repository, one that the code writes under that name, or a module without its suffix."""
    found = any((base / f'{path}{suffix}').exists() for base in (guide.parent, *BASES) for suffix in ('', '.py'))
    if not found and '/' not in path:
        found = any(True for folder in FOLDERS for _ in (ROOT / folder).rglob(path))
    if not found and path.rstrip('/') not in strings():
        raise ValueError(f'{path}: no such file, nor a name of a file in the code')


def _check_words(text: str) -> None:
    for word in re.findall(r'[A-Za-z_]\w+', text):
        if not PLACEHOLDER.fullmatch(word) and word not in words():
            raise ValueError(f'{word}: occurs nowhere in the code')


@functools.cache
def config_fields() -> frozenset[str]:
    return frozenset(commands.config_fields())


def configs() -> set[str]:
    """The names of the shipped configurations."""
    return {path.stem for path in (ROOT / 'configs').glob('*.py')}


@functools.cache
def parameter_names() -> str:
    """The parameters of the stages, the keys of the official files, and the strings of the weights' layouts."""
    ours = (ROOT / 'tests' / 'golden' / 'parameters.txt').read_text(encoding='utf-8').replace('/', '.')
    official = (ROOT / 'tests' / 'weights' / 'full_size_keys.txt').read_text(encoding='utf-8')
    return '\n'.join([ours, official, *_strings('fv_jax/weights')])


@functools.cache
def flags() -> frozenset[str]:
    """The flags of the commands, of the launch scripts (in their help) and of the programs of the tests."""
    sources = [*(ROOT / 'launch').glob('*.sh'), *(ROOT / 'tests').rglob('*.py')]
    texts = [path.read_text(encoding='utf-8') for path in sources if path.parent != ROOT / 'tests' / 'docs']
    return frozenset().union(
        *map(commands.flags, commands.COMMANDS), *(re.findall(r'--[a-z][\w-]*', text) for text in texts)
    )


@functools.cache
def strings() -> frozenset[str]:
    """The strings of the package and the configs, except docstrings."""
    return frozenset(_strings('fv_jax', 'configs'))


@functools.cache
def words() -> frozenset[str]:
    """The words of the code: names, the words of strings, and the words of the launch scripts."""
    found = {word for value in _strings('fv_jax', 'configs', 'tests') for word in re.findall(r'[A-Za-z_]\w*', value)}
    for path in _sources('fv_jax', 'configs', 'tests'):
        found.add(path.stem)
        for node in ast.walk(_tree(path)):
            found |= {getattr(node, field, None) for field in ('id', 'attr', 'arg', 'name')}
    for path in (ROOT / 'launch').iterdir():
        if path.is_file() and path.suffix in ('.sh', '.py', ''):
            found |= set(re.findall(r'[A-Za-z_]\w*', path.read_text(encoding='utf-8')))
    return frozenset(word for word in found if word)


def _strings(*folders: str) -> list[str]:
    found = []
    for path in _sources(*folders):
        docstrings = {id(node.value) for node in ast.walk(_tree(path)) if isinstance(node, ast.Expr)}
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                found.append(node.value)
    return found


def _sources(*folders: str) -> list[Path]:
    return [
        path
        for folder in folders
        for path in (ROOT / folder).rglob('*.py')
        if path.parent not in (ROOT / 'tests' / 'docs', ROOT / 'tests' / 'architecture')  # they quote unknown names
    ]


@functools.cache
def _tree(path: Path) -> ast.AST:
    return ast.parse(path.read_text(encoding='utf-8'), str(path))
