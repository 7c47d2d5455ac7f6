"""Sentences that must follow from the numbers."""

from dataclasses import asdict

import pytest

from src.drawing.plan import plan_subset
from src.evaluation.intervals import Difference
from src.evaluation.promotion import against_baseline
from src.evaluation.report_facts import caveats, rule, verdict
from tests.evaluation.report_sources import sources


@pytest.fixture(scope="module")
def made():
    return sources()


def _metrics(made, **changes):
    """Metrics with values replaced within their sections."""
    changed = {name: {**made.metrics[name], **values} for name, values in changes.items()}
    return {**made.metrics, **changed}


def _caveats(made, **changes):
    return " ".join(caveats(sources(metrics=_metrics(made, **changes))))


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (0.01, 0.2, "The model beats the colour baseline: AUROC +0.100 (97.5 % interval +0.010 to"),
        (-0.1, 0.3, "): colour alone may explain its result"),
        (-0.3, -0.01, "): don't use it"),
    ],
)
def test_verdict_follows_the_gate(made, low, high, told):
    """A value above the baseline with an interval over 0 sold as better; or other words than the
    gate's."""
    difference = Difference((low + high) / 2 - 0.005, low, high, 0.975)
    against = {"beats": low > 0, "text": against_baseline(difference), **asdict(difference)}
    said = verdict(_metrics(made, against_baseline=against))
    assert told in said
    assert f"reaches {made.metrics['baseline']['auroc']:.3f}" in said
    assert "tissue" not in said  # which no comparison with colours proves


@pytest.mark.parametrize(
    ("point", "told"),
    [
        ({"min_sensitivity": 0.95}, "sensitivity of at least 0.95"),
        ({"min_specificity": 0.9}, "specificity of at least 0.9"),
        ({"cost_fn": 5.0, "cost_fp": 1.0}, "5 per missed tumour patch and 1 per false alarm"),
    ],
)
def test_rule_is_the_one_that_chose(point, told):
    assert told in rule({"operating_point": {"threshold": 0.1, **point}})


def test_generated_patches_are_known_by_their_slides_not_by_a_file_name(made):
    """A renamed sample that passes for tissue, or a real archive named sample.zip."""
    plan = plan_subset(seed=1, subset="train", n_patches=40, n_slides=4)
    names = plan.slide_names()
    named = [names[place % 40] for place in range(len(made.holdout))]
    drawn = sources(holdout=made.holdout.assign(slide=named))
    assert "are generated, not real tissue" in " ".join(caveats(drawn))
    real = sources(ingest={"archive": {"name": "sample.zip"}})
    assert "are generated" not in " ".join(caveats(real))
    unknown = sources(holdout=made.holdout.assign(slide=None))
    assert "are generated" not in " ".join(caveats(unknown))


def test_sensitivity_missed_on_holdout_is_said(made):
    """A promise of 0.95 that holdout doesn't keep."""
    assert "0.850 on holdout" in _caveats(made, holdout={"sensitivity": 0.85})
    assert "on holdout: it doesn't" not in _caveats(made, holdout={"sensitivity": 0.9})


@pytest.mark.parametrize(("n_groups", "is_said"), [(9, True), (10, False)])
def test_few_groups_are_said(made, n_groups, is_said):
    assert ("groups are in holdout" in _caveats(made, holdout={"n_groups": n_groups})) is is_said


def test_earlier_looks_at_the_holdout_are_said(made):
    """The best of many models on one holdout, shown as if it were the only one."""
    looked = _caveats(
        made, look={"number": 4}, against_baseline={"beats": True, "confidence": 0.9975}
    )
    assert "model 4 judged on this archive" in looked
    assert "(99.75 % instead of 95 %)" in looked
    assert "judged on this archive" not in _caveats(made)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (
            {"calibration_intercept": -0.42},
            ["less tumour", "1.5 times too high", "intercept -0.42"],
        ),
        ({"calibration_intercept": 0.3}, ["more tumour", "1.3 times too low", "intercept +0.30"]),
        ({"calibration_slope": 0.7}, ["too extreme", "slope 0.70"]),
        ({"calibration_slope": 1.3}, ["too timid", "slope 1.30"]),
        ({}, []),
    ],
)
def test_probabilities_that_are_off_are_said(made, values, told):
    """Odds a third too high that pass without a word because their spread is right."""
    fine = {"calibration_intercept": 0.19, "calibration_slope": 0.81}
    said = _caveats(made, holdout={**fine, **values})
    assert all(words in said for words in told)
    assert said.count("(calibration") == bool(told)


def test_evidence_outside_the_centre_is_said(made):
    share = {"mean": 0.05, "area": 1 / 9, "n": 9, "n_without_evidence": 0}
    outside = sources(gallery={**made.gallery, "centre_share": share})
    assert "5 % of the evidence is in the centre" in " ".join(caveats(outside))
    assert "surroundings" not in " ".join(caveats(made))


def test_never_for_diagnosis(made):
    assert caveats(made)[-1].endswith("not for diagnosis.")
