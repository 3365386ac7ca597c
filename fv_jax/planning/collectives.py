"""Bytes that the collectives of a compiled program send between devices, and its cycles, parsed from its HLO text.

With n devices in a group and b bytes of an instruction's result on each, a device sends

    all-gather          (n - 1)/n b             its shard, to each of the other chips of a ring
    reduce-scatter      (n - 1) b               b is the shard of the result
    all-reduce          2 (n - 1)/n b           a reduce-scatter, then an all-gather
    all-to-all          (n - 1)/n b
    collective-permute  b                       if it is a source

Bytes are those of the buffer, in which a TPU pads the last two dimensions of an array to whole tiles.

An instruction in the body of a loop is multiplied by the trip count: `while (i < limit)` with a constant start, step
and limit, which is how a scan is compiled. Any other loop counts once and is named in `unknown_loops`.
"""

import dataclasses
import math
import operator
import re

import numpy as np

from fv_jax.planning.replica_groups import parse_groups, parse_pairs

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
_BITS = {'pred': 8, 'bf16': 16} | {f'{kind}{bits}': bits for kind in 'suf' for bits in (4, 8, 16, 32, 64)}

_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'^\s+(ROOT )?%?([\w.\-]+) = (.*)$')
_OPCODE = re.compile(r'(?:^|[\s)}\]])([a-z][a-z0-9\-]*)\(')
_SHAPE = re.compile(r'\b([a-z]+[0-9]*)\[([\d,]*)\](?:\{([\d,]*)(?::T\(([\d,]+)\))?[^}]*\})?')
_CALLED = re.compile(r'(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)')
# v7x gives collectives to its SparseCores, as the called computations of custom calls.
_BRANCHES = re.compile(r'(?:branch|called)_computations=\{([^}]*)\}')
_OPERAND = re.compile(r'%([\w.\-]+)')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_NO_ESTIMATE = 2**63 - 1  # of some instructions on v7x


@dataclasses.dataclass(frozen=True)
class CollectiveTraffic:
    """The collectives of one run of a program.

    Attributes:
      sent_bytes: that a chip sends, by kind of collective.
      counts: of executed instructions, by kind of collective.
      unknown_loops: the names of loops of unknown trip count, whose bodies were counted once.
      package_bytes: of the sent ones, those to other devices of the same package.
      link_bytes: those that go over a link between packages; twice what a device sends where two of a package share it.
    """

    sent_bytes: dict[str, float]
    counts: dict[str, int]
    unknown_loops: tuple[str, ...] = ()
    package_bytes: float = 0.0
    link_bytes: float = 0.0

    @property
    def total_bytes(self) -> float:
        return sum(self.sent_bytes.values())


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    opcode: str
    result: str
    rest: str  # operands and attributes
    is_root: bool = False

    @property
    def operands(self) -> list[str]:
        """The names of the operands."""
        return _OPERAND.findall(self.rest[: _find_closing_parenthesis(self.rest)])

    def attribute(self, name: str) -> str | None:
        """Returns the value of an attribute such as `body=NAME`; None without it."""
        match = re.search(rf'\b{name}=%?([\w.\-]+)', self.rest)
        return match.group(1) if match else None


Computation = dict[str, _Instruction]


