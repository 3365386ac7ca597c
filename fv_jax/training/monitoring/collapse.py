"""The collapse alarm: figures that no healthy run has, however good its loss looks.

`evaluation/diagnostics.py` measures them. A limit is either absolute, or relative to the run's own best figure so far.
Before `after_step` nothing rings: an untrained network has every one of these faults.
"""

import dataclasses
from collections.abc import Iterator, Mapping

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError, check_range

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class AlarmConfig:
    """after_step: the first step at which it may ring. stop: end the run when it does.

    ratio_twin, ratio_mean: at most so much of the trivial predictors' loss: at 1 the network knows nothing that the
      low-res twin, or the mean, does not tell.
    energy: of the enhanced latents to the true ones: between; a collapsed sampler fades or blows up.
    detail: at most so much of the truth's, beyond which it is noise, and at least the twin's less 10 %.
    flicker: at most so much of the truth's.
    psnr_below_twin: how many dB worse than the twin an enhanced clip may be; detail that is new costs some.
    loss_t_growth: the loss of a tenth of t may be so many times the best that the run had there: one may break
      while the mean falls.
    update_ratio: the largest update since the last evaluation, relative to the parameters.
    """

    after_step: int = 500
    stop: bool = False
    ratio_twin: float = 1.0
    ratio_mean: float = 1.0
    energy: Range = (0.6, 1.5)
    detail: float = 2.0
    flicker: float = 3.0
    psnr_below_twin: float = 4.0
    loss_t_growth: float = 2.0
    update_ratio: float = 0.05

    def __post_init__(self):
        check_range(self, 'after_step', low=0)
        require(0 < self.energy[0] < 1 < self.energy[1], f'energy={self.energy}: must lie around 1', ConfigError)
        names = ('ratio_twin', 'ratio_mean', 'detail', 'flicker', 'loss_t_growth', 'update_ratio')
        check_range(self, *names, above=0)


class CollapseError(RuntimeError):
    """The alarm rang in a run that was told to stop then."""


class Alarm:
    """Remembers the best losses of a run."""

    def __init__(self, config: AlarmConfig, best: dict[str, float] | None = None):
        """best: the lowest losses so far, by name; kept up to date."""
        self.config = config
        self._best = {} if best is None else best

    def check(self, step: int, figures: Mapping[str, float]) -> list[str]:
        """What is wrong, a line each, naming the figure, its value and the limit. Figures that are not there are not
        looked at.
        """
        lines = list(self._wrong(figures)) if step >= self.config.after_step else []
        for name, value in figures.items():
            if name.startswith('loss_t/'):
                self._best[name] = min(value, self._best.get(name, value))
        return lines

    def _wrong(self, figures: Mapping[str, float]) -> Iterator[str]:
        config = self.config
        for name, value in figures.items():
            if not abs(value) < float('inf'):
                yield f'{name} is {value}'
        for name, predictor in (('ratio_twin', 'giving the low-res twin back'), ('ratio_mean', 'giving the mean')):
            yield from _above(figures, name, getattr(config, name), f'no better than {predictor}')
        yield from _above(figures, 'energy', config.energy[1], 'the enhanced latents blow up')
        yield from _below(figures, 'energy', config.energy[0], 'the enhanced latents fade')
        yield from _above(figures, 'detail', config.detail, 'what is new is noise')
        if 'detail_twin' in figures:
            yield from _below(figures, 'detail', 0.9 * figures['detail_twin'], 'smoother than the low-res twin')
        yield from _above(figures, 'flicker', config.flicker, 'frames do not go together')
        if 'psnr_twin' in figures:
            limit = figures['psnr_twin'] - config.psnr_below_twin
            yield from _below(figures, 'psnr', limit, 'further from the truth than the low-res twin')
        for name, best in self._best.items():
            limit = config.loss_t_growth * best
            yield from _above(figures, name, limit, f'the run had {best:.4g} there')
        yield from _above(figures, 'update_ratio', config.update_ratio, 'a step changes the parameters too much')


def _above(figures: Mapping[str, float], name: str, limit: float, meaning: str) -> Iterator[str]:
    if name in figures and figures[name] > limit:
        yield f'{name} {figures[name]:.4g} is above {limit:.4g}: {meaning}'


def _below(figures: Mapping[str, float], name: str, limit: float, meaning: str) -> Iterator[str]:
    if name in figures and figures[name] < limit:
        yield f'{name} {figures[name]:.4g} is below {limit:.4g}: {meaning}'
