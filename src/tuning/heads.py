"""Fitted heads: one for all trials that agree in its parameters, on disk and in memory.

On disk it lies below ``.cache/tune/heads``, by the digest of all it depends on. In memory the
classifier of the last one stays: putting its weights back is quicker than loading it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
from numpy.typing import NDArray

from src.model.classifier import build_classifier
from src.model.inference import load_classifier
from src.model.saving import save_phase
from src.model.step import device_scope
from src.model.training import fit_phase
from src.model.weights import load_initial_weights
from src.params import Params
from src.system.durable import IntegrityError
from src.tuning.phase import Search, result_key, start_phase
from src.tuning.tidying import keep_newest, mark_used

_KEPT = 16  # of a big ResNet 100 MB each


@dataclass(frozen=True)
class _Loaded:
    """A head in memory, with the values of all its variables as they were loaded."""

    folder: Path
    classifier: keras.Model
    values: list[NDArray[Any]]

    def restore(self) -> None:
        """Undo what was trained since; which layers are trained is for the next phase to say."""
        for variable, value in zip(self.classifier.variables, self.values, strict=True):
            variable.assign(value)


class Heads:
    """Hands out the classifiers that fine-tuning begins from; each is good until the next."""

    def __init__(self, search: Search) -> None:
        self._search = search
        self._loaded: _Loaded | None = None

    def fitted(self, params: Params) -> keras.Model:
        """The head that these parameters lead to, fitted now unless it was before.

        Leaves TensorFlow and Keras as a fresh process has them when it has loaded the classifier.

        Raises
        ------
        TrainingDiverged
            The loss became NaN or infinite.
        """
        folder = self._ensure(params)
        start_phase(params.finetune.seed)
        if self._loaded is not None and self._loaded.folder == folder:
            self._loaded.restore()
        else:
            self._loaded = None
            self._loaded = self._load(folder)
        return self._loaded.classifier

    def _load(self, folder: Path) -> _Loaded:

        with device_scope(int(self._search.environment["gpus"])):
            classifier = load_classifier(folder)
        return _Loaded(folder, classifier, [variable.numpy() for variable in classifier.variables])

    def _ensure(self, params: Params) -> Path:
        """The folder of the head; two processes that want the same one take turns."""
        from filelock import FileLock

        from src.system.durable import verify_folder

        root = self._search.heads
        folder = root / result_key(params, self._search, sections=("model", "train"))[:32]
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            try:
                verify_folder(folder)
            except IntegrityError:
                self._fit(params, folder)
            mark_used(folder)
        keep_newest(root, _KEPT)
        return folder

    def _fit(self, params: Params, folder: Path) -> None:

        self._loaded = None  # gives its memory back
        start_phase(params.train.seed)
        with device_scope(int(self._search.environment["gpus"])):
            classifier = build_classifier(params.model)
            load_initial_weights(classifier, params.model)
            fitted = fit_phase(
                classifier,
                self._search.data.train,
                self._search.data.val,
                params,
                "train",
                environment=self._search.environment,
                checkpoint=None,
                on_epoch=lambda _: None,
                depths=self._search.depths,
                log=self._search.log,
            )
        save_phase(folder, classifier, fitted, run={})
