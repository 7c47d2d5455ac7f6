"""One trial: the code of ``train``, then that of ``finetune``, with the trial's parameters."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from src.params import Params
from src.tuning.heads import Heads
from src.tuning.phase import OnEpoch, Search, phase_setting

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class TrialResult:
    """A fine-tuned model, with what ``fit.json`` and ``timing.json`` would say.

    The model is good until the next trial, which may begin from the same one.
    """

    model: "keras.Model"
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
        from src.model.phases import finetune_top
        from src.model.replicas import device_scope

        head = self._heads.fitted(params)
        section = params.finetune
        with device_scope(int(self._search.environment["gpus"])):
            setting = phase_setting(
                params,
                section,
                self._search,
                initial_sha256=head.sha256,
                frozen=head.frozen,
                on_epoch=on_epoch,
            )
            fitted = finetune_top(head.classifier, section, setting)
        return TrialResult(head.classifier, fitted.facts, fitted.timing)
