"""What a compiled program sends between chips, read from its text (HLO).

With n chips in a group and b bytes of an instruction's result on each, a chip sends

    all-gather          (n - 1)/n b             what it holds of the result, all the way round
    reduce-scatter      (n - 1) b               b is the share that stays
    all-reduce          2 (n - 1)/n b           the two, one after the other
    all-to-all          (n - 1)/n b
    collective-permute  b                       where it is a source

An instruction in the body of a loop counts as often as the loop runs: `while (i < limit)` with a constant start, step
and limit, which is how a scan is compiled. A loop that is not of that form counts once and is named in `unknown_loops`.
"""

import dataclasses
import math
import re

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
_BITS = {'pred': 8, 'bf16': 16} | {f'{kind}{bits}': bits for kind in 'suf' for bits in (4, 8, 16, 32, 64)}

_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'^\s+(ROOT )?%?([\w.\-]+) = (.*)$')
_OPCODE = re.compile(r'(?:^|[\s)}\]])([a-z][a-z0-9\-]*)\(')
_SHAPE = re.compile(r'\b([a-z]+[0-9]*)\[([\d,]*)\]')
_CALLED = re.compile(r'(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_OPERAND = re.compile(r'%([\w.\-]+)')


@dataclasses.dataclass(frozen=True)
class Traffic:
    """sent: bytes that a chip sends, by kind. counts: how often, by kind. unknown_loops: those counted once."""

    sent: dict[str, float]
    counts: dict[str, int]
    unknown_loops: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        return sum(self.sent.values())


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    opcode: str
    result: str
    rest: str  # operands and attributes
    is_root: bool = False

    @property
    def operands(self) -> list[str]:
        return _OPERAND.findall(self.rest[: _closing(self.rest)])

    def attribute(self, name: str) -> str | None:
        found = re.search(rf'\b{name}=%?([\w.\-]+)', self.rest)
        return found.group(1) if found else None


Computation = dict[str, _Instruction]


def read_traffic(text: str, num_devices: int) -> Traffic:
    """Of a compiled program's text (`compiled.as_text()`) for so many devices."""
    computations, entry = _parse(text)
    times, unknown = _repetitions(computations, entry)
    sent, counts = dict.fromkeys(KINDS, 0.0), dict.fromkeys(KINDS, 0)
    # One that is sent in steps, beside other work, is written at each step; it is whole as often as its rarest runs.
    chains: dict[str, tuple[int, str, _Instruction]] = {}
    for name, instructions in computations.items():
        for instruction in instructions.values():
            kind, again = instruction.opcode.removesuffix('-start'), times.get(name, 0)
            if kind in KINDS and again:
                chain = re.search(r'chain_id="(\d+)"', instruction.rest)
                key = f'chain {chain.group(1)}' if chain else f'{name} {instruction.name}'
                chains[key] = min(chains.get(key, (again, kind, instruction)), (again, kind, instruction), key=_first)
    for again, kind, instruction in chains.values():
        sent[kind] += again * _sent(kind, instruction, num_devices)
        counts[kind] += again
    return Traffic(
        {kind: size for kind, size in sent.items() if counts[kind]},
        {kind: count for kind, count in counts.items() if count},
        tuple(unknown),
    )


def _first(item: tuple) -> int:
    return item[0]


def _parse(text: str) -> tuple[dict[str, Computation], str]:
    computations: dict[str, Computation] = {}
    entry, current = '', None
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = computations.setdefault(head.group(2), {})
            entry = head.group(2) if head.group(1) else entry
        elif line == '}':  # attributes may hold lines of their own
            current = None
        elif current is not None and (found := _INSTRUCTION.match(line)):
            value = found.group(3)
            if opcode := _OPCODE.search(value):
                parts = opcode.group(1), value[: opcode.start(1)], value[opcode.end() :]
                current[found.group(2)] = _Instruction(found.group(2), *parts, is_root=bool(found.group(1)))
    return computations, entry


def _repetitions(computations: dict[str, Computation], entry: str) -> tuple[dict[str, int], list[str]]:
    """How often each computation runs when the entry runs once; and the loops whose count is not known."""
    times: dict[str, int] = {}
    unknown: list[str] = []

    def visit(name: str, count: int) -> None:
        times[name] = times.get(name, 0) + count
        for instruction in computations.get(name, {}).values():
            called = _CALLED.findall(instruction.rest)
            for branches in _BRANCHES.findall(instruction.rest):
                called += _OPERAND.findall(branches)
            trips = 1
            if instruction.opcode == 'while':
                trips = _trips(computations, computations[name], instruction)
                if trips is None:
                    unknown.append(instruction.name)
                    trips = 1
            for other in called:
                visit(other, count * trips)

    visit(entry, 1)
    return times, unknown


def _trips(computations: dict[str, Computation], where: Computation, loop: _Instruction) -> int | None:
    """How often a loop's body runs: from the constants that its counter starts with, grows by and stops at."""
    condition = computations.get(loop.attribute('condition') or '', {})
    body = computations.get(loop.attribute('body') or '', {})
    test = next((i for i in condition.values() if i.opcode == 'compare'), None)
    if test is None or test.attribute('direction') != 'LT' or len(test.operands) != 2:
        return None
    counter = condition.get(test.operands[0])
    if counter is None or counter.opcode != 'get-tuple-element':
        return None
    index = int(counter.attribute('index'))
    limit = _constant(condition, test.operands[1])
    given, result = where.get(loop.operands[0]), next((i for i in body.values() if i.is_root), None)
    if limit is None or given is None or given.opcode != 'tuple' or result is None or result.opcode != 'tuple':
        return None
    start = _constant(where, given.operands[index])
    step = _step(body, result.operands[index])
    return None if start is None or not step else max(-(-(limit - start) // step), 0)


def _constant(where: Computation, name: str) -> int | None:
    """The value of an integer constant, through copies."""
    instruction = where.get(name)
    while instruction is not None and instruction.opcode in ('copy', 'bitcast', 'copy-done', 'copy-start'):
        instruction = where.get(instruction.operands[0])
    if instruction is None or instruction.opcode != 'constant':
        return None
    found = re.match(r'(-?\d+)\)', instruction.rest)
    return int(found.group(1)) if found else None


def _step(body: Computation, name: str) -> int | None:
    """What an `add` adds to the counter."""
    instruction = body.get(name)
    while instruction is not None and instruction.opcode in ('copy', 'bitcast'):
        instruction = body.get(instruction.operands[0])
    if instruction is None or instruction.opcode != 'add':
        return None
    return next((c for c in (_constant(body, o) for o in instruction.operands) if c is not None), None)


def _sent(kind: str, instruction: _Instruction, num_devices: int) -> float:
    size, n = _bytes(instruction), _group_size(instruction.rest, num_devices)
    if kind == 'collective-permute':
        return size
    factor = {'all-reduce': 2 * (n - 1) / n, 'reduce-scatter': n - 1}.get(kind, (n - 1) / n)
    return factor * size


def _bytes(instruction: _Instruction) -> float:
    """Of the result. What a `-start` gives is a tuple of what goes in and what comes out, with counters behind."""
    sizes = [
        math.prod(int(d) for d in dims.split(',') if d) * _BITS.get(dtype, 0) / 8
        for dtype, dims in _SHAPE.findall(re.sub(r'\{[^}]*\}', '', instruction.result))
    ]
    if not instruction.opcode.endswith('-start') or not instruction.result.startswith('('):
        return sum(sizes)
    operands = len(instruction.operands)
    return sum(sizes[operands : 2 * operands])


def _group_size(attributes: str, num_devices: int) -> int:
    """Chips that take part in one group, from any of the ways it is written."""
    groups = re.search(r'replica_groups=(mesh\[[^\]]*\]\s*\{[^}]*\}|\{.*?\}\}|\{\}|\[\d+,\d+\]<=\S+)', attributes)
    if groups is None or groups.group(1) == '{}':
        return num_devices
    text = groups.group(1)
    if text.startswith('mesh'):
        sizes = dict(re.findall(r"'([\w.\-]+)'=(\d+)", text))
        named = re.findall(r"'([\w.\-]+)'(?::\(\d+\)(\d+))?", text[text.index('{') :])
        return math.prod(int(part or sizes[axis]) for axis, part in named)
    if text.startswith('['):
        return int(text[1 : text.index(']')].split(',')[1])
    return len(text[2 : text.index('}')].split(','))


def _closing(text: str) -> int:
    """Where the parenthesis closes that `text` is within."""
    depth = 0
    for i, character in enumerate(text):
        depth += {'(': 1, ')': -1}.get(character, 0)
        if depth < 0:
            return i
    return len(text)
