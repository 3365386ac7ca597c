"""How often a traced program runs each of the TPU's attention kernels."""

import collections

from jax.extend.core import Jaxpr


def count_kernels(jaxpr: Jaxpr) -> collections.Counter:
    """Counts the calls of each kernel in a program and all that it calls, those in a loop once."""
    found = collections.Counter()
    for equation in jaxpr.eqns:
        if equation.primitive.name == 'pallas_call':
            found[equation.params['name']] += 1
            continue
        for value in equation.params.values():
            for part in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(part, 'jaxpr', part)
                if hasattr(inner, 'eqns'):
                    found += count_kernels(inner)
    return found
