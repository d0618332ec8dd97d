"""A trained model and what it does on held-out behaviour, as one page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model.checkpoint import Checkpoint
from model.data.dataset import EvaluationSet, Split
from model.evaluation import CUTOFFS
from model.experiments.drift_similarity import drift_similarity
from model.metrics import item_reference, list_metrics, question_metrics
from model.noise_schedule import BETA_SHAPES, NoiseSchedule
from model.ranking import Ranking, rank_and_list
from model.report.page import Html, chart, new_figure, page, section, table
from model.significance import bootstrap_intervals
from model.t2diff import T2Diff

_MAX_DRAWN = 3_000
Say = Callable[[str], None]


def model_report(
    run: Path, trained: Checkpoint, split: Split, *, device: str = "cpu", say: Say = lambda text: None
) -> str:
    """HTML.   run: the training run's folder, for its curves   say: told what is being done

    Everything that depends on held-out behaviour is measured here, on the test part.
    """
    counts = np.bincount(split.train.item_index, minlength=split.train.num_items + 1)[1:]  # (M,)
    say("ranking the test part")
    ranking = rank_and_list(trained.model, split.test, device=device)
    sections = [_curves(run), _figures(ranking), _popularity(ranking, split, counts)]
    if isinstance(trained.model, T2Diff) and trained.model.num_steps > 0:
        say("watching the reverse diffusion")
        sections += [_reverse_process(trained.model, split.test, device), _schedules(trained.model)]
        sections.append(_drift_norms(trained.model, split.test, device))
    sections.append(_map(trained, counts))
    settings = {**trained.model_config, **trained.settings}
    sections.append(
        section(
            "Settings", "As the checkpoint records them.", table(["setting", "value"], list(settings.items()))
        )
    )
    facts = [
        ("model", trained.model_name),
        ("items", f"{split.train.num_items:,}"),
        ("users asked", f"{len(split.test):,}"),
        ("split", split.name),
        ("seed", trained.seed),
        ("commit", trained.git_commit or "unknown"),
        ("log", trained.dataset_id[:12]),
    ]
    return page(f"{trained.model_name}: a trained recall model", facts, sections)


def training_curves(run: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Name -> updates and values, of a run's TensorBoard log; empty where there is none."""
    folder = run / "tensorboard"
    if not folder.is_dir():
        return {}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    curves = {}
    for name in events.Tags()["scalars"]:
        points = events.Scalars(name)
        curves[name] = ([point.step for point in points], [point.value for point in points])
    return curves


def _curves(run: Path) -> Html:
    curves = training_curves(run)
    shown = [name for name in ("loss", "validation/recall_at_20", "validation/mrr_at_20") if name in curves]
    if not shown:
        return section(
            "Training", f"{run} holds no TensorBoard log: give the run's folder to see its curves."
        )
    figure = new_figure()
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(shown))), shown, strict=True):
        axes.plot(*curves[name], marker="." if len(curves[name][0]) < 40 else None)
        axes.set(title=name, xlabel="update")
    return section(
        "Training",
        "The loss, and what the validation part said after each epoch.",
        chart(figure, "training curves"),
    )


def _figures(ranking: Ranking) -> Html:
    rows = []
    metrics, unseen = question_metrics(ranking.rank), question_metrics(ranking.rank_unseen)
    low_high = bootstrap_intervals(np.stack(list(metrics.values()), axis=1))
    for (name, values), (low, high) in zip(metrics.items(), low_high, strict=True):
        interval = f"{low:.4f} - {high:.4f}"
        rows.append((name, f"{values.mean():.4f}", interval, f"{unseen[name].mean():.4f}"))
    text = (
        "Every item is ranked for each held-out behaviour. The interval holds 95 % of resamplings of the "
        "users. The last column ranks only items that the user has not met yet."
    )
    return section("Accuracy", text, table(["metric", "mean", "95 % interval", "unseen items only"], rows))


def _popularity(ranking: Ranking, split: Split, counts: np.ndarray) -> Html:
    reference = item_reference(split.train)
    listed = list_metrics(ranking.top, counts, reference)
    rows = [
        (f"first {cutoff}", *(f"{listed[f'{name}_at_{cutoff}']:.3f}" for name in _LIST_METRICS))
        for cutoff in CUTOFFS
    ]
    figure = new_figure()
    axes = figure.subplots()
    order = np.argsort(-counts, kind="stable")
    shown = np.bincount(ranking.top[:, :20].ravel(), minlength=len(counts) + 1)[1:][order]
    places = np.arange(1, len(counts) + 1) / len(counts)
    axes.plot(places, np.cumsum(shown) / max(1, shown.sum()), label="recalled, first 20")
    axes.plot(places, np.cumsum(counts[order]) / counts.sum(), label="consumed in training")
    axes.set(xlabel="share of items, most popular first", ylabel="share of places", xlim=(0, 1), ylim=(0, 1))
    axes.legend()
    text = (
        "How much of the catalogue is ever recalled, and how much the popular part of it. A line above the "
        "other leans on popular items more than users do."
    )
    head = ["list", "coverage", "ln(1 + popularity)", "share of the head", "diversity"]
    return section("Popularity", text, table(head, rows), chart(figure, "popularity of what is recalled"))


