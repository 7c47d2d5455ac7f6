"""Fitted heads: one for all trials that agree in its parameters, on disk and in memory.

On disk it lies below ``.cache/tune/heads``, by the digest of all it depends on. In memory the
classifier of the last one stays: putting its weights back is quicker than loading it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from src.params import Params
from src.system.durable import IntegrityError
from src.tuning.phase import Search, phase_setting, result_key, start_phase
from src.tuning.tidying import keep_newest, mark_used

if TYPE_CHECKING:
    import keras

    from src.model.frozen import FrozenBackbone

_KEPT = 16  # of a big ResNet 100 MB each


@dataclass(frozen=True)
class Head:
    """A classifier whose head is fitted.

    Attributes
    ----------
    sha256 : digest of its weights
    frozen : its backbone, cut at the depths that trials may have; None on a GPU, where it was not
        tested that passes for one depth and for several give the same bits
    """

    classifier: "keras.Model"
    sha256: str
    frozen: "FrozenBackbone | None"


@dataclass(frozen=True)
class _Loaded:
    """A head in memory, with the values of all its variables as they were loaded."""

    folder: Path
    head: Head
    values: list[NDArray[Any]]

    def restore(self) -> None:
        """Undo what was trained since; which layers are trained is for the next phase to say."""
        for variable, value in zip(self.head.classifier.variables, self.values, strict=True):
            variable.assign(value)


class Heads:
    """Hands out the classifiers that fine-tuning begins from; each is good until the next."""

    def __init__(self, search: Search) -> None:
        self._search = search
        self._loaded: _Loaded | None = None
        self._backbone: FrozenBackbone | None = None

    def fitted(self, params: Params) -> Head:
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
            self._loaded = self._load(folder, params)
        return self._loaded.head

    def _load(self, folder: Path, params: Params) -> "_Loaded":
        from src.model.inference import load_classifier
        from src.model.replicas import device_scope
        from src.model.weights import weights_sha256

        with device_scope(int(self._search.environment["gpus"])):
            classifier = load_classifier(folder)
        head = Head(classifier, weights_sha256(classifier), self._frozen(classifier, params))
        return _Loaded(folder, head, [variable.numpy() for variable in classifier.variables])

    def _frozen(self, classifier: "keras.Model", params: Params) -> "FrozenBackbone | None":
        """At a moment when nothing is fine-tuned; the former one where the backbone is the same,
        with its compiled passes.
        """
        from src.model.boundary import boundary_at
        from src.model.frozen import FrozenBackbone

        if self._search.environment["gpus"]:
            return None
        about: dict[str, Any] = {
            "backbone": params.model.backbone,
            "cache_params": params.cache,
            "environment": self._search.environment,
        }
        whole = boundary_at(0, classifier, **about)
        if self._backbone is None or not self._backbone.is_same_at(0, whole):
            depths = [0, *self._search.depths]
            self._backbone = FrozenBackbone(classifier, depths=depths, **about)
        return self._backbone

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
        from src.model.classifier import build_classifier
        from src.model.phases import train_head
        from src.model.replicas import device_scope
        from src.model.saving import save_phase
        from src.model.weights import load_initial_weights, weights_sha256

        self._loaded = None  # gives its memory back
        start_phase(params.train.seed)
        with device_scope(int(self._search.environment["gpus"])):
            classifier = build_classifier(params.model)
            load_initial_weights(classifier, params.model)
            initial = weights_sha256(classifier)
            setting = phase_setting(
                params,
                params.train,
                self._search,
                initial_sha256=initial,
                frozen=self._frozen(classifier, params),
            )
            fitted = train_head(classifier, params.train, setting)
        save_phase(folder, classifier, fit=fitted.facts, timing=fitted.timing, run={})
