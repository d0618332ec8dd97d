"""A picture of the noise schedules, to choose between them with open eyes (Eq. 13, Table 3)."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from model.noise_schedule import BETA_SHAPES, NoiseSchedule


def plot_schedules(path: Path, num_steps: int) -> None:
    """Draw β_r and √ᾱ_r, the share of the drift that is left at step r, for every schedule."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    steps = range(1, num_steps + 1)
    for name in BETA_SHAPES:
        schedule = NoiseSchedule(name, num_steps)
        left.plot(steps, schedule.betas, label=name)
        right.plot(steps, schedule.alphas_cumprod.sqrt(), label=name)
    left.set(title="noise added at step r", xlabel="step r", ylabel="β")
    right.set(title="drift left at step r", xlabel="step r", ylabel="√ᾱ")
    right.legend()
    figure.savefig(path, dpi=120)
