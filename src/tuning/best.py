"""The weights of the best trial so far, kept on disk until the study's end logs them.

They are known by their digest: the trial that made them may have been killed before it could say
so, and another one that stands in for it makes the same.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from src import paths
from src.system.durable import read_json, replacing_folder, verify_folder, write_json
from src.system.errors import ProjectError
from src.tuning.tidying import keep_newest

MODEL = "model.keras"

_ABOUT = "trial.json"
_STUDIES_KEPT = 3


def keep_if_best(
    study_key: str,
    save: Callable[[Path], object],
    *,
    number: int,
    score: float,
    sha256: str,
    root: Path | None = None,
) -> bool:
    """Let ``save`` write the model of trial ``number`` unless a better one is kept; whether it did.

    Higher ``score`` is better, of equals the lower number. ``sha256`` is the weights' digest.
    """
    root = root or paths.TUNE_BEST
    root.mkdir(parents=True, exist_ok=True)
    folder = root / study_key
    with FileLock(root / f"{study_key}.lock"):
        kept = _kept(folder)
        if kept is not None and (kept["score"], -kept["number"]) >= (score, -number):
            return False
        with replacing_folder(folder) as temporary:
            save(temporary / MODEL)
            write_json(temporary / _ABOUT, {"number": number, "score": score, "sha256": sha256})
    keep_newest(root, _STUDIES_KEPT)
    return True


def kept_model(study_key: str, sha256: str, *, root: Path | None = None) -> Path | None:
    """The file of the model with these weights; None where others are kept."""
    folder = (root or paths.TUNE_BEST) / study_key
    kept = _kept(folder)
    return folder / MODEL if kept is not None and kept["sha256"] == sha256 else None


def _kept(folder: Path) -> dict[str, Any] | None:
    try:
        verify_folder(folder)
        about: dict[str, Any] = read_json(folder / _ABOUT)
    except ProjectError:
        return None
    return about
