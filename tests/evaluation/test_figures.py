"""Tables for ``dvc plots`` and pictures: right rows, right conclusions, no global state."""

import re

import numpy as np
import pandas as pd
import pytest

from src import paths
from src.evaluation import figures
from src.evaluation.curves import curve_bands
from src.evaluation.figures import plot_tables
from tests.evaluation.report_sources import THRESHOLD, predictions, sources


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


def test_epochs_count_on_from_train_to_finetune(holdout):
    """Two rows at epoch 1 draw a line that runs back."""
    tables = plot_tables(holdout, FITS, threshold=0.5)
    assert tables["loss"]["epoch"].tolist() == [1, 2, 3, 4, 5]
    assert tables["loss"]["stage_epoch"].tolist() == [1, 2, 3, 1, 2]
    assert tables["loss"]["stage"].tolist() == ["train"] * 3 + ["finetune"] * 2
    assert tables["learning_rate"]["learning_rate"].tolist()[3] == 0.001


@pytest.fixture(scope="module")
def drawn():
    made = sources()
    found = made.holdout["label"], made.holdout["probability"], made.holdout["group"]
    bands = curve_bands(*found, confidence=0.95)
    return made, figures.holdout_figures(made.holdout, made.metrics, bands)


def test_titles_say_what_to_conclude(drawn):
    """A title without its number, or with another's."""
    made, pictures = drawn
    titles = {name: figure.axes[0].get_title() for name, figure in pictures.items()}
    holdout, baseline = made.metrics["holdout"], made.metrics["baseline"]["auroc"]
    low, high = holdout["auroc_low"], holdout["auroc_high"]
    assert titles["roc"] == (
        f"AUROC {holdout['auroc']:.3f} ({low:.3f} to {high:.3f}) on holdout,\n"
        f"{holdout['auroc'] - baseline:+.3f} against the colour baseline"
    )
    assert "scale 0.80, shift -0.30" in titles["reliability"]
    assert f"finds {holdout['sensitivity']:.1%} of tumour" in titles["confusion"]


def test_too_few_groups_and_no_patch_called_tumour_can_be_drawn(tmp_path):
    """A stage that fails after hours of training on a title for want of a bound."""
    made = sources(predictions(n_groups=2))
    holdout = {k: v for k, v in made.metrics["holdout"].items() if not k.startswith("ppv")}
    metrics = {**made.metrics, "holdout": holdout}
    found = made.holdout["label"], made.holdout["probability"], made.holdout["group"]
    bands = curve_bands(*found, confidence=0.95)
    for name, figure in figures.holdout_figures(made.holdout, metrics, bands).items():
        figure.savefig(tmp_path / f"{name}.png")
        assert "nan" not in figures.inline_svg(figure, name)


def test_learning_curves_have_a_row_a_phase(tmp_path):
    picture = figures.learning_curves(*FITS)
    picture.savefig(tmp_path / "learning_curves.png")
    assert len(picture.axes) == 6
    assert picture.axes[0].get_title(loc="left") == (
        "train: val AUROC 0.800, val loss 0.400 in its best epoch 2, of 3"
    )


def test_confusion_picture_has_normal_first(drawn):
    """A transposed matrix."""
    made, pictures = drawn
    is_tumour = made.holdout["label"].astype(bool)
    called = made.holdout["probability"] >= THRESHOLD
    cells = {
        text.get_position(): int(text.get_text().split("\n")[0])
        for text in pictures["confusion"].axes[0].texts
    }
    assert cells == {
        (0, 0): (~is_tumour & ~called).sum(),
        (1, 0): (~is_tumour & called).sum(),
        (0, 1): (is_tumour & ~called).sum(),
        (1, 1): (is_tumour & called).sum(),
    }


def test_inlined_figures_take_the_colours_of_the_page_and_share_no_id(drawn):
    """A white picture on a dark page, or a clip path of another figure."""
    style = (paths.ROOT / "src/evaluation/page/style.css").read_text()
    svgs = [figures.inline_svg(figure, name) for name, figure in drawn[1].items()]
    for svg in svgs[:4]:
        assert not re.search(r"#[0-9a-f]{6}\b", svg)
        assert all(f"{name}:" in style for name in re.findall(r"var\((--\w+)\)", svg))
        assert "<style" not in svg  # it would hold for the whole page
    ids = [id_ for svg in svgs for id_ in re.findall(r'\bid="([^"]*)"', svg)]
    assert len(ids) == len(set(ids))
    for svg in svgs:
        referred = re.findall(r'(?:url\(|href=")#([\w-]+)', svg)
        assert set(referred) <= set(ids)


def test_inlined_figures_are_the_same_from_run_to_run():
    """A report whose bytes change though nothing else did."""
    svg, again = (figures.inline_svg(figures.learning_curves(FITS[0]), "fit") for _ in range(2))
    assert svg == again
