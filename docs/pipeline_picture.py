"""Draw docs/pipeline.png from dvc.yaml: ``python docs/pipeline_picture.py``."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
SAYS = {
    "sample": "generated archive\nin Kaggle's layout",
    "ingest": "decode, check, pack\nuint8 (n, 96, 96, 3)",
    "split": "train / val / holdout\nby whole slides",
    "explore": "pictures of\nthe data",
    "train": "ResNet50 frozen,\nhead only",
    "finetune": "top residual\nblocks too",
    "evaluate": "intervals, baseline,\nthreshold from val",
    "register": "challenger, and\nchampion by evidence",
    "predict": "submission.csv\nand its lineage",
}
LOGS_TO_MLFLOW = ("explore", "train", "finetune", "evaluate", "register")
BLUE, VERMILLION, GREY = "#0072B2", "#D55E00", "#555555"


PLACES = {  # column, row
    "sample": (0, 1),
    "ingest": (1, 1),
    "split": (2, 1),
    "train": (3, 1),
    "finetune": (4, 1),
    "explore": (2, 0),
    "evaluate": (4, 0),
    "register": (5, 0),
    "predict": (6, 0),
}
NEEDS = (
    ("sample", "ingest"),
    ("ingest", "split"),
    ("split", "train"),
    ("train", "finetune"),
    ("split", "explore"),
    ("explore", "evaluate"),
    ("finetune", "evaluate"),
    ("evaluate", "register"),
    ("register", "predict"),
)


def main() -> None:
    stages = YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"]
    assert set(stages) == set(PLACES), "draw the stages that dvc.yaml has"
    figure = Figure(figsize=(14, 4), dpi=110)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 7.1)
    axes.set_ylim(0, 2.75)
    axes.axis("off")
    centres = {stage: (0.55 + x, 0.65 + 1.2 * y) for stage, (x, y) in PLACES.items()}
    for stage, (x, y) in centres.items():
        _box(axes, stage, x, y)
    for before, after in NEEDS:
        _arrow(axes, centres[before], centres[after])
    axes.text(0.12, 2.5, "dvc repro: archive to submission", fontsize=15, weight="bold")
    axes.text(6.98, 2.5, "orange: logged to MLflow", fontsize=11, color=VERMILLION, ha="right")
    figure.savefig(ROOT / "docs" / "pipeline.png")


def _box(axes, stage: str, x: float, y: float) -> None:
    colour = VERMILLION if stage in LOGS_TO_MLFLOW else BLUE
    shape = "round,pad=0.02,rounding_size=0.05"
    axes.add_patch(
        FancyBboxPatch((x - 0.4, y - 0.4), 0.8, 0.8, boxstyle=shape, fc="white", ec=colour, lw=2)
    )
    axes.text(x, y + 0.2, stage, ha="center", va="center", fontsize=14, weight="bold", color=colour)
    axes.text(x, y - 0.14, SAYS[stage], ha="center", va="center", fontsize=9.5, color=GREY)


def _arrow(axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    (x0, y0), (x1, y1) = start, end
    ends = ((x0 + 0.43, y0), (x1 - 0.43, y1)) if y0 == y1 else ((x0, y0 - 0.43), (x1, y1 + 0.43))
    axes.add_patch(FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=16, color=GREY))


if __name__ == "__main__":
    main()
