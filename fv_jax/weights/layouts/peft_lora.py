"""LoRA as PEFT and diffusers name it (arXiv:2106.09685): one safetensors file for the transformer of CogVideoX.

    transformer.transformer_blocks.{i}.MODULE.lora_A.weight    A (R, in)
    transformer.transformer_blocks.{i}.MODULE.lora_B.weight    B (out, R)
    W_eff = W + (alpha / R) B A

Ours of q | k | v are three modules. Ours of the twelve modulations is two modules, of attention and of the MLP
(`diffusers_keys`), with the same A and a half of B each.

Written, B is multiplied by our alpha / rank, so that alpha is R: the convention of files that state no alpha, which
every reader shares. Read, alpha / R of each module is multiplied into B too; it is taken from the file's metadata
(diffusers) or adapter_config.json (PEFT), and is 1 without. A network of ours has LoRA of one rank: smaller ones are
filled with zeros, and the two modules of the modulations, if their A differ, take the sum of their ranks.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.core.files import parse_json
from fv_jax.core.paths import StoragePath
from fv_jax.models.dit import DiTConfig
from fv_jax.models.lora import LoRAConfig, Target
from fv_jax.models.vae import VAEConfig
from fv_jax.weights.formats import safetensors_file
from fv_jax.weights.formats.torch_zip import TensorSpec
from fv_jax.weights.layouts.key_table import KeyMismatchError, Tensors
from fv_jax.weights.parameters import Parameters, stacked_parameter

NAME = 'pytorch_lora_weights.safetensors'  # of diffusers
ADAPTER_CONFIG = 'adapter_config.json'  # of PEFT, beside adapter_model.safetensors
METADATA = 'lora_adapter_metadata'  # of diffusers, in the file
PREFIX = 'transformer.'
_PREFIXES = ('base_model.model.', PREFIX, 'diffusion_model.')
_KEY = re.compile(r'transformer_blocks\.(\d+)\.(.+)\.lora_([AB])(?:\.default)?\.weight')


@dataclasses.dataclass(frozen=True)
class Linear:
    """A linear of every block, and its modules in diffusers.

    Attributes:
      path: in our network.
      modules: name -> (part of ours, pieces of its outputs), for `pieces` equal pieces.
      pieces: number of pieces that the outputs of a part are divided into.
    """

    target: Target
    path: str
    modules: Mapping[str, tuple[int, tuple[int, ...]]]
    pieces: int = 1

    def sizes(self, config: DiTConfig) -> tuple[int, int, tuple[int, ...]]:
        """Returns (inputs, parts, outputs of a part)."""
        dim = config.embed_dim
        return {
            'blocks.attention.qkv': (dim, 3, (dim,)),
            'blocks.attention.out': (dim, 1, (dim,)),
            'blocks.modulation': (config.cond_dim, 1, (12, dim)),
            'blocks.mlp.hidden': (dim, 1, (config.mlp_dim,)),
            'blocks.mlp.out': (config.mlp_dim, 1, (dim,)),
        }[self.path]

    def rows(self, module: str, outputs: int) -> np.ndarray:
        """Returns the indices of a module's outputs among ours."""
        size = outputs // self.pieces
        return np.concatenate([np.arange(piece * size, (piece + 1) * size) for piece in self.modules[module][1]])


LINEARS = (
    Linear('qkv', 'blocks.attention.qkv', {f'attn1.to_{name}': (i, (0,)) for i, name in enumerate('qkv')}),
    Linear('attention_out', 'blocks.attention.out', {'attn1.to_out.0': (0, (0,))}),
    Linear('modulation', 'blocks.modulation', {'norm1.linear': (0, (0, 2)), 'norm2.linear': (0, (1, 3))}, 4),
    Linear('mlp', 'blocks.mlp.hidden', {'ff.net.0.proj': (0, (0,))}),
    Linear('mlp', 'blocks.mlp.out', {'ff.net.2': (0, (0,))}),
)
_LINEAR_OF = {module: linear for linear in LINEARS for module in linear.modules}


# --- writing ---


def check(config: DiTConfig | VAEConfig) -> None:
    """Raises ConfigError for a network without LoRA."""
    lora = getattr(config, 'lora', None)
    require(lora is not None, '--format=peft: the network has no LoRA (network.lora), or it was merged', ConfigError)


def describe(config: DiTConfig) -> str:
    """Returns rank and modules for a model card."""
    modules = [module for linear in _linears(config) for module in linear.modules]
    return f'rank {config.lora.rank}, on {", ".join(f"`{module}`" for module in modules)}'


