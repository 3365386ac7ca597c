"""Trajectories: what a sampler does, as a first state, a step and an end.

A sampler describes its trajectory and does not run it. Inside a program `integrate` runs all steps as one
`jax.lax.scan`; `sampling/programs` compiles one step and loops over them in Python, so that sampling shows its progress
and can be stopped between two steps.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

State = Any  # a pytree of arrays


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """From noise, or another source, to data.

    Attributes:
      start: the first state.
      advance: (state, index of the step, int32) -> the next state, of the same shapes and dtypes.
      finish: the last state -> data.
      num_steps: how many steps there are.
    """

    start: State
    advance: Callable[[State, jax.Array], State]
    finish: Callable[[State], jax.Array]
    num_steps: int

    def then(self, function: Callable[[jax.Array], jax.Array]) -> 'Trajectory':
        """Returns the trajectory whose data are `function` of this one's."""
        finish = self.finish
        return dataclasses.replace(self, finish=lambda state: function(finish(state)))

    def integrate(self) -> jax.Array:
        """Runs all steps. Returns data."""
        last, _ = jax.lax.scan(lambda state, i: (self.advance(state, i), None), self.start, jnp.arange(self.num_steps))
        return self.finish(last)


def take_step(steps: Any, i: jax.Array) -> Any:
    """Returns entry i of every array of a pytree."""
    return jax.tree.map(lambda values: values[i], steps)
