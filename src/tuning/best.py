"""The weights of the best trial so far, kept on disk until the study's end logs them."""

from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from src import paths
from src.system.durable import read_json, replacing_folder, verify_folder, write_json
from src.system.errors import ProjectError

if TYPE_CHECKING:
    import keras

MODEL = "model.keras"
_ABOUT = "trial.json"


def keep_if_best(
    study_run_id: str,
    model: "keras.Model",
    *,
    number: int,
    score: float,
    root: Path = paths.TUNE_BEST,
) -> bool:
    """Save the model of trial ``number`` unless a better one was; higher ``score`` is better."""
    from src.model.saving import save_model

    root.mkdir(parents=True, exist_ok=True)
    folder = root / study_run_id
    with FileLock(root / f"{study_run_id}.lock"):
        kept = _kept(folder)
        if kept is not None and kept[1] >= score:
            return False
        with replacing_folder(folder) as temporary:
            save_model(model, temporary / MODEL)
            write_json(temporary / _ABOUT, {"number": number, "score": score})
    return True


def kept_model(study_run_id: str, number: int, *, root: Path = paths.TUNE_BEST) -> Path | None:
    """The file of the model of trial ``number``; None where it isn't the one kept."""
    kept = _kept(root / study_run_id)
    return root / study_run_id / MODEL if kept is not None and kept[0] == number else None


def _kept(folder: Path) -> tuple[int, float] | None:
    try:
        verify_folder(folder)
        about = read_json(folder / _ABOUT)
    except ProjectError:
        return None
    return int(about["number"]), float(about["score"])
