"""Train, val and holdout by whole groups, with class fractions near those of all patches.

The split is a pure function of labels, groups, fractions (or folds) and seed; the order of the rows
doesn't matter. Groups of several patches are dealt out at random and then exchanged until each
split is near its share of both classes; groups of one patch fill what is left, class by class.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from src.patch import CLASSES, SPLITS
from src.system.errors import ProjectError

TRAIN = SPLITS.index("train")
# holdout's intervals are drawn by resampling its groups, which takes two
MIN_GROUPS = {"train": 1, "val": 1, "holdout": 2}

_PROPOSALS_PER_ROUND = 2_000
_MAX_ROUNDS = 400
_ROUNDS_WITHOUT_GAIN = 12
_COST_OF_MISSING_CLASS = 10.0

Counts = NDArray[np.float64]  # patches: (splits, classes) or (groups, classes)


class SplitError(ProjectError):
    """These patches can't be split as asked."""


def split_groups(
    *,
    labels: NDArray[np.uint8],
    groups: NDArray[np.str_],
    train_only: NDArray[np.bool_],
    val_fraction: float,
    holdout_fraction: float,
    seed: int,
) -> NDArray[np.str_]:
    """The split of each of n patches: (n,) str of ``SPLITS``, every group whole.

    Parameters
    ----------
    labels : (n,) 0 normal, 1 tumour
    groups : (n,) group names; groups are taken in alphabetical order, whatever that of the rows
    train_only : (n,) True where the patch's group must not leave train
    val_fraction, holdout_fraction : shares of the labelled patches wanted; train gets the rest

    Raises
    ------
    SplitError
        Fewer than 4 groups, one class only, or a split that is left without one of the classes or
        with fewer groups than ``MIN_GROUPS``.
    """
    group_of_patch, per_group, pinned = _tally(labels, groups, train_only)
    _check_groups(per_group, pinned)

    rng = np.random.default_rng(seed)
    at_least = np.array([MIN_GROUPS[split] for split in SPLITS])
    fractions = np.array([1.0 - val_fraction - holdout_fraction, val_fraction, holdout_fraction])
    split_of_group = _assign(per_group, pinned, fractions, at_least, rng)
    _check_splits(split_of_group, per_group, at_least)
    return np.array(SPLITS)[split_of_group[group_of_patch]]


def split_folds(
    *,
    labels: NDArray[np.uint8],
    groups: NDArray[np.str_],
    train_only: NDArray[np.bool_],
    n_folds: int,
    fold: int,
    seed: int,
) -> NDArray[np.str_]:
    """The split of each of n patches in one round of grouped cross-validation: (n,) str.

    Groups are dealt into ``n_folds`` folds, the same whatever ``fold`` is: fold ``fold`` is
    holdout, the next one (after the last, the first) is val, the others are train. Over all rounds
    every patch is in holdout once, but for those that must not leave train. Parameters and errors
    are as of :func:`split_groups`.
    """
    group_of_patch, per_group, pinned = _tally(labels, groups, train_only)
    free = np.flatnonzero(~pinned)
    per_fold = MIN_GROUPS["holdout"]  # each fold is holdout once
    if len(free) < per_fold * n_folds:
        raise SplitError(
            f"{len(free)} groups may leave train, {n_folds} folds need {per_fold} each; "
            "lower split.n_folds, or use an archive with more slides"
        )
    rng = np.random.default_rng(seed)
    nowhere = np.zeros(len(free), dtype=bool)
    shares, at_least = np.full(n_folds, 1 / n_folds), np.full(n_folds, per_fold)
    fold_of_free = _assign(per_group[free], nowhere, shares, at_least, rng)
    _check_folds(fold_of_free, per_group[free], n_folds)
    split_of_group = np.full(len(per_group), TRAIN, dtype=np.intp)
    split_of_group[free[fold_of_free == (fold + 1) % n_folds]] = SPLITS.index("val")
    split_of_group[free[fold_of_free == fold]] = SPLITS.index("holdout")
    return np.array(SPLITS)[split_of_group[group_of_patch]]


def _tally(
    labels: NDArray[np.uint8], groups: NDArray[np.str_], train_only: NDArray[np.bool_]
) -> tuple[NDArray[np.intp], Counts, NDArray[np.bool_]]:
    """Group number of each patch (n,); of each group its patches by class and if it is pinned."""
    names, group_of_patch = np.unique(groups, return_inverse=True)
    # cell 2g + label counts the patches of group g with that label
    cells = np.bincount(group_of_patch * 2 + labels.astype(np.intp), minlength=2 * len(names))
    pinned = np.zeros(len(names), dtype=bool)
    pinned[group_of_patch[train_only]] = True
    return group_of_patch, cells.reshape(len(names), 2).astype(np.float64), pinned


