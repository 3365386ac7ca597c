"""Parses the Python blocks of the guides and resolves what they name of fv_jax, without running them."""

import ast
import dataclasses
import importlib
import inspect
import types
import typing

PACKAGE = 'fv_jax'


class _Unknown:
    """Stands for a value of which nothing is known; nothing about it is checked."""


@dataclasses.dataclass(frozen=True)
class _Instance:
    cls: type


def check_python(code: str) -> None:
    """Parses a block and resolves its names, as far as functions say what they return.

    Raises:
      ValueError: a syntax error, a module, an attribute or a parameter that does not exist, or a missing argument.
    """
    try:
        tree = ast.parse(code)
    except SyntaxError as error:
        raise ValueError(f'line {error.lineno}: {error.msg}') from None
    known: dict[str, object] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            known |= _imported(statement)
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Attribute | ast.Call):
                _resolve(node, known)
        if isinstance(statement, ast.Assign):
            for target in statement.targets:
                if isinstance(target, ast.Name):
                    known[target.id] = _resolve(statement.value, known)


def _imported(node: ast.Import | ast.ImportFrom) -> dict[str, object]:
    module = node.module or '' if isinstance(node, ast.ImportFrom) else ''
    found = {}
    for alias in node.names:
        name = f'{module}.{alias.name}'.lstrip('.')
        if name.partition('.')[0] != PACKAGE:
            continue
        found[(alias.asname or alias.name).partition('.')[0]] = find(name if module or alias.asname else PACKAGE)
        find(name)
    return found


def find(name: str) -> object:
    """The module, class, function or value of a dotted name. Raises ValueError."""
    parts = name.split('.')
    for length in range(len(parts), 0, -1):
        try:
            value: object = importlib.import_module('.'.join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            value = _attribute(value, part)
        return value
    raise ValueError(f'{name}: does not exist')


def _attribute(owner: object, name: str) -> object:
    if isinstance(owner, _Unknown):
        return owner
    if isinstance(owner, _Instance):
        hints = typing.get_type_hints(owner.cls)
        if name in hints:
            return _instance_of(hints[name])
        value = getattr(owner.cls, name, None)
        if isinstance(value, property):
            return _instance_of(typing.get_type_hints(value.fget).get('return'))
        owner = owner.cls
    if not hasattr(owner, name):
        raise ValueError(f'{getattr(owner, "__name__", owner)} has no attribute {name}')
    return getattr(owner, name)


def _instance_of(hint: object) -> object:
    """A value of an annotated type; of a union, of the first class in it."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    classes = [option for option in options if isinstance(option, type)]
    return _Instance(classes[0]) if classes else _Unknown()


def _resolve(node: ast.expr, known: dict[str, object]) -> object:
    if isinstance(node, ast.Name):
        return known.get(node.id, _Unknown())
    if isinstance(node, ast.Attribute):
        return _attribute(_resolve(node.value, known), node.attr)
    if not isinstance(node, ast.Call):
        return _Unknown()
    function = _resolve(node.func, known)
    if not callable(function):
        return _Unknown()
    of_instance = isinstance(node.func, ast.Attribute) and isinstance(_resolve(node.func.value, known), _Instance)
    arguments = [None] * (len(node.args) + (of_instance and inspect.isfunction(function)))
    try:
        inspect.signature(function).bind(*arguments, **{keyword.arg: None for keyword in node.keywords})
    except TypeError as error:
        raise ValueError(f'{ast.unparse(node)}: {error}') from None
    if isinstance(function, type):
        return _Instance(function)
    return _instance_of(typing.get_type_hints(function).get('return'))