def write(path: StoragePath, values: Parameters, config: DiTConfig) -> None:
    """Writes the LoRA of a network.

    Args:
      path: the file.
      values: the parameters of the network.
      config: of the network, which has LoRA.
    """
    shapes = {}
    for linear in _linears(config):
        inputs, _, outputs = linear.sizes(config)
        dtype = values[f'{linear.path}.lora.a'].dtype
        for i in range(config.num_layers):
            for module in linear.modules:
                rows = len(linear.rows(module, math.prod(outputs)))
                a, b = (f'{PREFIX}transformer_blocks.{i}.{module}.lora_{side}.weight' for side in 'AB')
                shapes[a] = TensorSpec((config.lora.rank, inputs), dtype)
                shapes[b] = TensorSpec((rows, config.lora.rank), dtype)
    safetensors_file.write(path, {'format': 'pt'}, shapes, _tensors(values, config))


def _linears(config: DiTConfig) -> list[Linear]:
    return [linear for linear in LINEARS if config.lora_on(linear.target)]


def _tensors(values: Parameters, config: DiTConfig) -> Iterator[tuple[str, np.ndarray]]:
    rank, scale = config.lora.rank, np.float32(config.lora.scale)
    for linear in _linears(config):
        a_NIPR, b = (values[f'{linear.path}.lora.{side}'].numpy() for side in 'ab')
        b_NPRO = b.reshape(*b.shape[:2], rank, -1)
        for i in range(config.num_layers):
            for module, (part, _) in linear.modules.items():
                key = f'{PREFIX}transformer_blocks.{i}.{module}'
                rows = linear.rows(module, b_NPRO.shape[-1])
                scaled = scale * b_NPRO[i, part][:, rows].T.astype(np.float32)
                yield f'{key}.lora_A.weight', np.ascontiguousarray(a_NIPR[i, :, part].T)
                yield f'{key}.lora_B.weight', np.ascontiguousarray(scaled, b.dtype)


# --- reading ---


@dataclasses.dataclass(frozen=True)
class _Pair:
    """The matrices of a module of one block, and what their product is multiplied by."""

    a: Any
    b: Any
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def scaled_b(self) -> np.ndarray:
        return np.float32(self.scale) * self.b.numpy().astype(np.float32)


_Pairs = Mapping[tuple[int, str], _Pair]  # (block, module)


def add(path: StoragePath, values: Parameters, config: DiTConfig) -> tuple[Parameters, DiTConfig]:
    """Adds the LoRA of a file to a network without.

    Args:
      path: the file, or a folder with a file of diffusers or PEFT.
      values: the parameters of the network.
      config: of the network.

    Returns:
      The parameters and the configuration of the network with LoRA, each matrix read when it is used.

    Raises:
      FileNotFoundError: no such file.
      KeyMismatchError: modules or shapes that are not those of the network's blocks, each in a line.
      ValueError: another kind of adapter, or no LoRA.
    """
    assert config.lora is None, 'merge LoRA first'
    file = _find(path)
    tensors, metadata = safetensors_file.read(file)
    pairs = _check(file, tensors, _settings(file, metadata), config)
    linears = [linear for linear in LINEARS if any(module in linear.modules for _, module in pairs)]
    rank = max(_rank(linear, pairs, i) for linear in linears for i in range(config.num_layers))
    targets = tuple(dict.fromkeys(linear.target for linear in linears))
    lora = LoRAConfig(rank=rank, alpha=float(rank), targets=targets)
    added = dataclasses.replace(config, lora=lora)
    matrices = {}
    for linear in _linears(added):
        matrices |= _parameters(linear, pairs, added)
    return {**values, **matrices}, added


def _find(path: StoragePath) -> StoragePath:
    if not path.is_dir():
        return path
    found = [path / name for name in (NAME, 'adapter_model.safetensors') if (path / name).is_file()]
    require(found, f'{path}: has neither {NAME} nor adapter_model.safetensors', FileNotFoundError)
    return found[0]


