"""The groups of devices of a collective, parsed from its attributes in HLO text."""

import math
import re

import numpy as np

_GROUPS = re.compile(r'replica_groups=(mesh\[[^\]]*\]\s*\{[^}]*\}|\{.*?\}\}|\{\}|\[\d+,\d+\]<=\S+)')
_PAIRS = re.compile(r'source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}')


def parse_groups(attributes: str, num_devices: int) -> np.ndarray:
    """Parses `replica_groups` in each of its notations; without any, or with none, all devices are one group.

        {{0,1},{2,3}}              lists
        [2,4]<=[4,2]T(1,0)         device numbers in order, reshaped, transposed and reshaped again
        mesh['a'=2,'b'=4] {'b'}    along axes of a mesh; 'b':(2)2 is the inner half of an axis of four

    Args:
      attributes: of the instruction.
      num_devices: of the program.

    Returns:
      Device numbers (groups, devices of a group).
    """
    found = _GROUPS.search(attributes)
    text = found.group(1) if found else '{}'
    if text == '{}':
        return np.arange(num_devices)[None]
    if text.startswith('mesh'):
        return _mesh_groups(text)
    if text.startswith('['):
        shape, dims, order = re.match(r'\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', text).groups()
        dims = _integers(dims)
        devices = np.arange(math.prod(dims)).reshape(dims)
        return devices.transpose(_integers(order) if order else None).reshape(_integers(shape))
    return np.array([_integers(group) for group in re.findall(r'\{([\d,]+)\}', text)])


def parse_pairs(attributes: str) -> np.ndarray:
    """Parses the `source_target_pairs` of a collective-permute into device numbers (pairs, 2)."""
    found = _PAIRS.search(attributes)
    pairs = re.findall(r'\{([\d,]+)\}', found.group(1)) if found else []
    return np.array([_integers(pair) for pair in pairs], int).reshape(-1, 2)


def _mesh_groups(text: str) -> np.ndarray:
    sizes = {name: int(size) for name, size in re.findall(r"'([\w.\-]+)'=(\d+)", text)}
    chosen = re.findall(r"'([\w.\-]+)'(?::\((\d+)\)(\d+))?", text[text.index('{') :])
    shape, inside = [], []
    for name, size in sizes.items():
        parts = [(int(before), int(part)) for axis, before, part in chosen if axis == name and part]
        if not parts:
            inside += [len(shape)] if any(axis == name for axis, *_ in chosen) else []
            shape.append(size)
            continue
        done = 1
        for before, part in sorted(parts):
            inside.append(len(shape) + 1)
            shape += [before // done, part]
            done = before * part
        shape.append(size // done)
    outside = [axis for axis in range(len(shape)) if axis not in inside]
    devices = np.arange(math.prod(shape)).reshape(shape).transpose(*outside, *inside)
    return devices.reshape(-1, math.prod(shape[axis] for axis in inside))


def _integers(text: str) -> list[int]:
    return [int(part) for part in text.split(',')]
