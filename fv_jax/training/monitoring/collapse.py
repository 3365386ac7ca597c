"""The collapse monitor: reports metrics that no healthy run has, however good its loss looks.

`evaluation/diagnostics.py` measures them. A limit is either absolute, or relative to the run's own best value so far.
Nothing is reported before `after_step`: an untrained network exceeds every one of these limits.
"""

import dataclasses
from collections.abc import Iterator, Mapping

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError, check_range

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class CollapseMonitorConfig:
    """The limits of a healthy run; each is compared with the metric of the same name unless stated otherwise.

    Attributes:
      after_step: the first step at which anything is reported.
      stop: whether a report ends the run.
      loss_vs_copy: upper limit of the loss relative to that of a predictor that returns the low-quality clip's latents.
        At 1 the network knows nothing that the low-quality clip does not show.
      loss_vs_mean: the same for a predictor that returns the mean of the clip's latents.
      energy: lower and upper limit of the RMS of the enhanced latents relative to the true ones, and of those of a flow
        map relative to its teacher's (every metric whose name starts so). A collapsed sampler fades or blows up.
      sharpness: upper limit of the standard deviation of the Laplacian relative to the reference, beyond which what
        was added is noise. The lower limit is 0.9 times `sharpness_degraded`, that of the low-quality clip.
      flicker: upper limit of the frame-to-frame change relative to the reference.
      max_psnr_deficit: how many dB the PSNR of an enhanced clip may lie below `psnr_degraded`; new detail costs some.
      loss_t_growth: upper limit of `loss_t/K`, the loss in the K-th decile of t, relative to the lowest that the run
        had there: one decile may diverge while the mean falls.
      update_ratio: upper limit of the norm of the largest update since the last evaluation, relative to that of the
        parameters.
    """

    after_step: int = 500
    stop: bool = False
    loss_vs_copy: float = 1.0
    loss_vs_mean: float = 1.0
    energy: Range = (0.6, 1.5)
    sharpness: float = 2.0
    flicker: float = 3.0
    max_psnr_deficit: float = 4.0
    loss_t_growth: float = 2.0
    update_ratio: float = 0.05

    def __post_init__(self):
        check_range(self, 'after_step', low=0)
        require(
            0 < self.energy[0] < 1 < self.energy[1],
            f'energy={self.energy}: must be a range that contains 1, with a positive lower limit',
            ConfigError,
        )
        names = ('loss_vs_copy', 'loss_vs_mean', 'sharpness', 'flicker', 'loss_t_growth', 'update_ratio')
        check_range(self, *names, above=0)


class CollapseError(RuntimeError):
    """Raised when the collapse monitor reports a fault and its configuration says `stop`."""


class CollapseMonitor:
    """Compares the metrics of each evaluation with the limits, and remembers the best losses of the run."""

    def __init__(self, config: CollapseMonitorConfig, best: dict[str, float] | None = None):
        """best: the lowest losses so far by metric name; `check` updates it in place."""
        self.config = config
        self._best = {} if best is None else best

    def check(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Returns one line for each metric outside its limits, with its name, value and limit.

        Metrics that are absent are not checked. The best losses are updated also before `after_step`.
        """
        lines = list(self._violations(metrics)) if step >= self.config.after_step else []
        for name, value in metrics.items():
            if name.startswith('loss_t/'):
                self._best[name] = min(value, self._best.get(name, value))
        return lines

    def _violations(self, metrics: Mapping[str, float]) -> Iterator[str]:
        config = self.config
        for name, value in metrics.items():
            if not abs(value) < float('inf'):  # also true for NaN
                yield f'{name} is {value}'
        baseline = 'no better than predicting the'
        yield from _above(metrics, 'loss_vs_copy', config.loss_vs_copy, f'{baseline} low-quality input')
        yield from _above(metrics, 'loss_vs_mean', config.loss_vs_mean, f'{baseline} mean')
        for name in metrics:
            if name.startswith('energy'):
                yield from _above(metrics, name, config.energy[1], 'sampled latents have too much energy')
                yield from _below(metrics, name, config.energy[0], 'sampled latents have too little energy')
        yield from _above(metrics, 'sharpness', config.sharpness, 'what was added is noise')
        if 'sharpness_degraded' in metrics:
            limit = 0.9 * metrics['sharpness_degraded']
            yield from _below(metrics, 'sharpness', limit, 'smoother than the low-quality clip')
        yield from _above(metrics, 'flicker', config.flicker, 'temporal flicker')
        if 'psnr_degraded' in metrics:
            limit = metrics['psnr_degraded'] - config.max_psnr_deficit
            yield from _below(metrics, 'psnr', limit, 'further from the reference than the low-quality clip')
        for name, best in self._best.items():
            yield from _above(metrics, name, config.loss_t_growth * best, f'the best so far was {best:.4g}')
        yield from _above(metrics, 'update_ratio', config.update_ratio, 'a step changes the parameters too much')


def _above(metrics: Mapping[str, float], name: str, limit: float, meaning: str) -> Iterator[str]:
    if name in metrics and metrics[name] > limit:
        yield f'{name} {metrics[name]:.4g} is above {limit:.4g}: {meaning}'


def _below(metrics: Mapping[str, float], name: str, limit: float, meaning: str) -> Iterator[str]:
    if name in metrics and metrics[name] < limit:
        yield f'{name} {metrics[name]:.4g} is below {limit:.4g}: {meaning}'
