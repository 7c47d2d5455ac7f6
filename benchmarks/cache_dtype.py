"""What rounding activations to float16 does to a training: ``python -m benchmarks.cache_dtype``.

The same fine-tuning from the same head, once for each ``cache.dtype``: losses, AUROC on val, and
the largest error of an activation relative to the largest activation. Generated patches.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.measured import runtime
from benchmarks.training_ways import generate, phase_setting
from src.model.activations import as_stored
from src.params import Params, load_params
from src.paths import ROOT

COLUMNS = ("loss", "val_loss", "val_auroc")


def main(
    patches: int = 512, val: int = 512, depth: int = 3, epochs: int = 4, seed: int = 1
) -> None:
    """Print the last epoch of both, and how far apart all epochs are at most."""
    data, ends = generate(patches, val), {}
    for dtype in ("float32", "float16"):
        histories, error = _trained(data, _params(dtype, depth, epochs, seed))
        ends[dtype] = (histories, error)
    table = Table(
        "cache.dtype", *COLUMNS, "largest error", title=f"depth {depth}, {patches} patches"
    )
    for dtype, (history, error) in ends.items():
        table.add_row(dtype, *(f"{history[-1][name]:.6f}" for name in COLUMNS), f"{error:.1e}")
    gaps = [
        max(
            abs(a[name] - b[name])
            for a, b in zip(ends["float32"][0], ends["float16"][0], strict=False)
        )
        for name in COLUMNS
    ]
    table.add_row("largest difference of an epoch", *(f"{gap:.1e}" for gap in gaps), "")
    Console(width=100).print(table)


def _params(dtype: str, depth: int, epochs: int, seed: int) -> Params:
    params = load_params(ROOT / "presets" / "sample.yaml")
    changes = {"depth": depth, "epochs": epochs, "seed": seed}
    return params.model_copy(
        update={
            "cache": params.cache.model_copy(update={"dtype": dtype}),
            "finetune": params.finetune.model_copy(update=changes),
        }
    )


def _trained(data: Any, params: Params) -> tuple[list[dict[str, float]], float]:
    """Epochs of a fine-tuning after a head, and the largest relative error of an activation."""
    import keras

    from src.model.classifier import build_classifier
    from src.model.freezing import cut
    from src.model.phases import finetune_top, train_head
    from src.system.determinism import start_tensorflow

    environment = start_tensorflow(runtime(), seed=params.finetune.seed)
    keras.backend.clear_session()
    keras.utils.set_random_seed(params.finetune.seed)
    with tempfile.TemporaryDirectory(prefix="hcd-") as folder:
        model = build_classifier(params.model)
        head = phase_setting(data, params, environment, Path(folder) / "head")
        train_head(model, params.train, head)
        trunk, _ = cut(model, backbone=params.model.backbone, depth=params.finetune.depth)
        if trunk is None:
            raise SystemExit("nothing is frozen at that depth, so nothing is kept")
        exact = trunk(data.val.pixels[:64], training=False).numpy()
        stored = as_stored(exact, params.cache.dtype).astype(np.float32)
        top = phase_setting(data, params, environment, Path(folder) / "top")
        fitted = finetune_top(model, params.finetune, top)
    return fitted.facts["history"], float(np.abs(stored - exact).max() / np.abs(exact).max())


if __name__ == "__main__":
    typer.run(main)
