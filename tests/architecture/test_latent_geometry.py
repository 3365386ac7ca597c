"""The factors of the VAE stand in its config, and nowhere else: read from the source by `ast`.

Whoever needs the size of a clip's latents, a valid length or a number of tokens is handed the VAE's `LatentSpec`. What
is refused in all other files:

  names     a factor's name bound to a number: a constant, a field's or an argument's default, a keyword of a call
  formulas  1 + (F - 1) // t and 1 + t * (F - 1): frames and latent frames, whatever the factor is called
  numbers   a multiple or a division of frames or pixels by 4, 8, 16, 17 or 32
  texts     the official VAE's lengths and multiples as if they were everyone's: "8k + 1", "H / 8", "multiples of 16"
"""

import ast
import pathlib
import re
from collections.abc import Iterator

import pytest

from tests.architecture.test_imports import PACKAGE, ROOT, planted, python_files

# The spec itself; the VAE's config; the DiT's, which says what it makes a patch of.
HOMES = ('fv_jax/core/latent_spec.py', 'fv_jax/models/vae.py', 'fv_jax/models/dit.py')
_KINDS = ('factor', 'levels', 'stride', 'ratio', 'compression')
NAMES = {'spatial', 'temporal', 'frame_step', 'multiple', 'pixel_multiple', 'patch', 'patch_size', 'latent_channels'}
NAMES |= {f'{what}_{kind}' for what in ('spatial', 'temporal', 'latent', 'vae') for kind in _KINDS}
FACTORS = {4, 8, 16, 17, 32}
FRAMES = re.compile(r'frames?|length|latents?|^[fF]$', re.IGNORECASE)
MULTIPLIED = re.compile(r'frames?|height|width|pixels|columns|video', re.IGNORECASE)
DIVIDED = re.compile(rf'{MULTIPLIED.pattern}|sides?', re.IGNORECASE)  # 4 * side is a slice's of TPUs
TEXTS = re.compile(
    r"""\b8\s?k\s?\+\s?1 | \b1\s?\+\s?8\s?k | \b4\s?F\s?-\s?3 | \bF\s?-\s?1\)\s?/\s?4 | \b[HW]\s?/\s?8\b
    | (height|pixels|size)\b[^.;]{0,40}\bmultiples?\ of\ (8|16|32)\b | sides\ multiples\ of""",
    re.VERBOSE | re.IGNORECASE,
)


def number(node: ast.AST | None) -> int | None:
    """The whole number above 1 that a node is."""
    value = node.value if isinstance(node, ast.Constant) else None
    return value if type(value) is int and value > 1 else None


def is_one(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int and node.value == 1


def bound_names(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """(name, value) of what a statement, a signature or a call binds."""
    if isinstance(node, ast.Assign):
        for target in node.targets:
            pairs = zip(target.elts, node.value.elts, strict=False) if _both_tuples(target, node.value) else ()
            for name, value in ((target, node.value), *pairs):
                if isinstance(name, ast.Name | ast.Attribute):
                    yield name.id if isinstance(name, ast.Name) else name.attr, value
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
        yield node.target.id, node.value
    elif isinstance(node, ast.arguments):
        positional = [*node.posonlyargs, *node.args]
        defaults = [*zip(positional[::-1], node.defaults[::-1], strict=False)]
        defaults += [*zip(node.kwonlyargs, node.kw_defaults, strict=True)]
        yield from ((argument.arg, value) for argument, value in defaults if value is not None)
    elif isinstance(node, ast.Call):
        yield from ((keyword.arg, keyword.value) for keyword in node.keywords if keyword.arg)


def _both_tuples(target: ast.AST, value: ast.AST) -> bool:
    return isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)


def is_operation(node: ast.AST, kind: type[ast.operator]) -> bool:
    return isinstance(node, ast.BinOp) and isinstance(node.op, kind)


def is_frames_formula(node: ast.AST) -> bool:
    """1 + (F - 1) // t or 1 + t * (F - 1), in any order of their terms."""
    if not is_operation(node, ast.Add) or not (is_one(node.left) or is_one(node.right)):
        return False
    rest = node.right if is_one(node.left) else node.left
    if is_operation(rest, ast.FloorDiv):
        return is_frames_less_one(rest.left)
    return is_operation(rest, ast.Mult) and (is_frames_less_one(rest.left) or is_frames_less_one(rest.right))


def is_frames_less_one(node: ast.AST) -> bool:
    return is_operation(node, ast.Sub) and is_one(node.right) and any(map(FRAMES.search, operand_names(node)))


def is_scaled_size(node: ast.AST) -> bool:
    """Frames or pixels times, by or modulo a factor that is written as a number."""
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Mult | ast.FloorDiv | ast.Mod | ast.Div):
        return False
    sizes = MULTIPLIED if isinstance(node.op, ast.Mult) else DIVIDED
    for factor, other in ((node.left, node.right), (node.right, node.left)):
        if number(factor) in FACTORS and any(map(sizes.search, operand_names(other))):
            return True
    return False


