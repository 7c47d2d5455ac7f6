"""Sentences that must follow from the numbers."""

import pytest

from src.drawing.plan import plan_subset
from src.evaluation.plain_words import caveats, rule, verdict
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
        (0.01, 0.2, "more than colour alone explains"),
        (-0.1, 0.1, "can't be told from nothing"),
        (-0.2, -0.01, "don't use this model"),
    ],
)
def test_verdict_follows_the_interval(made, low, high, told):
    """A value above the baseline with an interval over 0 sold as better."""
    metrics = _metrics(made, difference_to_baseline={"auroc_low": low, "auroc_high": high})
    assert told in verdict({**metrics, "beats_baseline": low > 0})


@pytest.mark.parametrize(
    ("point", "told"),
    [
        ({"min_sensitivity": 0.95}, "sensitivity of at least 0.95"),
        ({"min_specificity": 0.9}, "specificity of at least 0.9"),
        ({"cost_fn": 5.0, "cost_fp": 1.0}, "5 a missed tumour patch and 1 a false alarm"),
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


@pytest.mark.parametrize(("n_groups", "told"), [(4, "Only 4 groups"), (5, "5 groups in holdout")])
def test_few_groups_are_said(made, n_groups, told):
    assert told in _caveats(made, holdout={"n_groups": n_groups})


def test_interval_narrower_than_by_patch_is_said(made):
    """Few groups that happen to be alike look like certainty."""
    narrow = {"auroc_low": 0.7, "auroc_high": 0.71, "auroc_delong_low": 0.6}
    assert "lean on the wider one" in _caveats(made, holdout={**narrow, "auroc_delong_high": 0.8})
    wide = {**narrow, "auroc_high": 0.95}
    assert "lean on" not in _caveats(made, holdout={**wide, "auroc_delong_high": 0.8})


def test_evidence_outside_the_centre_is_said(made):
    share = {"mean": 0.05, "area": 1 / 9, "n": 9, "n_without_evidence": 0}
    outside = sources(gallery={**made.gallery, "centre_share": share})
    assert "5 % of the evidence lies in the centre" in " ".join(caveats(outside))
    assert "surroundings" not in " ".join(caveats(made))


def test_never_for_diagnosis(made):
    assert caveats(made)[-1].endswith("not for diagnosis.")
