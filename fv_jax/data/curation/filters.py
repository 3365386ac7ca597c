"""Filters: expressions over the columns of a manifest, such as `sharpness >= 30 and motion > 0.5`.

The language is a part of Python's, parsed with `ast` and never evaluated as Python:

  and, or, not, parentheses
  < <= > >= == !=, also chained: 0.5 < motion <= 40
  x in ('a.mp4', 'b.mp4'), x not in (...)
  x is None, x is not None
  + - * / and unary minus of numbers
  names of columns; numbers; texts; True, False

A comparison with a missing value is neither true nor false, as in SQL, and a clip is kept only where the expression is
true; `x is None` finds missing values. The terms that `and` joins at
the top are counted separately: a clip is dropped for the first of them that it does not fulfill.
"""

import ast
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError, did_you_mean

# A column: its values, and where they are not missing.
Column = tuple[np.ndarray, np.ndarray]
_Columns = Mapping[str, Column]
_Evaluate = Callable[[_Columns], Column]

_COMPARE = {
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
    ast.Eq: np.equal,
    ast.NotEq: np.not_equal,
}
_COMPUTE = {ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply, ast.Div: np.divide}
_LONGEST = 2000  # characters


@dataclasses.dataclass(frozen=True)
class Term:
    """A part of a filter that a clip must fulfill; text: as it is written."""

    text: str
    evaluate: _Evaluate


@dataclasses.dataclass(frozen=True)
class Filter:
    """A parsed expression.

    Attributes:
      text: the expression; '' keeps all clips.
      terms: a clip is kept if it fulfills all of them.
      names: of the columns that it needs, in alphabetical order.
    """

    text: str
    terms: tuple[Term, ...]
    names: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> 'Filter':
        """Parses an expression. Raises ConfigError with the part that is not of the language."""
        require(len(text) <= _LONGEST, f'{len(text)} characters: must be at most {_LONGEST}', ConfigError)
        if not text.strip():
            return cls('', (), ())
        wrong = f'{text!r}: is not an expression such as: sharpness >= 30 and motion > 0.5'
        try:
            # In parentheses an expression may have several lines.
            body = ast.parse(f'({text}\n)', mode='eval').body
            parts = body.values if isinstance(body, ast.BoolOp) and isinstance(body.op, ast.And) else [body]
            terms = tuple(Term(ast.unparse(part), _logical(part)) for part in parts)
        except ConfigError:
            raise
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ConfigError(wrong) from None
        names = {node.id for node in ast.walk(body) if isinstance(node, ast.Name)}
        return cls(text, terms, tuple(sorted(names)))

    def check_names(self, known: Sequence[str]) -> None:
        """Raises ConfigError for a column that is not known, with the nearest name."""
        for name in self.names:
            require(name in known, f'{name}: no such column; {did_you_mean(name, known)}', ConfigError)

    def fulfilled(self, columns: Mapping[str, Sequence[Any] | np.ndarray], count: int) -> np.ndarray:
        """Finds which terms each clip fulfills.

        Args:
          columns: the values of every name in `names`; None or NaN is a missing value.
          count: the number of clips.

        Returns:
          bool (terms, count).

        Raises:
          ConfigError: a column does not exist, or is compared with a value of another type.
        """
        self.check_names(list(columns))
        given = {name: _column(columns[name]) for name in self.names}
        found = np.empty((len(self.terms), count), bool)
        for row, term in zip(found, self.terms, strict=True):
            try:
                value, present = term.evaluate(given)
            except (TypeError, np.exceptions.DTypePromotionError):
                raise ConfigError(f'{term.text}: compares or computes with values of different types') from None
            row[:] = value & present
        return found


def first_unfulfilled(fulfilled: np.ndarray) -> np.ndarray:
    """Returns the first term that each clip does not fulfill, int16 (count,), -1 for none.

    Args:
      fulfilled: bool (terms, count).
    """
    found = np.full(fulfilled.shape[1], -1, np.int16)
    for number, row in enumerate(fulfilled):
        found[(found < 0) & ~row] = number
    return found


def _column(values: Sequence[Any] | np.ndarray) -> Column:
    """Returns values and where they are present; the values of missing ones are of no meaning."""
    array = values if isinstance(values, np.ndarray) else np.array(values, object)
    if array.dtype != object:
        return array, ~np.isnan(array) if array.dtype.kind == 'f' else np.ones(len(array), bool)
    present = np.array([value is not None and value == value for value in array], bool)  # NaN is not itself
    kept = array[present].tolist()
    if all(isinstance(value, str) for value in kept):
        filled = np.full(len(array), '', object)
        filled[present] = kept
        return filled, present
    filled = np.zeros(len(array), np.asarray(kept).dtype if kept else float)
    filled[present] = kept
    return filled, present