def operand_names(node: ast.AST) -> Iterator[str]:
    """The names that an operand is made of, without those of a call's arguments."""
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Attribute):
        yield node.attr
    elif isinstance(node, ast.BinOp):
        yield from (*operand_names(node.left), *operand_names(node.right))
    elif isinstance(node, ast.Subscript | ast.UnaryOp):
        yield from operand_names(node.value if isinstance(node, ast.Subscript) else node.operand)


def problems_in(text: str) -> Iterator[tuple[int, str]]:
    """(line, what is wrong)."""
    for node in ast.walk(ast.parse(text)):
        for name, value in bound_names(node):
            if name.lower().strip('_') in NAMES and number(value) is not None:
                yield value.lineno, f'{name} = {value.value} is a factor of the VAE'
        if is_frames_formula(node) or is_scaled_size(node):
            yield node.lineno, f'{ast.unparse(node)} computes sizes of latents'
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and (found := TEXTS.search(node.value)):
            yield node.lineno, f'{found[0]!r} holds for the official VAE alone'


def geometry_violations(root: pathlib.Path) -> list[str]:
    return [
        f"{path.relative_to(root)}:{line}: {problem}; ask the VAE's LatentSpec"
        for path in python_files(root, PACKAGE, 'configs')
        if path.relative_to(root).as_posix() not in HOMES
        for line, problem in problems_in(path.read_text(encoding='utf-8'))
    ]


def test_vae_factors_are_written_in_its_config_only() -> None:
    problems = geometry_violations(ROOT)
    assert not problems, '\n'.join(problems)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('SPATIAL_FACTOR = 8', 'SPATIAL_FACTOR = 8 is a factor of the VAE'),
        ('LATENT_STRIDE: int = 8', 'LATENT_STRIDE = 8'),
        ('A, TEMPORAL_LEVELS = 1, 2', 'TEMPORAL_LEVELS = 2'),
        ('class Tiling:\n    spatial: int = 8', 'spatial = 8'),
        ('def f(size, multiple=16): pass', 'multiple = 16'),
        ('def f(size, *, patch=2): pass', 'patch = 2'),
        ('check(size, multiple=16)', 'multiple = 16'),
        ('n = 1 + (frames - 1) // 4', '1 + (frames - 1) // 4 computes sizes of latents'),
        ('n = (bucket.frames - 1) // t + 1', 'computes sizes of latents'),
        ('n = 1 + t * (frames - 1)', '1 + t * (frames - 1) computes'),
        ('n = 4 * latent.frames - 3', '4 * latent.frames computes'),
        ('n = height // 8', 'height // 8 computes'),
        ('n = size.width % 16', 'size.width % 16 computes'),
        ('n = 8 * z.shape[1] if height * 8 > 3 else 0', 'height * 8 computes'),
        ("raise ValueError(f'{frames}: must be 1 or 8k + 1')", "'8k + 1' holds for the official VAE alone"),
        ('def f():\n    """H / 8 latents."""', "'H / 8' holds"),
        ("x = 'sides multiples of 16'", "'sides multiples of' holds"),
        ("x = f'--size: HEIGHTxWIDTH, multiples of 8 {y}'", 'multiples of 8'),
        ('n = side // 16', 'side // 16 computes'),
        ("x = 'a size in pixels, a multiple of 16'", 'a multiple of 16'),
    ],
)
def test_literal_vae_factor_is_found(tmp_path: pathlib.Path, text: str, message: str) -> None:
    problems = geometry_violations(planted(tmp_path, 'sampling/results.py', text))
    assert problems and message in problems[0], problems


@pytest.mark.parametrize(
    ('where', 'text'),
    [
        ('models/vae.py', 'temporal_levels: int = 2'),
        ('core/latent_spec.py', 'n = 1 + (frames - 1) // 4'),
        ('sampling/results.py', 'n = latent_spec.temporal * frames\nspatial = latent_spec.spatial'),
        ('sampling/results.py', 'n = 4 * latent_spec.num_tokens(frames, height, width)\nmultiple = 1'),
        ('diffusion/time_grids.py', 't = 1 + (shift - 1) * w\nn = num_buckets // 4\nk = 4 * side\nm = 3 * frames - 2'),
        ('text/hash_encoder.py', 'x = "dim: their width, a multiple of 8."'),
        ('sampling/results.py', '"""Officially 13 x 32 x 60."""'),
    ],
)
def test_other_numbers_are_not_reported(tmp_path: pathlib.Path, where: str, text: str) -> None:
    assert geometry_violations(planted(tmp_path, where, text)) == []
