"""The classifier that is served: the same network with a calibrated probability as output."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from src.model.inference import MODEL_FILE, averaged_over_views, save_model
from src.system.durable import replacing_folder, write_json
from src.system.errors import ProjectError

CONTRACT_FILE = "contract.json"
CONTRACT: Mapping[str, Any] = {
    "format": 1,  # counts up with whatever changes the meaning of input or output
    "input": {"shape": [96, 96, 3], "dtype": "uint8", "channels": "RGB"},
    "preprocessing": "inside the model",
    "output": {"shape": [1], "dtype": "float32", "meaning": "probability of tumour"},
}
"""What goes into the served classifier and what comes out; kept beside its file."""

_REMEDY = "make one with this code: dvc repro --force evaluate register, and promote it"


class ContractError(ProjectError):
    """A classifier expects other input, or gives other output, than this code works with."""


def check_contract(recorded: Mapping[str, Any] | None, model: keras.Model) -> None:
    """Refuse a classifier whose recorded contract, or whose own input and output, differs.

    ``recorded`` is None where it was written before contracts were: those are of format 1.

    Raises
    ------
    ContractError
        With each difference.
    """
    recorded = recorded or {**CONTRACT, "format": 1}
    own = {
        side: {**CONTRACT[side], "shape": list(tensor.shape[1:]), "dtype": tensor.dtype}
        for side, tensor in (("input", model.input), ("output", model.output))
    }
    for found in (recorded, {**CONTRACT, **own}):
        different = [
            f"{name} is {found.get(name)}, this code works with {CONTRACT.get(name)}"
            for name in sorted(CONTRACT.keys() | found.keys())
            if found.get(name) != CONTRACT.get(name)
        ]
        if different:
            raise ContractError(f"the model's contract differs: {'; '.join(different)}; {_REMEDY}")


def probability_classifier(model: keras.Model, *, scale: float, shift: float) -> keras.Model:
    """uint8 (n, 96, 96, 3) → probability of tumour (n, 1) float32: sigmoid(scale * logit + shift).

    ``scale`` > 0, so that no ranking changes (:mod:`src.evaluation.calibration`).
    """
    calibrated = keras.layers.Rescaling(scale, offset=shift, name="calibration", dtype="float32")(
        model.output
    )
    probability = keras.layers.Activation("sigmoid", name="probability")(calibrated)
    return keras.Model(model.input, probability, name="tumour_probability")


def write_final(
    folder: Path,
    model: keras.Model,
    operating_point: Mapping[str, Any],
    seen: Mapping[str, list[str]],
) -> None:
    """Write ``models/final``: the classifier of probabilities, how to decide, which patches it saw.

    ``model`` gives a logit; ``operating_point`` has its scale, shift, threshold, and whether the
    mean over 8 views is meant (``tta``).
    """
    calibrated = probability_classifier(
        averaged_over_views(model) if operating_point["tta"] else model,
        scale=operating_point["scale"],
        shift=operating_point["shift"],
    )
    with replacing_folder(folder) as new:
        save_model(calibrated, new / MODEL_FILE)
        write_json(new / "operating_point.json", operating_point)
        write_json(new / CONTRACT_FILE, CONTRACT)
        for key, values in seen.items():
            (new / f"seen_{key}.txt").write_text("\n".join(values) + "\n", encoding="utf-8")