_LIST_METRICS = ("coverage", "log_popularity", "head_share", "diversity")


def _reverse_process(model: T2Diff, questions: EvaluationSet, device: str) -> Html:
    found = drift_similarity(model, questions, device=device)
    figure = new_figure()
    axes = figure.subplots()
    for name, label in (("all", "all positions"), ("last", "the last, which is a prediction")):
        (line,) = axes.plot(found["step"], found[name], label=label)
        axes.fill_between(
            found["step"], found[f"{name}_low"], found[f"{name}_high"], alpha=0.15, color=line.get_color()
        )
    axes.invert_xaxis()
    axes.set(xlabel="step r, from noise to drift", ylabel="cosine of ẑ₀ and z₀")
    axes.legend()
    text = (
        "Figure 4 of the paper: how near the predicted drift is to the true one along the reverse process, "
        "with first and last decile. All but the last position lie between behaviours that it is shown."
    )
    return section("The reverse process", text, chart(figure, "cosine along the reverse process"))


def _schedules(model: T2Diff) -> Html:
    figure = new_figure()
    left, right = figure.subplots(1, 2)
    steps = range(1, model.num_steps + 1)
    for name in BETA_SHAPES:
        schedule = NoiseSchedule(name, model.num_steps)
        width = 2.5 if name == model.config.schedule else 1
        left.plot(steps, schedule.betas, label=name, linewidth=width)
        right.plot(steps, schedule.alphas_cumprod.sqrt(), label=name, linewidth=width)
    left.set(title="noise added at step r", xlabel="step r", ylabel="β")
    right.set(title="drift left at step r", xlabel="step r", ylabel="√ᾱ")
    right.legend()
    return section("Noise schedules", "This model's is the thick line.", chart(figure, "noise schedules"))


@torch.inference_mode()
def _drift_norms(model: T2Diff, questions: EvaluationSet, device: str) -> Html:
    """How long drifts are between behaviours that follow each other, and between any two items."""
    chosen = np.linspace(0, len(questions) - 1, min(_MAX_DRAWN, len(questions))).astype(int)
    last = np.array([questions.sequence(int(q)).item_index[-1] for q in chosen])
    following = questions.target[chosen]
    rng = np.random.default_rng(0)
    other = rng.integers(1, model.num_items + 1, len(chosen))

    def embedded(item_index: np.ndarray) -> torch.Tensor:
        items = torch.as_tensor(item_index, dtype=torch.long, device=device)
        return model.embed(items[None])[0].float().cpu()

    start = embedded(last)
    figure = new_figure()
    axes = figure.subplots()
    for name, end in (("to what was consumed next", following), ("to an item drawn at random", other)):
        axes.hist((embedded(end) - start).norm(dim=-1).numpy(), bins=60, histtype="step", label=name)
    axes.set(xlabel="‖z₀‖ from the last behaviour", ylabel="users")
    axes.legend()
    text = "Where drifts to the next behaviour are hardly shorter than to anything, little can be known."
    return section("Drift norms", text, chart(figure, "lengths of drifts"))


@torch.inference_mode()
def _map(trained: Checkpoint, counts: np.ndarray) -> Html:
    items = trained.model.item_embeddings().float().cpu()
    chosen = np.linspace(0, len(items) - 1, min(_MAX_DRAWN, len(items))).astype(int)
    some = items[chosen]
    centred = some - some.mean(dim=0)
    _, spread, axes_of = torch.linalg.svd(centred, full_matrices=False)
    plane = (centred @ axes_of[:2].T).numpy()
    figure = new_figure(7, 5.5)
    axes = figure.subplots()
    drawn = axes.scatter(plane[:, 0], plane[:, 1], s=5, c=np.log1p(counts[chosen]), cmap="viridis")
    figure.colorbar(drawn, label="ln(1 + times consumed in training)")
    share = float((spread[:2] ** 2).sum() / (spread**2).sum())
    axes.set(xlabel="first axis", ylabel="second axis")
    text = f"Item embeddings on their two main axes, which hold {share:.0%} of their variance."
    return section("Embedding map", text, chart(figure, "item embeddings on a plane"))
