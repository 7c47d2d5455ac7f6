"""params.yaml and its presets: every rule refuses in one line that names the key."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from src import paths
from src.params import ParamsError, load_params

PRESETS = sorted((paths.ROOT / "presets").glob("*.yaml"))
BASE = (paths.ROOT / "presets" / "sample.yaml").read_text()

AUGMENT = "augment: {{stain: {}, brightness: {}, contrast: {}}}"
# train has the same schedule; what follows tells finetune's from it
AFTER = "\n  early_stopping: {monitor: val_auroc, patience: 4"
COSINE = "{name: cosine, warmup_epochs: 1, final_fraction: 0.01}" + AFTER
PLATEAU = "{name: plateau, factor: 1.0, patience: 1, min_rate: 0.000001}" + AFTER
ZIGZAG = "{name: zigzag}" + AFTER
ONE_CYCLE = (
    "{{name: one_cycle, warmup_fraction: {}, start_divisor: {}, final_divisor: {}}}"
    + AFTER.replace("{", "{{")
)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.stem)
def test_every_preset_is_valid(preset):
    """Catches a preset that a changed parameter left behind."""
    load_params(preset)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.stem)
def test_trials_of_a_preset_are_long_enough(preset):
    """Catches a search that takes what learns fast for what learns best: on the sample, trials of a
    quarter of the epochs, pruned halfway, chose a setting that was worse in full."""
    params = load_params(preset)
    in_full = params.finetune.epochs
    epochs = params.tune.epochs or in_full
    assert epochs >= in_full / 2
    assert params.tune.pruner.warmup_epochs + 1 >= epochs / 2


def test_shipped_params_are_the_sample_preset():
    """Catches the two drifting apart; comments may differ, values not."""
    yaml = YAML(typ="safe", pure=True)
    assert yaml.load(paths.PARAMS) == yaml.load(paths.ROOT / "presets" / "sample.yaml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "learning_rate: 0.00002",
            "learning_rate: 0",
            "finetune.learning_rate must be > 0 (got 0)",
        ),
        ("learning_rate: 0.00002", "learning_rate: -1.0", "finetune.learning_rate must be > 0"),
        ("learning_rate: 0.00002", 'learning_rate: "1e-3"', "must be a number (got '1e-3')"),
        ("learning_rate: 0.00002", "learning_rate: .nan", "must be a finite number (got nan)"),
        (
            "learning_rate: 0.00002",
            "learning_rate: true",
            "finetune.learning_rate must be a number",
        ),
        ("depth: 3", "depth: 17", "finetune.depth must be ≤ 16 (got 17)"),
        ("depth: 3", "depth: -1", "finetune.depth must be ≥ 0 (got -1)"),
        ("depth: 3", "depth: 3.5", "finetune.depth must be a whole number (got 3.5)"),
        ("batch_size: 32", "batch_size: 0", "finetune.batch_size must be ≥ 1 (got 0)"),
        ("max_bad: 0", "max_badd: 0", "ingest.max_badd: is not a known parameter"),
        ("  max_bad: 0", "", "ingest.max_bad: is missing"),
        (COSINE, PLATEAU, "finetune.schedule.factor must be < 1 (got 1.0)"),
        (COSINE, ZIGZAG, "finetune.schedule must have a name among"),
        ("class_weights: balanced", "class_weights: on", "must be 'balanced' or 'none'"),
        ("class_weights: balanced", "class_weights: {normal: 0, tumour: 1}", "normal must be > 0"),
        ("centre_crop: 64", "centre_crop: 63", "centre_crop must be even"),
        ("pooling: avg", "pooling: max", "model.pooling must be 'avg', 'avg_max' or 'gem'"),
        ("optimizer: adam\n", "optimizer: lion\n", "must be 'adam', 'adamw' or 'sgd' (got 'lion')"),
        ("  optimizer: adam\n", "", "finetune.optimizer: is missing"),
        ("momentum: 0.9", "momentum: 1.0", "train.momentum must be < 1 (got 1.0)"),
        ("momentum: 0.9", "momentum: -0.1", "train.momentum must be ≥ 0 (got -0.1)"),
        ("weight_decay: 0.0", "weight_decay: 1.0", "train.weight_decay must be < 1 (got 1.0)"),
        ("weight_decay: 0.0", "weight_decay: 0.01", "must be 0 with optimizer adam, or set"),
        ("label_smoothing: 0.0", "label_smoothing: 0.5", "label_smoothing must be < 0.5"),
        ("label_smoothing: 0.0", "label_smoothing: -0.1", "label_smoothing must be ≥ 0"),
        ("average_decay: null", "average_decay: 0", "average_decay must be > 0 (got 0)"),
        ("average_decay: null", "average_decay: 1.0", "average_decay must be < 1 (got 1.0)"),
        ("rate_decay: 1.0", "rate_decay: 0.0", "finetune.rate_decay must be > 0 (got 0.0)"),
        ("rate_decay: 1.0", "rate_decay: 1.1", "finetune.rate_decay must be ≤ 1 (got 1.1)"),
        ("augment: null", AUGMENT.format(0.3, 0, 0), "finetune.augment.stain must be ≤ 0.2"),
        ("augment: null", AUGMENT.format(0, -0.1, 0), "finetune.augment.brightness must be ≥ 0"),
        ("augment: null", AUGMENT.format(0, 0, 0.6), "finetune.augment.contrast must be ≤ 0.5"),
        ("augment: null", AUGMENT.format(0, 0, 0), "must be > 0, or augment: null"),
        ("augment: null", "augment: {blur: 1}", "finetune.augment.blur: is not a known parameter"),
        (COSINE, ONE_CYCLE.format(1.0, 25, 100), "schedule.warmup_fraction must be < 1"),
        (COSINE, ONE_CYCLE.format(0.3, 0.5, 100), "finetune.schedule.start_divisor must be ≥ 1"),
        (COSINE, ONE_CYCLE.format(0.3, 25, 0), "finetune.schedule.final_divisor must be ≥ 1"),
        ("val_fraction: 0.2", "val_fraction: 0.75", "val_fraction + holdout_fraction must be < 1"),
        ("group_by: auto", "group_by: wsi", "must be 'auto', 'slide', 'stain' or 'patch'"),
        ("n_folds: null", "n_folds: 2", "split.n_folds must be ≥ 3 (got 2)"),
        ("  fold: 0", "  fold: 1", "fold must be < n_folds, or 0 without folds (got 1 of None)"),
        ("slides: null", "slides: /etc/x.csv", "ingest.slides must lie below data/extra"),
        ("slides: null", "slides: data/extra/../../x", "must lie below data/extra"),
        ("extra: []", "extra: [data/extra/a, data/extra/a]", "must name different archives"),
        ("h5_sha256: {}", "h5_sha256: {a.h5: zz}", "must match ^[0-9a-f]{64}$ (got 'zz')"),
        ("depth: 3", "depth: !!python/object/apply:os.getcwd []", "unsafe YAML"),
        ("depth: 3", "depth: 3\n  depth: 4", "duplicate key"),
        ("depth: 3", "depth: [3", "not valid YAML"),
    ],
)
def test_a_bad_value_is_refused_in_one_line(tmp_path, old, new, message):
    """Catches rows 52 and 53 of the bad inputs getting through, or a message without the key."""
    assert old in BASE
    file = tmp_path / "params.yaml"
    file.write_text(BASE.replace(old, new))
    with pytest.raises(ParamsError) as refused:
        load_params(file)
    assert str(refused.value).startswith("params.yaml: ")
    assert message in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_missing_empty_and_foreign_files(tmp_path):
    """Catches a traceback for a file that isn't there, holds nothing, or isn't text."""
    file = Path(tmp_path / "params.yaml")
    with pytest.raises(ParamsError, match=r"not found .*copy presets/sample\.yaml"):
        load_params(file)
    file.write_text("")
    with pytest.raises(ParamsError, match="expected sections, got NoneType"):
        load_params(file)
    file.write_bytes("sample: ä".encode("utf-16"))
    with pytest.raises(ParamsError, match="not UTF-8"):
        load_params(file)


def test_values_cannot_be_changed_after_reading():
    """Catches a stage that edits parameters behind MLflow's back."""
    params = load_params()
    with pytest.raises(ValueError, match="frozen"):
        params.finetune.depth = 4


def test_whole_numbers_pass_where_a_number_is_meant(tmp_path):
    """Catches `margin: 0` being refused."""
    file = tmp_path / "params.yaml"
    file.write_text(BASE.replace("margin: 0.0", "margin: 0"))
    assert load_params(file).register_.margin == 0


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_weight_decay_goes_with_decoupled_optimizers(tmp_path, optimizer):
    """Catches the rule for adam refusing the others."""
    file = tmp_path / "params.yaml"
    text = BASE.replace("optimizer: adam ", f"optimizer: {optimizer} ")
    file.write_text(text.replace("weight_decay: 0.0 ", "weight_decay: 0.01 "))
    params = load_params(file)
    assert (params.train.optimizer, params.train.weight_decay) == (optimizer, 0.01)
