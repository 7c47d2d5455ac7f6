"""How often chance alone passes the gate, and how often the interval of an AUROC misses it.

``python -m benchmarks.gate``. Three kinds of two models that are equally good:

- *noise*: patches independent, both scores drawn at random;
- *leaning*: each slide has a leaning of its own in label and score, so scores look informative on
  some slides and misleading on others;
- *strength*: both models tell the classes apart, each better on some slides than on others, and
  six slides in ten are normal throughout, as in Kaggle's archive.

The gate should pass in at most 2.5 % of the cases, whatever the number of groups and patches, and
in as few where many models are judged on one holdout. *Equal* means that either might have been the
other: the last table shows what happens where one of two models of the same AUROC varies more
between slides. ``--uneven`` draws slides of very different
size (log-normal, σ = 1).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import astuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from src.evaluation.intervals import Jackknife, paired_difference
from src.evaluation.looks import Look
from src.evaluation.metrics import UndefinedMetric, auroc, scored

N_GROUPS = (3, 5, 16, 30)
N_PATCHES = (50, 200, 1000)  # a group, on average
LOOKS = (1, 10, 30)
CONFIDENCE = 0.95
_TRUE_AUROC_PATCHES = 2_000_000

# (rng, group of each patch (n,), number of models) → labels (n,), scores (models, n)
Draw = Callable[
    [np.random.Generator, NDArray[np.intp], int], tuple[NDArray[np.bool_], NDArray[np.float64]]
]


def noise(rng: np.random.Generator, groups: NDArray[np.intp], n_models: int):
    """Nothing but chance."""
    return rng.random(len(groups)) < 0.4, rng.normal(size=(n_models, len(groups)))


def leaning(rng: np.random.Generator, groups: NDArray[np.intp], n_models: int):
    """A slide's leaning has half the standard deviation of a patch's own part."""
    by_slide = 0.5 * rng.normal(size=(n_models + 1, groups.max() + 1))[:, groups]
    values = by_slide + rng.normal(size=by_slide.shape)
    return values[0] > 0.25, values[1:]


def strength(rng: np.random.Generator, groups: NDArray[np.intp], n_models: int):
    """Logits that most patches share between models: equal networks make similar mistakes."""
    n_groups = groups.max() + 1
    tumour_share = np.where(
        np.arange(n_groups) < max(2, 0.4 * n_groups), rng.beta(3, 2, n_groups), 0
    )
    labels = rng.random(len(groups)) < tumour_share[groups]
    by_slide = rng.normal(1.5, 0.5, (n_models, n_groups))[:, groups]
    offset = 0.4 * rng.normal(size=(n_models, n_groups))[:, groups]
    own = rng.normal(0, 0.6, (n_models, len(groups)))
    return labels, labels * by_slide + offset + 0.8 * rng.normal(size=len(groups)) + own


def unsteady(sd_strength: float, sd_offset: float) -> Draw:
    """Two models of AUROC 0.93 over all slides; the first varies more from slide to slide.

    A tumour patch of one slide against a normal one of another: the difference of their scores has
    mean μ and variance sd_strength² + 2 sd_offset² + 2 σ² = 2, the same for both models.
    """

    def draw(rng: np.random.Generator, groups: NDArray[np.intp], n_models: int):
        labels = rng.random(len(groups)) < 0.4
        scores = []
        for strength_, offset in ((sd_strength, sd_offset), (0.4, 0.3))[:n_models]:
            noise_ = np.sqrt((2 - strength_**2 - 2 * offset**2) / 2)
            by_slide = rng.normal(0, 1, (2, groups.max() + 1))[:, groups]
            gap = ndtri(0.93) * np.sqrt(2) + strength_ * by_slide[0]
            own = rng.normal(0, noise_, len(groups))
            scores.append(labels * gap + offset * by_slide[1] + own)
        return labels, np.array(scores)

    return draw


KINDS: dict[str, Draw] = {"noise": noise, "leaning": leaning, "strength": strength}


def draw_groups(rng: np.random.Generator, n_groups: int, n_patches: int, uneven: bool):
    """(n,) group of each patch."""
    sizes = np.full(n_groups, n_patches)
    if uneven:
        weights = np.exp(rng.normal(0, 1, n_groups))
        sizes = np.maximum(10, (weights / weights.mean() * n_patches).astype(int))
    return np.repeat(np.arange(n_groups), sizes)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=2000, help="of each cell")
    parser.add_argument("--uneven", action="store_true", help="slides of very different size")
    options = parser.parse_args()
    check_shortcut()
    started = time.perf_counter()
    print(f"{options.simulations:,} simulations a cell, nominal 2.5 %")
    print("\nPassed by one of two equal models, % of simulations\n")
    header = [f"{kind} {n}" for kind in KINDS for n in N_PATCHES]
    print(f"| groups | {' | '.join(header)} |\n|---|{'---|' * len(header)}")
    for n_groups in N_GROUPS:
        cells = [
            passed_share(draw, n_groups, n_patches, options.simulations, uneven=options.uneven)
            for draw in KINDS.values()
            for n_patches in N_PATCHES
        ]
        print(f"| {n_groups} | {' | '.join(f'{100 * cell:.1f}' for cell in cells)} |", flush=True)
    n_histories = options.simulations // 2
    print(
        f"\nPassed by any of k equal models, 200 patches a group, % of {n_histories:,} histories\n"
    )
    print(f"| groups | {' | '.join(f'{kind}, k = {k}' for kind in KINDS for k in LOOKS)} |")
    print(f"|---|{'---|' * len(LOOKS) * len(KINDS)}")
    for n_groups in (5, 16, 30):
        cells = [
            share
            for draw in KINDS.values()
            for share in passed_by_looks(draw, n_groups, n_histories, uneven=options.uneven)
        ]
        print(f"| {n_groups} | {' | '.join(f'{100 * cell:.1f}' for cell in cells)} |", flush=True)
    print("\nThe 95 % interval of one AUROC holds its true value, % of simulations (strength)\n")
    print(f"| groups | {' | '.join(str(n) for n in N_PATCHES)} |\n|---|{'---|' * len(N_PATCHES)}")
    for n_groups in N_GROUPS:
        cells = [
            coverage(n_groups, n_patches, options.simulations, uneven=options.uneven)
            for n_patches in N_PATCHES
        ]
        print(f"| {n_groups} | {' | '.join(f'{100 * cell:.1f}' for cell in cells)} |", flush=True)
    print("\nPassed by a model that varies more between slides than its equal, 200 per group, %\n")
    print("| groups | between slides: 0.5 and 0.4 | 0.7 and 0.5 |\n|---|---|---|")
    for n_groups in (10, 20, 40):
        cells = [
            passed_share(unsteady(*sd), n_groups, 200, options.simulations, uneven=options.uneven)
            for sd in ((0.5, 0.4), (0.7, 0.5))
        ]
        print(f"| {n_groups} | {' | '.join(f'{100 * cell:.1f}' for cell in cells)} |", flush=True)
    print(f"\n{time.perf_counter() - started:.0f} s")


def passed_share(
    draw: Draw, n_groups: int, n_patches: int, n_simulations: int, *, uneven: bool
) -> float:
    """How often the first of two equal models is called better, at a first look."""
    rng = np.random.default_rng([n_groups, n_patches])
    passed = 0
    for _ in range(n_simulations):
        groups = draw_groups(rng, n_groups, n_patches, uneven)
        labels, (one, other) = draw(rng, groups, 2)
        passed += _passes(labels, one, other, groups, CONFIDENCE)
    return passed / n_simulations


def passed_by_looks(draw: Draw, n_groups: int, n_histories: int, *, uneven: bool) -> list[float]:
    """How often a champion was replaced by an equal model after each number of ``LOOKS``."""
    rng = np.random.default_rng(n_groups)
    first_passed = np.full(n_histories, np.inf)
    for history in range(n_histories):
        groups = draw_groups(rng, n_groups, 200, uneven)
        labels, (champion, *models) = draw(rng, groups, 1 + max(LOOKS))
        for number, scores in enumerate(models, start=1):
            confidence = Look(number, "").confidence(CONFIDENCE)
            if _passes(labels, scores, champion, groups, confidence):
                first_passed[history] = number
                break
    return [float(np.mean(first_passed <= k)) for k in LOOKS]


def coverage(n_groups: int, n_patches: int, n_simulations: int, *, uneven: bool) -> float:
    """Share of simulations in which the interval holds the AUROC over all possible slides."""
    rng = np.random.default_rng([n_groups, n_patches, 1])
    truth = _true_auroc()
    held, n = 0, 0
    for _ in range(n_simulations):
        groups = draw_groups(rng, n_groups, n_patches, uneven)
        labels, scores = strength(rng, groups, 1)
        try:
            interval = Jackknife(labels, groups).interval(
                auroc.statistic(scored(labels, scores[0])), confidence=CONFIDENCE, scale="logit"
            )
        except UndefinedMetric:  # withheld
            continue
        held += interval.low <= truth <= interval.high
        n += 1
    return held / n


def _true_auroc() -> float:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(_TRUE_AUROC_PATCHES // 50), 50)
    labels, scores = strength(rng, groups, 1)
    return auroc(labels, scores[0])


def _passes(labels, scores, other, groups, confidence: float) -> bool:
    """As ``paired_difference``, but AUROCs come from one ranking instead of one per group."""
    try:
        jackknife = Jackknife(labels, groups)
        values = left_out_aurocs(labels, scores, groups) - left_out_aurocs(labels, other, groups)
        return jackknife.difference_from(values, confidence=confidence).above_zero
    except UndefinedMetric:  # it can't be judged, and doesn't pass
        return False


def left_out_aurocs(labels, scores, groups) -> NDArray[np.float64]:
    """(1 + groups,) AUROC of all patches, then without each group, from counts of pairs won."""
    order = np.argsort(scores, kind="stable")
    tumour, group = labels[order], groups[order]
    n_groups = int(groups.max()) + 1
    n_tumour, n_normal = int(tumour.sum()), int((~tumour).sum())
    # pairs that each patch wins: normal ones below a tumour patch, tumour ones above a normal one
    won = np.where(tumour, np.cumsum(~tumour), n_tumour - np.cumsum(tumour))
    within = np.zeros(n_groups)  # pairs inside a group are in both of its patches' counts
    tumour_in = np.bincount(group[tumour], minlength=n_groups)
    normal_in = np.bincount(group[~tumour], minlength=n_groups)
    by_group = np.argsort(group, kind="stable")
    ends = np.cumsum(tumour_in + normal_in)[:-1]
    for g, members in enumerate(np.split(by_group, ends)):
        is_tumour = tumour[members]
        within[g] = np.cumsum(~is_tumour)[is_tumour].sum()
    total = won[tumour].sum()
    kept = total - np.bincount(group, won, n_groups) + within
    with np.errstate(invalid="ignore", divide="ignore"):  # NaN: a class is missing without it
        left_out = kept / ((n_tumour - tumour_in) * (n_normal - normal_in))
    return np.append(total / (n_tumour * n_normal), left_out)


def check_shortcut() -> None:
    """The shortcut must be the gate's own arithmetic."""
    rng = np.random.default_rng(1)
    groups = draw_groups(rng, 8, 200, uneven=True)
    labels, (one, other) = strength(rng, groups, 2)
    gate = paired_difference(labels, one, other, groups, confidence=CONFIDENCE)
    values = left_out_aurocs(labels, one, groups) - left_out_aurocs(labels, other, groups)
    fast = Jackknife(labels, groups).difference_from(values, confidence=CONFIDENCE)
    np.testing.assert_allclose(astuple(fast), astuple(gate), rtol=1e-9)


if __name__ == "__main__":
    main()