def _assign(
    per_group: Counts,
    pinned: NDArray[np.bool_],
    fractions: NDArray[np.float64],
    at_least: NDArray[np.int64],
    rng: np.random.Generator,
) -> NDArray[np.intp]:
    """The part, 0 … len(fractions) − 1, of each group; ``pinned`` groups are in part 0.

    A part gets ``at_least`` (n_parts,) groups, if that leaves no part without a class.
    """
    n_parts = len(fractions)
    part_of_group = np.zeros(len(per_group), dtype=np.intp)
    single = (per_group.sum(axis=1) == 1) & ~pinned
    several = np.flatnonzero(~single & ~pinned)
    fixed = np.zeros((n_parts, 2))
    fixed[0] = per_group[pinned].sum(axis=0)

    # singles keep their own proportions, so the larger groups aim at the share of all but them
    wanted = np.outer(fractions, per_group[~single].sum(axis=0))
    dealt = _deal(per_group[several], fixed, wanted, rng)
    part_of_group[several] = _exchange(dealt, per_group[several], fixed, wanted, rng)

    filled = fixed + _per_part(part_of_group[several], per_group[several], n_parts)
    need = np.outer(fractions, per_group.sum(axis=0)) - filled
    for label in range(2):
        members = np.flatnonzero(single & (per_group[:, label] == 1))
        shares = _apportion(len(members), need[:, label], lacking=filled[:, label] == 0)
        part_of_group[rng.permutation(members)] = np.repeat(np.arange(n_parts), shares)
    wanted = np.outer(fractions, per_group.sum(axis=0))
    return _fill_up(part_of_group, per_group, pinned, wanted, at_least)


def _fill_up(
    part_of_group: NDArray[np.intp],
    per_group: Counts,
    pinned: NDArray[np.bool_],
    wanted: Counts,
    at_least: NDArray[np.int64],
) -> NDArray[np.intp]:
    """Move groups to parts with fewer than ``at_least``, each time the one that costs least."""
    parts = part_of_group.copy()
    n_groups = np.bincount(parts, minlength=len(wanted))
    while (n_groups < at_least).any():
        target = int(np.argmax(at_least - n_groups))
        counts = _per_part(parts, per_group, len(wanted))
        movable = np.flatnonzero(~pinned & (n_groups > at_least)[parts])
        movable = movable[
            ((counts[parts[movable]] > per_group[movable]) | (per_group[movable] == 0)).all(axis=1)
        ]
        if len(movable) == 0:
            break
        tried = np.repeat(counts[None], len(movable), axis=0)
        tried[np.arange(len(movable)), parts[movable]] -= per_group[movable]
        tried[:, target] += per_group[movable]
        best = movable[int(np.argmin(_cost(tried, wanted)))]
        parts[best] = target
        n_groups = np.bincount(parts, minlength=len(wanted))
    return parts