def _logical(node: ast.expr) -> _Evaluate:
    """Returns a function that computes where a condition is fulfilled, and where it is not missing."""
    match node:
        case ast.BoolOp():
            return _join([_logical(value) for value in node.values], isinstance(node.op, ast.And))
        case ast.UnaryOp(op=ast.Not()):
            inner = _logical(node.operand)
            return lambda columns: _negate(*inner(columns))
        case ast.Compare():
            sides = [node.left, *node.comparators]
            pairs = zip(sides, node.ops, sides[1:], strict=False)
            return _join([_comparison(a, op, b) for a, op, b in pairs], all_of=True)
        case ast.Constant(value=bool()):
            return lambda columns: (np.bool_(node.value), np.bool_(True))
    raise ConfigError(f'{ast.unparse(node)}: is not a condition; compare it, as in: motion > 0.5')


def _join(parts: Sequence[_Evaluate], all_of: bool) -> _Evaluate:
    """Joins conditions by `and` or `or` in three-valued logic: one false part decides `and`, one true part `or`."""
    some, every = (np.logical_or, np.logical_and) if all_of else (np.logical_and, np.logical_or)

    def evaluate(columns: _Columns) -> Column:
        found = [part(columns) for part in parts]
        is_true = functools.reduce(every, [value & present for value, present in found])
        is_false = functools.reduce(some, [~value & present for value, present in found])
        return is_true, is_true | is_false

    return evaluate


def _negate(value: np.ndarray, present: np.ndarray) -> Column:
    return ~value, present


def _comparison(left: ast.expr, op: ast.cmpop, right: ast.expr) -> _Evaluate:
    if isinstance(op, ast.Is | ast.IsNot):
        is_none = isinstance(right, ast.Constant) and right.value is None
        require(is_none, f'{ast.unparse(right)}: after `is` must be None; use ==', ConfigError)
        value, wanted = _value(left), isinstance(op, ast.IsNot)
        return lambda columns: (value(columns)[1] == wanted, np.bool_(True))
    if isinstance(op, ast.In | ast.NotIn):
        return _membership(left, right, isinstance(op, ast.In))
    first, second, compare = _value(left), _value(right), _COMPARE[type(op)]

    def evaluate(columns: _Columns) -> Column:
        (a, a_present), (b, b_present) = first(columns), second(columns)
        if (a.dtype.kind in 'OU') != (b.dtype.kind in 'OU'):
            raise TypeError
        return np.asarray(compare(a, b), bool), a_present & b_present

    return evaluate


def _membership(left: ast.expr, right: ast.expr, wanted: bool) -> _Evaluate:
    values = right.elts if isinstance(right, ast.Tuple | ast.List | ast.Set) else None
    listed = values and all(isinstance(value, ast.Constant) for value in values)
    require(listed, f'{ast.unparse(right)}: after `in` must be values in parentheses, as (1, 2)', ConfigError)
    value, members = _value(left), [each.value for each in values]

    def evaluate(columns: _Columns) -> Column:
        found, present = value(columns)
        return np.isin(found.astype(object) if found.dtype.kind in 'OU' else found, members) == wanted, present

    return evaluate


def _value(node: ast.expr) -> _Evaluate:
    """Returns a function that computes a value for each clip, and where it is not missing."""
    match node:
        case ast.Name():
            return lambda columns: columns[node.id]
        case ast.Constant(value=int() | float() | str()):
            constant = np.array(node.value, object if isinstance(node.value, str) else None)
            return lambda columns: (constant, np.bool_(True))
        case ast.UnaryOp(op=ast.USub()):
            inner = _value(node.operand)
            return lambda columns: (lambda value, present: (-value, present))(*inner(columns))
        case ast.BinOp() if type(node.op) in _COMPUTE:
            first, second, compute = _value(node.left), _value(node.right), _COMPUTE[type(node.op)]
            return lambda columns: _compute(compute, first(columns), second(columns))
    raise ConfigError(f'{ast.unparse(node)}: is not a part of filters; they have columns, numbers, texts and + - * /')


def _compute(compute: np.ufunc, left: Column, right: Column) -> Column:
    with np.errstate(divide='ignore', invalid='ignore', over='ignore'):
        value = compute(left[0], right[0])
    return value, left[1] & right[1] & np.isfinite(value)
