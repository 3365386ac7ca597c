"""The configuration of a flow map (`flow_map`, with the equations), and the distribution of its training targets."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError, check_range
from fv_jax.diffusion import guidance, samplers, time_grids
from fv_jax.stages.super_res import SuperResConfig

TARGETS = ('velocity', 'step', 'split')
VELOCITY, STEP, SPLIT = range(3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowMapConfig(SuperResConfig):
    """How a flow map is trained and sampled. It is sampled without guidance, on the knots that it was trained on.

    Attributes:
      num_steps: function evaluations of a sample, from 1 to `num_knots`.
      guidance_batched: of the teacher: both branches are one batch.
      num_knots: K, the number of steps of the teacher's sampler, by `shift` and `numerics`.
      teacher_sampler: one of `diffusion.samplers.SAMPLERS`, for flows.
      teacher_substeps: steps of that sampler from a knot to the next. With many the map is that of the flow itself.
      teacher_guidance_scale: w of (1).
      target_shares: of the steps with each of `TARGETS`.
      source_share: of the examples with t = 1.
      full_intervals_at: the part of the run after which (6) is trained on intervals of any length; before, the longest
        grows from two knots.
      rollout_share: of the steps whose x_t is what the averaged network makes of the source, in place of the line
        between source and data.
      has_teacher: whether the parameters of the teacher are part of the network, for one without LoRA; an exported
        network does not have them.
    """

    num_steps: int = 2
    sampler: str = 'mean_velocity'
    guidance_scale: float = 1.0
    caption_dropout: float = 0.0
    num_knots: int = 5
    teacher_sampler: str = 'euler'
    teacher_substeps: int = 1
    teacher_guidance_scale: float = 13.0
    target_shares: tuple[float, float, float] = (0.25, 0.25, 0.5)
    source_share: float = 0.3
    full_intervals_at: float = 0.4
    rollout_share: float = 0.0
    has_teacher: bool = True
    prediction_type: ClassVar[samplers.Predicted] = 'mean_velocity'

    def __post_init__(self):
        super().__post_init__()
        samplers.check_sampler(self.teacher_sampler, 'flow')
        check_range(self, 'num_knots', 'teacher_substeps', low=1)
        check_range(self, 'num_steps', low=1, high=self.num_knots)
        check_range(self, 'teacher_guidance_scale', low=0)
        check_range(self, 'source_share', 'full_intervals_at', 'rollout_share', low=0, high=1)
        guided = f'guidance_scale={self.guidance_scale}: must be 1, guidance is part of a flow map'
        require(guidance.is_unguided(self.guidance_scale), guided, ConfigError)
        dropout = f'caption_dropout={self.caption_dropout}: must be 0, there is no unconditional branch to train'
        require(self.caption_dropout == 0, dropout, ConfigError)
        given = self.target_shares
        shares = f'target_shares={given}: must be three, of {", ".join(TARGETS)}, from 0, with a sum of 1'
        require(len(given) == 3 and min(given) >= 0 and abs(sum(given) - 1) < 1e-6, shares, ConfigError)
        split = f'num_knots={self.num_knots}: an interval cannot be split; set the last of target_shares to 0'
        require(self.num_knots > 1 or not self.target_shares[SPLIT], split, ConfigError)
        rollout = f'rollout_share={self.rollout_share}: must be 0 where velocities alone are trained'
        require(self.has_intervals or not self.rollout_share, rollout, ConfigError)
        substeps = (
            f"teacher_substeps={self.teacher_substeps}: must be 1 with 'official' numerics, whose knots are rounded"
        )
        require(self.teacher_substeps == 1 or self.numerics == 'exact', substeps, ConfigError)

    @property
    def has_intervals(self) -> bool:
        """Whether intervals are trained, as opposed to velocities alone."""
        return self.target_shares[VELOCITY] < 1


class Intervals(NamedTuple):
    """The knots t, s and r of each example, by index."""

    start_B: jax.Array
    middle_B: jax.Array
    end_B: jax.Array


def draw_targets(config: FlowMapConfig, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draws the kind of targets of a step, an index into `TARGETS`, and whether its x_t are rolled out."""
    with np.errstate(divide='ignore'):
        logits = np.log(np.asarray(config.target_shares, np.float32))
    kind = jax.random.categorical(jax.random.fold_in(key, 1), jnp.asarray(logits)).astype(jnp.int32)
    return kind, jax.random.uniform(jax.random.fold_in(key, 2)) < config.rollout_share


def draw_intervals(
    config: FlowMapConfig, time_B: jax.Array, draw_B: jax.Array, kind: jax.Array, progress: jax.Array | None
) -> Intervals:
    """Draws the interval of every example for targets of a kind.

    Args:
      config: of the flow map.
      time_B: keys of the starts, which are stratified over the batch.
      draw_B: keys of the lengths and of the knots between.
      kind: index into `TARGETS`.
      progress: the part of the run that is done; None for all of it.
    """
    knots = config.num_knots
    w_B = 1 - time_grids.stratified_times(time_B)  # 0 at the source
    last = jnp.where(kind == SPLIT, knots - 2, knots - 1)
    inner_B = (w_B - config.source_share) / max(1 - config.source_share, 1e-6) * last
    start_B = jnp.where(w_B < config.source_share, 0, 1 + jnp.floor(inner_B).astype(jnp.int32))
    start_B = jnp.minimum(start_B, last)
    full_B, length_B, middle_B = jax.vmap(lambda key: jax.random.uniform(key, (3,)))(draw_B).T
    done = 1.0 if progress is None else progress
    share = jnp.minimum(done / max(config.full_intervals_at, 1e-6), 1.0)
    longest_B = jnp.minimum(2 + jnp.floor((knots - 2) * share).astype(jnp.int32), knots - start_B)
    drawn_B = 2 + jnp.floor(length_B * (longest_B - 1)).astype(jnp.int32)
    # Half of the intervals are as long as they may be: the one jump of a sample is one interval of many.
    split_B = jnp.where(full_B < 0.5, longest_B, drawn_B)
    length_B = jnp.where(kind == SPLIT, split_B, kind)
    middle_B = start_B + 1 + jnp.floor(middle_B * (length_B - 1)).astype(jnp.int32)
    return Intervals(start_B, jnp.clip(middle_B, 0, knots), start_B + length_B)