def _deal(
    per_group: Counts, fixed: Counts, wanted: Counts, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Each group, in random order, to the part that still needs most of what it holds.

    The order is not by size: that would put all the large slides in train.
    """
    part_of_group = np.empty(len(per_group), dtype=np.intp)
    need = (wanted - fixed).tolist()
    weight = per_group.tolist()
    for group in rng.permutation(len(per_group)).tolist():
        normal, tumour = weight[group]
        part = max(range(len(need)), key=lambda p: normal * need[p][0] + tumour * need[p][1])
        need[part][0] -= normal
        need[part][1] -= tumour
        part_of_group[group] = part
    return part_of_group


def _exchange(
    part_of_group: NDArray[np.intp],
    per_group: Counts,
    fixed: Counts,
    wanted: Counts,
    rng: np.random.Generator,
) -> NDArray[np.intp]:
    """Local search: move a group, or swap two, as long as that brings the parts nearer."""
    if len(per_group) == 0:
        return part_of_group
    parts = part_of_group.copy()
    counts = fixed + _per_part(parts, per_group, len(wanted))
    cost = float(_cost(counts, wanted))
    rounds_without_gain = 0
    for _ in range(_MAX_ROUNDS):
        # many proposals at once: a group to move, and a part to move it to or a group to swap with
        moved = rng.integers(len(parts), size=_PROPOSALS_PER_ROUND)
        partner = rng.integers(len(parts), size=_PROPOSALS_PER_ROUND)
        anywhere = rng.integers(len(wanted), size=_PROPOSALS_PER_ROUND)
        swap = rng.random(_PROPOSALS_PER_ROUND) < 0.75
        target = np.where(swap, parts[partner], anywhere)
        delta = per_group[moved] - swap[:, None] * per_group[partner]
        tried = np.repeat(counts[None], len(moved), axis=0)  # (proposals, parts, 2)
        each = np.arange(len(moved))
        tried[each, parts[moved]] -= delta
        tried[each, target] += delta
        costs = _cost(tried, wanted)
        best = int(np.argmin(costs))
        if costs[best] < cost - 1e-12:
            cost, counts, rounds_without_gain = float(costs[best]), tried[best], 0
            if swap[best]:
                parts[partner[best]] = parts[moved[best]]
            parts[moved[best]] = target[best]
        else:
            rounds_without_gain += 1
        if rounds_without_gain == _ROUNDS_WITHOUT_GAIN:
            break
    return parts


def _cost(counts: Counts, wanted: Counts) -> NDArray[np.float64]:
    """Squared relative miss of each class in each part, summed: 0 where all is as wanted.

    It covers size and class fraction at once: both are right when both class counts are.
    ``counts`` is (..., parts, 2); the result has its leading shape.
    """
    relative = counts / np.maximum(wanted, 1e-9) - 1.0
    missing = (counts <= 0) & (wanted > 0)
    total = np.sum(relative**2 + _COST_OF_MISSING_CLASS * missing, axis=(-2, -1))
    return np.asarray(total, dtype=np.float64)


def _per_part(part_of_group: NDArray[np.intp], per_group: Counts, n_parts: int) -> Counts:
    counts = np.zeros((n_parts, 2))
    np.add.at(counts, part_of_group, per_group)
    return counts


def _apportion(
    n: int, need: NDArray[np.float64], *, lacking: NDArray[np.bool_]
) -> NDArray[np.intp]:
    """Share ``n`` single patches of one class among the parts, by largest remainder.

    A part that is ``lacking`` the class gets at least one while another can spare it.
    """
    share = np.maximum(need, 0.0)
    if share.sum() == 0:
        share[0] = 1.0
    exact = n * share / share.sum()
    shares: NDArray[np.intp] = np.floor(exact).astype(np.intp)
    by_remainder = np.argsort(shares - exact, kind="stable")
    shares[by_remainder[: n - int(shares.sum())]] += 1
    for part in np.flatnonzero(lacking & (shares == 0)):
        giver = int(np.argmax(shares))
        if shares[giver] > 1:
            shares[giver] -= 1
            shares[part] += 1
    return shares


def _check_groups(per_group: Counts, pinned: NDArray[np.bool_]) -> None:
    n_groups, n_free = len(per_group), len(per_group) - int(pinned.sum())
    needed = sum(MIN_GROUPS.values())
    if n_groups < needed:
        raise SplitError(
            f"{n_groups} groups of labelled patches, at least {needed} needed: one each for train "
            "and val, two for holdout, whose intervals resample groups; use an archive with more "
            "slides, or set split.group_by: patch"
        )
    if n_free < needed - MIN_GROUPS["train"]:
        raise SplitError(
            f"only {n_free} of {n_groups} groups may leave train (the others hold patches of "
            "unknown slide or stain); val needs 1 and holdout 2: name more patches' slides, or set "
            "split.group_by: patch"
        )
    for label, name in enumerate(CLASSES):
        if per_group[:, label].sum() == 0:
            raise SplitError(
                f"need both classes to split; no {name} patch among the labelled ones; "
                "use an archive with both"
            )


def _check_splits(
    split_of_group: NDArray[np.intp], per_group: Counts, at_least: NDArray[np.int64]
) -> None:
    for split, split_name in enumerate(SPLITS):
        inside = per_group[split_of_group == split]
        for label, class_name in enumerate(CLASSES):
            if inside[:, label].sum() == 0:
                n_with = int((per_group[:, label] > 0).sum())
                raise SplitError(
                    f"split {split_name} would hold no {class_name} patch: {n_with} of "
                    f"{len(per_group)} groups hold any, and each split needs one; use an archive "
                    f"with more groups that hold {class_name} patches, or raise "
                    "split.val_fraction or split.holdout_fraction"
                )
        if len(inside) < at_least[split]:
            raise SplitError(
                f"split {split_name} would hold {len(inside)} of {len(per_group)} groups, at least "
                f"{at_least[split]} needed; use an archive with more groups that hold both "
                "classes, or set split.group_by: patch"
            )


def _check_folds(fold_of_group: NDArray[np.intp], per_group: Counts, n_folds: int) -> None:
    for label, class_name in enumerate(CLASSES):
        with_class = per_group[:, label] > 0
        if len(np.unique(fold_of_group[with_class])) < n_folds:
            raise SplitError(
                f"a fold would hold no {class_name} patch: {int(with_class.sum())} of "
                f"{len(per_group)} groups hold any, and each of {n_folds} folds needs one; "
                "lower split.n_folds"
            )