def parse_collectives(text: str, num_devices: int, package_devices: int = 1) -> CollectiveTraffic:
    """Sums what a device sends in one run of a program.

    Args:
      text: of the compiled program, `compiled.as_text()`.
      num_devices: that it was compiled for; a collective without groups is among all of them.
      package_devices: neighbouring devices of the program that are one package.
    """
    computations, entry = _parse_computations(text)
    run_counts, unknown = _count_runs(computations, entry)
    sent, counts = dict.fromkeys(KINDS, 0.0), dict.fromkeys(KINDS, 0)
    # A collective that is overlapped with other work is split into a chain of steps, each an instruction of its own:
    # the collective is complete as often as the step that runs least often.
    chains: dict[str, tuple[int, str, _Instruction]] = {}
    for name, instructions in computations.items():
        for instruction in instructions.values():
            kind, runs = instruction.opcode.removesuffix('-start'), run_counts.get(name, 0)
            if kind in KINDS and runs:
                chain = re.search(r'chain_id="(\d+)"', instruction.rest)
                key = f'chain {chain.group(1)}' if chain else f'{name} {instruction.name}'
                step = runs, kind, instruction
                chains[key] = min(chains.get(key, step), step, key=operator.itemgetter(0))
    package_bytes = link_bytes = 0.0
    for runs, kind, instruction in chains.values():
        devices = _devices(kind, instruction, num_devices)
        size = runs * _count_sent_bytes(kind, instruction, devices.shape[1])
        sharing = _count_sharing(kind, devices // package_devices)
        sent[kind] += size
        counts[kind] += runs
        package_bytes += 0 if sharing else size
        link_bytes += sharing * size
    return CollectiveTraffic(
        {kind: size for kind, size in sent.items() if counts[kind]},
        {kind: count for kind, count in counts.items() if count},
        tuple(unknown),
        package_bytes,
        link_bytes,
    )


def sum_estimated_cycles(text: str) -> float:
    """Sums the cycles of one run of a program, by the compiler's estimate, which it attaches to most instructions.

    It has none for custom calls: kernels of our own are not counted, nor are collectives, nor, on v7x, some fusions.

    Args:
      text: of the compiled program, `compiled.as_text()`.
    """
    computations, entry = _parse_computations(text)
    run_counts, _ = _count_runs(computations, entry)
    return float(
        sum(
            run_counts.get(name, 0) * int(cycles)
            for name, instructions in computations.items()
            for instruction in instructions.values()
            for cycles in _CYCLES.findall(instruction.rest)
            if int(cycles) < _NO_ESTIMATE
        )
    )


def _parse_computations(text: str) -> tuple[dict[str, Computation], str]:
    computations: dict[str, Computation] = {}
    entry, current = '', None
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = computations.setdefault(head.group(2), {})
            entry = head.group(2) if head.group(1) else entry
        elif line == '}':  # attributes may contain line breaks
            current = None
        elif current is not None and (match := _INSTRUCTION.match(line)):
            value = match.group(3)
            if opcode := _OPCODE.search(value):
                parts = opcode.group(1), value[: opcode.start(1)], value[opcode.end() :]
                current[match.group(2)] = _Instruction(match.group(2), *parts, is_root=bool(match.group(1)))
    return computations, entry


def _count_runs(computations: dict[str, Computation], entry: str) -> tuple[dict[str, int], list[str]]:
    """Counts how often each computation runs when the entry runs once; returns also the loops of unknown count."""
    runs: dict[str, int] = {}
    unknown: list[str] = []

    def visit(name: str, count: int) -> None:
        runs[name] = runs.get(name, 0) + count
        for instruction in computations.get(name, {}).values():
            called = _CALLED.findall(instruction.rest)
            for branches in _BRANCHES.findall(instruction.rest):
                called += _OPERAND.findall(branches)
            trips = 1
            if instruction.opcode == 'while':
                trips = _find_trip_count(computations, computations[name], instruction)
                if trips is None:
                    unknown.append(instruction.name)
                    trips = 1
            for other in called:
                visit(other, count * trips)

    visit(entry, 1)
    return runs, unknown


def _find_trip_count(computations: dict[str, Computation], caller: Computation, loop: _Instruction) -> int | None:
    """Computes how often a loop's body runs, from the start, step and limit of its counter; None if unknown."""
    condition = computations.get(loop.attribute('condition') or '', {})
    body = computations.get(loop.attribute('body') or '', {})
    test = next((i for i in condition.values() if i.opcode == 'compare'), None)
    if test is None or test.attribute('direction') != 'LT' or len(test.operands) != 2:
        return None
    counter = condition.get(test.operands[0])
    if counter is None or counter.opcode != 'get-tuple-element':
        return None
    index = int(counter.attribute('index'))
    limit = _find_constant(condition, test.operands[1])
    initial, result = caller.get(loop.operands[0]), next((i for i in body.values() if i.is_root), None)
    if limit is None or initial is None or initial.opcode != 'tuple' or result is None or result.opcode != 'tuple':
        return None
    start = _find_constant(caller, initial.operands[index])
    step = _find_step(body, result.operands[index])
    return None if start is None or not step else max(-(-(limit - start) // step), 0)


def _find_constant(computation: Computation, name: str) -> int | None:
    """Finds the value of an integer constant, through copies; None if it is not constant."""
    instruction = computation.get(name)
    while instruction is not None and instruction.opcode in ('copy', 'bitcast', 'copy-done', 'copy-start'):
        instruction = computation.get(instruction.operands[0])
    if instruction is None or instruction.opcode != 'constant':
        return None
    match = re.match(r'(-?\d+)\)', instruction.rest)
    return int(match.group(1)) if match else None


def _find_step(body: Computation, name: str) -> int | None:
    """Finds the constant that an `add` adds to the counter; None if it adds none."""
    instruction = body.get(name)
    while instruction is not None and instruction.opcode in ('copy', 'bitcast'):
        instruction = body.get(instruction.operands[0])
    if instruction is None or instruction.opcode != 'add':
        return None
    return next((c for c in (_find_constant(body, o) for o in instruction.operands) if c is not None), None)


def _devices(kind: str, instruction: _Instruction, num_devices: int) -> np.ndarray:
    """Returns the devices of each group of a collective; of a permutation, its pairs."""
    is_permutation = kind == 'collective-permute'
    return parse_pairs(instruction.rest) if is_permutation else parse_groups(instruction.rest, num_devices)


def _count_sharing(kind: str, packages: np.ndarray) -> int:
    """Counts the devices of a package that send over its links at once.

    Args:
      kind: of the collective.
      packages: of the devices of each group (groups, devices of a group).

    Returns:
      0 where all groups are inside of packages; 1 where a package is in one group, for on a ring one of its devices
      sends to the next package.
    """
    leaving = packages[(packages != packages[:, :1]).any(axis=1)]
    if not len(leaving):
        return 0
    senders = leaving[:, 0] if kind == 'collective-permute' else np.concatenate([np.unique(row) for row in leaving])
    return int(np.bincount(senders).max())


def _count_sent_bytes(kind: str, instruction: _Instruction, n: int) -> float:
    size = _result_bytes(instruction)
    if kind == 'collective-permute':
        return size
    factor = {'all-reduce': 2 * (n - 1) / n, 'reduce-scatter': n - 1}.get(kind, (n - 1) / n)
    return factor * size


def _result_bytes(instruction: _Instruction) -> float:
    """Counts the bytes of the result. That of a `-start` is a tuple: its operands, its results, then counters."""
    sizes = [_buffer_bytes(*shape) for shape in _SHAPE.findall(instruction.result)]
    if not instruction.opcode.endswith('-start') or not instruction.result.startswith('('):
        return sum(sizes)
    operands = len(instruction.operands)
    return sum(sizes[operands : 2 * operands])


def _buffer_bytes(dtype: str, dims: str, minor_to_major: str, tile: str) -> float:
    """Counts the bytes of an array: of `bf16[4,100,64]{2,1,0:T(8,128)}` those of 4 x 104 x 128 values."""
    sizes, order, tiles = (list(map(int, filter(None, part.split(',')))) for part in (dims, minor_to_major, tile))
    for dim, size in zip(order, reversed(tiles), strict=False):
        sizes[dim] = -(-sizes[dim] // size) * size
    return math.prod(sizes) * _BITS.get(dtype, 0) / 8


def _find_closing_parenthesis(text: str) -> int:
    """Finds the parenthesis that closes the one before `text`."""
    depth = 0
    for i, character in enumerate(text):
        depth += {'(': 1, ')': -1}.get(character, 0)
        if depth < 0:
            return i
    return len(text)
