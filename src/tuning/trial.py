"""One trial: the code of ``train``, then that of ``finetune``, with the trial's parameters."""

from dataclasses import dataclass
from typing import Any

import keras

from src.model.step import device_scope
from src.model.training import fit_phase
from src.params import Params
from src.tuning.heads import Heads
from src.tuning.phase import OnEpoch, Search


@dataclass(frozen=True)
class TrialResult:
    """A fine-tuned model, with what ``fit.json`` and ``timing.json`` would say.

    The model is good until the next trial, which may begin from the same one.
    """

    model: keras.Model
    fit: dict[str, Any]
    timing: dict[str, Any]


class Trials:
    """Runs the trials of a process, one after another."""

    def __init__(self, search: Search) -> None:
        self._search = search
        self._heads = Heads(search)

    def run(self, params: Params, on_epoch: OnEpoch = lambda _: None) -> TrialResult:
        """Fit the head, or take the one kept, then fine-tune; ``on_epoch`` hears of fine-tuning.

        What ``on_epoch`` raises ends the trial and is passed on.

        Raises
        ------
        TrainingDiverged
            The loss became NaN or infinite.
        """
        classifier = self._heads.fitted(params)
        with device_scope(int(self._search.environment["gpus"])):
            fitted = fit_phase(
                classifier,
                self._search.data.train,
                self._search.data.val,
                params,
                "finetune",
                environment=self._search.environment,
                checkpoint=None,
                on_epoch=on_epoch,
                depths=[0, *self._search.depths],
                log=self._search.log,
            )
        return TrialResult(classifier, fitted.facts, fitted.timing)
