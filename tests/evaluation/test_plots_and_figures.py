"""Tables for ``dvc plots`` and pictures: right rows, right conclusions, no global state."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from src.evaluation import figures
from src.evaluation.intervals import Interval
from src.evaluation.metrics import scored
from src.evaluation.plots import plot_tables


def _fit(stage, n_epochs, best_epoch):
    history = [
        {
            "epoch": epoch,
            "loss": 0.7 / epoch,
            "val_loss": 0.8 / epoch,
            "val_auroc": 1 - 0.4 / epoch,
            "learning_rate": 0.001 / epoch,
        }
        for epoch in range(1, n_epochs + 1)
    ]
    return {
        "stage": stage,
        "history": history,
        "schedule": {"name": "cosine"},
        "best_epoch": best_epoch,
        "stopped_early": False,
    }


FITS = [_fit("train", 3, 2), _fit("finetune", 2, 2)]


@pytest.fixture
def holdout():
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=2000).astype(np.int8)
    return pd.DataFrame({"label": labels, "probability": rng.random(2000) * 0.5 + labels * 0.4})


def test_confusion_table_has_one_row_a_patch():
    """Actual and predicted swapped, or > in place of >=."""
    holdout = pd.DataFrame({"label": [1, 1, 0, 0, 0], "probability": [0.5, 0.4, 0.6, 0.1, 0.2]})
    table = plot_tables(holdout, FITS, threshold=0.5)["confusion"]
    assert table["actual"].tolist() == ["tumour"] * 2 + ["normal"] * 3
    assert table["predicted"].tolist() == ["tumour", "normal", "tumour", "normal", "normal"]


def test_curves_are_thinned(holdout):
    """33,000 points in a browser."""
    tables = plot_tables(holdout, FITS, threshold=0.5)
    assert list(tables["roc"]) == ["fpr", "tpr"]
    assert len(tables["roc"]) == 500
    assert list(tables["precision_recall"]) == ["recall", "precision"]
    assert len(tables["precision_recall"]) <= 500


def test_epochs_count_on_from_train_to_finetune(holdout):
    """Two rows at epoch 1 draw a line that runs back."""
    tables = plot_tables(holdout, FITS, threshold=0.5)
    assert tables["loss"]["epoch"].tolist() == [1, 2, 3, 4, 5]
    assert tables["loss"]["stage_epoch"].tolist() == [1, 2, 3, 1, 2]
    assert tables["loss"]["stage"].tolist() == ["train"] * 3 + ["finetune"] * 2
    assert tables["learning_rate"]["learning_rate"].tolist()[3] == 0.001


def _pictures(holdout):
    patches = scored(holdout["label"], holdout["probability"], threshold=0.5)
    rng = np.random.default_rng(1)
    return {
        "roc": figures.roc(
            patches,
            scored(holdout["label"], rng.random(len(holdout))),
            auroc=Interval(0.912, 0.88, 0.94),
            baseline_auroc=0.5,
        ),
        "precision_recall": figures.precision_recall(
            patches, average_precision=Interval(0.9, 0.85, 0.93)
        ),
        "confusion": figures.confusion(patches),
        "reliability": figures.reliability(
            holdout["label"].to_numpy(),
            np.sqrt(patches.scores),
            patches.scores,
            scale=0.6,
            shift=-0.4,
        ),
        "learning_curves": figures.learning_curves(*FITS),
        "one_learning_curve": figures.learning_curves(FITS[0]),
    }


def test_pictures_are_drawn_and_say_what_to_conclude(holdout, tmp_path):
    """An exception on drawing, or a title without its number."""
    pictures = _pictures(holdout)
    for name, figure in pictures.items():
        figure.savefig(tmp_path / f"{name}.png")
    titles = {name: figure.axes[0].get_title() for name, figure in pictures.items()}
    assert titles["roc"] == (
        "AUROC 0.912 (0.880 to 0.940) on holdout,\n+0.412 against the colour baseline"
    )
    assert titles["learning_curves"] == (
        "train: val AUROC 0.800, val loss 0.400\nin its best epoch 2, of 3"
    )
    assert "scale 0.60, shift -0.40" in titles["reliability"]
    assert len(pictures["learning_curves"].axes) == 4


def test_confusion_picture_has_normal_first():
    """A transposed matrix."""
    small = pd.DataFrame(
        {"label": [1, 1, 1, 1, 0, 0], "probability": [0.9] + [0.1] * 3 + [0.9, 0.1]}
    )
    axes = figures.confusion(scored(small["label"], small["probability"], threshold=0.5)).axes[0]
    cells = {text.get_position(): text.get_text().split("\n")[0] for text in axes.texts}
    assert cells == {(0, 0): "1", (1, 0): "1", (0, 1): "3", (1, 1): "1"}
    assert "finds 25.0% of tumour" in axes.get_title()


def test_pyplot_is_not_loaded():
    """Its state leaks figures, and its backend wants a display."""
    code = "import sys, src.evaluation.figures; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