def _settings(file: StoragePath, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Reads the adapter's configuration: that in the file, or else that beside it; {} without one."""
    beside = file.parent / ADAPTER_CONFIG
    if METADATA in metadata:
        text = metadata[METADATA]
    elif file.name == 'adapter_model.safetensors' and beside.is_file():
        text = beside.read_text()
    else:
        return {}
    try:
        found = parse_json(text)
    except ValueError:
        found = None
    require(isinstance(found, dict), f'{file}: its {METADATA} or {ADAPTER_CONFIG} is not a JSON object')
    settings = {name.removeprefix(PREFIX): value for name, value in found.items()}
    kind = settings.get('peft_type', 'LORA')
    wrong = f'{file}: is an adapter of the kind {kind}{", with DoRA" if settings.get("use_dora") else ""}; must be LoRA'
    require(kind == 'LORA' and not settings.get('use_dora'), wrong)
    return settings


def _check(file: StoragePath, tensors: Tensors, settings: Mapping[str, Any], config: DiTConfig) -> _Pairs:
    """Pairs the tensors of a file. Raises KeyMismatchError for those that do not fit the network."""
    found: dict[tuple[int, str], dict[str, str]] = {}
    alphas, problems = {}, []
    for key, tensor in tensors.items():
        name = _strip(key)
        if name.endswith('.alpha'):
            alphas[name.removesuffix('.alpha')] = float(tensor.numpy().reshape(-1)[0])
        elif (match := _KEY.fullmatch(name)) and match[2] in _LINEAR_OF and int(match[1]) < config.num_layers:
            found.setdefault((int(match[1]), match[2]), {})[match[3]] = key
        else:
            problems.append(f'{key}: no linear of the {config.num_layers} blocks')
    pairs = {}
    for (i, module), keys in found.items():
        if keys.keys() != {'A', 'B'}:
            problems.append(f'{next(iter(keys.values()))}: without its lora_{"B" if "A" in keys else "A"}')
            continue
        a, b = tensors[keys['A']], tensors[keys['B']]
        inputs, _, outputs = _LINEAR_OF[module].sizes(config)
        wanted = inputs, len(_LINEAR_OF[module].rows(module, math.prod(outputs)))
        if len(a.shape) != 2 or len(b.shape) != 2 or (a.shape[1], b.shape[0]) != wanted or a.shape[0] != b.shape[1]:
            problems.append(f'{keys["A"]}: {a.shape} and {b.shape}, expected (R, {wanted[0]}) and ({wanted[1]}, R)')
            continue
        name = f'transformer_blocks.{i}.{module}'
        pairs[i, module] = _Pair(a, b, _scale(name, a.shape[0], settings, alphas))
    if problems:
        raise KeyMismatchError(f'{file}: its LoRA does not fit the network\n  ' + '\n  '.join(sorted(problems)))
    require(pairs, f'{file}: has no LoRA of transformer blocks')
    return pairs


def _strip(key: str) -> str:
    for prefix in _PREFIXES:
        key = key.removeprefix(prefix)
    return key


def _scale(name: str, rank: int, settings: Mapping[str, Any], alphas: Mapping[str, float]) -> float:
    """Returns alpha / R of a module; the patterns of PEFT match the end of its name."""
    alpha = settings.get('lora_alpha')
    for pattern, value in (settings.get('alpha_pattern') or {}).items():
        if re.fullmatch(rf'(.*\.)?({pattern})', name):
            alpha = value
    alpha = alphas.get(name, alpha)
    if alpha is None:
        return 1.0
    return alpha / math.sqrt(rank) if settings.get('use_rslora') else alpha / rank


def _shares_a(linear: Linear, pairs: _Pairs, i: int) -> bool:
    """Returns whether the modules of a part of ours have the same A in a block."""
    found = [pairs[i, module] for module in linear.modules if (i, module) in pairs]
    first = found[0].a.numpy()
    return all(pair.a.shape == first.shape and np.array_equal(pair.a.numpy(), first) for pair in found)


def _rank(linear: Linear, pairs: _Pairs, i: int) -> int:
    """Returns the rank that the modules of a linear need in a block."""
    found = [pairs[i, module].rank for module in linear.modules if (i, module) in pairs]
    if not found:
        return 0
    return sum(found) if linear.pieces > 1 and not _shares_a(linear, pairs, i) else max(found)


def _parameters(linear: Linear, pairs: _Pairs, config: DiTConfig) -> Parameters:
    """Makes our matrices of a linear, block by block."""
    (inputs, parts, outputs), rank, layers = linear.sizes(config), config.lora.rank, config.num_layers

    def matrices(i: int) -> tuple[np.ndarray, np.ndarray]:
        a_IPR, b_PRO = (
            np.zeros((inputs, parts, rank), np.float32),
            np.zeros((parts, rank, math.prod(outputs)), np.float32),
        )
        present = [module for module in linear.modules if (i, module) in pairs]
        shared = linear.pieces == 1 or not present or _shares_a(linear, pairs, i)
        start = 0
        for module in present:
            pair, part = pairs[i, module], linear.modules[module][0]
            columns = np.arange(start, start + pair.rank)
            a_IPR[:, part, columns] = pair.a.numpy().T
            b_PRO[part][np.ix_(columns, linear.rows(module, b_PRO.shape[-1]))] = pair.scaled_b().T
            start += 0 if shared else pair.rank
        return a_IPR, b_PRO.reshape(parts, rank, *outputs)

    shapes = (layers, inputs, parts, rank), (layers, parts, rank, *outputs)
    dtype = np.dtype(np.float32)
    return {
        f'{linear.path}.lora.{side}': stacked_parameter(lambda i, k=k: matrices(i)[k], shapes[k], dtype)
        for k, side in enumerate('ab')
    }
