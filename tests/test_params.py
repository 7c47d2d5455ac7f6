"""params.yaml and its presets: every rule refuses in one line that names the key."""

from __future__ import annotations

import pytest
from ruamel.yaml import YAML

from src import paths
from src.params import ParamsError, load_params

PRESETS = sorted((paths.ROOT / "presets").glob("*.yaml"))
SAMPLE = paths.ROOT / "presets" / "sample.yaml"

PLATEAU = {"name": "plateau", "factor": 1.0, "patience": 1, "min_rate": 0.000001}
ONE_CYCLE = {"name": "one_cycle", "warmup_fraction": 0.3, "start_divisor": 25, "final_divisor": 100}
COLOURS = {"stain": 0, "brightness": 0, "contrast": 0}


@pytest.fixture
def load_with(tmp_path):
    """Load the sample preset with other values under dotted names."""

    def load(**values):
        yaml = YAML(typ="safe", pure=True)
        raw = yaml.load(SAMPLE)
        for name, value in values.items():
            section, *outer, key = name.split(".")
            inside = raw[section]
            for each in outer:
                inside = inside[each]
            inside[key] = value
        file = tmp_path / "params.yaml"
        yaml.dump(raw, file)
        return load_params(file)

    return load


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
    assert yaml.load(paths.PARAMS) == yaml.load(SAMPLE)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("finetune.learning_rate", 0, "finetune.learning_rate must be > 0 (got 0)"),
        ("finetune.learning_rate", -1.0, "finetune.learning_rate must be > 0 (got -1.0)"),
        ("finetune.learning_rate", "1e-3", "finetune.learning_rate must be a number (got '1e-3')"),
        ("finetune.learning_rate", float("nan"), "must be a finite number (got nan)"),
        ("finetune.learning_rate", True, "finetune.learning_rate must be a number (got True)"),
        ("finetune.depth", 17, "finetune.depth must be ≤ 16 (got 17)"),
        ("finetune.depth", -1, "finetune.depth must be ≥ 0 (got -1)"),
        ("finetune.depth", 3.5, "finetune.depth must be a whole number (got 3.5)"),
        ("finetune.batch_size", 0, "finetune.batch_size must be ≥ 1 (got 0)"),
        ("ingest.max_badd", 0, "ingest.max_badd: is not a known parameter"),
        ("finetune.schedule", PLATEAU, "finetune.schedule.factor must be < 1 (got 1.0)"),
        ("finetune.schedule", {"name": "zigzag"}, "finetune.schedule must have a name among"),
        ("finetune.schedule", {"factor": 0.5}, "finetune.schedule: needs a name"),
        ("train.class_weights", "on", "train.class_weights must be 'balanced' or 'none'"),
        ("train.class_weights", {"normal": 0, "tumour": 1}, "class_weights.normal must be > 0"),
        ("model.centre_crop", 63, "model: centre_crop must be even"),
        ("model.pooling", "max", "model.pooling must be 'avg', 'avg_max' or 'gem'"),
        ("train.optimizer", "lion", "must be 'adam', 'adamw' or 'sgd' (got 'lion')"),
        ("train.momentum", 1.0, "train.momentum must be < 1 (got 1.0)"),
        ("train.momentum", -0.1, "train.momentum must be ≥ 0 (got -0.1)"),
        ("train.weight_decay", 1.0, "train.weight_decay must be < 1 (got 1.0)"),
        ("train.weight_decay", 0.01, "weight_decay must be 0 with optimizer adam, or set"),
        ("train.label_smoothing", 0.5, "train.label_smoothing must be < 0.5"),
        ("train.label_smoothing", -0.1, "train.label_smoothing must be ≥ 0"),
        ("train.average_decay", 0, "train.average_decay must be > 0 (got 0)"),
        ("train.average_decay", 1.0, "train.average_decay must be < 1 (got 1.0)"),
        ("finetune.rate_decay", 0.0, "finetune.rate_decay must be > 0 (got 0.0)"),
        ("finetune.rate_decay", 1.1, "finetune.rate_decay must be ≤ 1 (got 1.1)"),
        ("finetune.augment", COLOURS | {"stain": 0.3}, "finetune.augment.stain must be ≤ 0.2"),
        ("finetune.augment", COLOURS | {"contrast": -1}, "finetune.augment.contrast must be ≥ 0"),
        ("finetune.augment", COLOURS, "must be > 0, or augment: null"),
        ("finetune.augment", {"blur": 1}, "finetune.augment.blur: is not a known parameter"),
        ("finetune.schedule", ONE_CYCLE | {"warmup_fraction": 1.0}, "warmup_fraction must be < 1"),
        ("finetune.schedule", ONE_CYCLE | {"start_divisor": 0.5}, "start_divisor must be ≥ 1"),
        ("split.val_fraction", 0.85, "split: val_fraction + holdout_fraction must be < 1"),
        ("split.group_by", "wsi", "split.group_by must be 'auto', 'slide', 'stain' or 'patch'"),
        ("split.n_folds", 2, "split.n_folds must be ≥ 3 (got 2)"),
        ("split.fold", 1, "fold must be < n_folds, or 0 without folds (got 1 of None)"),
        ("ingest.slides", "/etc/x.csv", "ingest.slides must lie below data/extra"),
        ("ingest.slides", "data/extra/../../x", "must lie below data/extra"),
        ("ingest.h5_sha256", {"a.h5": "zz"}, "must match ^[0-9a-f]{64}$ (got 'zz')"),
        ("evaluate.operating_point", {"cost_fn": 1.0}, "cost_fn with cost_fp (got cost_fn)"),
    ],
)
def test_a_bad_value_is_refused_in_one_line(load_with, name, value, message):
    """Catches row 52 of the bad inputs getting through, or a message without the key."""
    with pytest.raises(ParamsError) as refused:
        load_with(**{name: value})
    assert str(refused.value).startswith("params.yaml: ")
    assert message in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  depth: 3", "  depth: !!python/object/apply:os.getcwd []", "unsafe YAML"),
        ("  depth: 3", "  depth: 3\n  depth: 4", "duplicate key"),
        ("  depth: 3", "  depth: [3", "not valid YAML"),
        ("  max_bad: 0", "", "ingest.max_bad: is missing"),
        ("sample:", "simple:", "simple: is not a known parameter"),
    ],
)
def test_bad_yaml_is_refused_in_one_line(tmp_path, old, new, message):
    """Catches row 53: code that runs when params.yaml is read, or a parser's traceback."""
    text = SAMPLE.read_text()
    assert old in text
    file = tmp_path / "params.yaml"
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(ParamsError) as refused:
        load_params(file)
    assert str(refused.value).startswith("params.yaml: ")
    assert message in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_missing_empty_and_foreign_files(tmp_path):
    """Catches a traceback for a file that isn't there, holds nothing, or isn't text."""
    file = tmp_path / "params.yaml"
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
    with pytest.raises(ValueError, match="frozen"):
        load_params().finetune.depth = 4


def test_whole_numbers_pass_where_a_number_is_meant(load_with):
    """Catches `margin: 0` being refused."""
    assert load_with(**{"register.margin": 0}).register_.margin == 0


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_weight_decay_goes_with_decoupled_optimizers(load_with, optimizer):
    """Catches the rule for adam refusing the others."""
    params = load_with(**{"train.optimizer": optimizer, "train.weight_decay": 0.01})
    assert (params.train.optimizer, params.train.weight_decay) == (optimizer, 0.01)
