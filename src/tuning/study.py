"""A study: created with its identity, opened by workers, with the sampler and pruner asked for."""

import json
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from src.params import HalvingPruner, MedianPruner, Params, TuneParams
from src.tuning import space
from src.tuning.identity import IDENTITY
from src.tuning.storage import locked, open_storage, open_study

if TYPE_CHECKING:
    import optuna
    from optuna.pruners import BasePruner
    from optuna.samplers import TPESampler

KEY = "key"  # tells a study from one of its name that was deleted


def sampler(tune: TuneParams, *, n_trials_before: int) -> "TPESampler":
    """TPE; seeded by the study's seed and how many trials it has, so that no two draw the same."""
    import numpy as np
    from optuna.samplers import TPESampler

    seed = int(np.random.SeedSequence([tune.seed, n_trials_before]).generate_state(1)[0])
    return TPESampler(
        seed=seed, n_startup_trials=tune.startup_trials, multivariate=True, constant_liar=True
    )


def pruner(tune: TuneParams) -> "BasePruner":
    """The pruner that ``tune.pruner`` names."""
    from optuna import pruners

    rule = tune.pruner
    if isinstance(rule, MedianPruner):
        # epochs count from 1, Optuna's steps from 0
        return pruners.MedianPruner(
            n_startup_trials=rule.startup_trials, n_warmup_steps=rule.warmup_epochs + 1
        )
    if isinstance(rule, HalvingPruner):
        return pruners.SuccessiveHalvingPruner(
            min_resource=rule.min_epochs, reduction_factor=rule.reduction
        )
    return pruners.NopPruner()


def load_study(url: str, name: str, tune: TuneParams) -> "optuna.Study":
    """Open a study, created if it isn't there."""
    return open_study(
        open_storage(url),
        name,
        url=url,
        higher_is_better=tune.objective == "val_auroc",
        sampler=sampler(tune, n_trials_before=0),
        pruner=pruner(tune),
    )


def begin_study(url: str, name: str, params: Params, identity: Mapping[str, Any]) -> "optuna.Study":
    """Open a study; a new one is given its identity, and the present parameters as first trial.

    They are the first trial where the space holds them, so that every gain is measured.
    """
    study = load_study(url, name, params.tune)
    with locked(url):
        if IDENTITY not in study.user_attrs:
            study.set_user_attr(KEY, uuid.uuid4().hex)
            study.set_user_attr(IDENTITY, plain(identity))
            drawn = space.present_as_drawn(params)
            if drawn is not None:
                study.enqueue_trial(drawn, user_attrs={space.PRESENT: True})
    return study


def plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    """As it is read back from the database: tuples are lists."""
    found: dict[str, Any] = json.loads(json.dumps(identity, sort_keys=True))
    return found
