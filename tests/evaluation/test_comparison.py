"""What a version is judged by: patches it never saw, beside the baseline and the champion."""

import logging
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from src import paths
from src.evaluation import comparison, promotion
from src.evaluation.comparison import Champion
from src.evaluation.looks import Look
from src.params import load_params
from src.system.durable import write_json
from src.system.errors import VerificationError
from tests.evaluated import holdout

HERE = "f" * 64
LOG = logging.getLogger("hcd.test")


def fake_version(number=1, *, trained_on=HERE, **seen):
    """Never saw anything but ``seen`` (``ids``, ``sha256``, ``slides``) of the archive."""
    saw = {f"seen_{key}": frozenset(seen.get(key, ())) for key in ("ids", "sha256", "slides")}
    return SimpleNamespace(
        name="m",
        number=number,
        run_id="run",
        manifest_sha256=f"m{number}",
        model_sha256=f"k{number}",
        evidence={"auroc": 0.9, "baseline_auroc": 0.8},
        trained_on=trained_on,
        rejected=None,
        **saw,
    )


class FakeScores:
    """Number of the version → probabilities by id; golden logits as far off as told."""

    def __init__(self, tables=(), golden_error=0.0):
        self.tables, self.error = dict(tables), golden_error

    def probabilities(self, version, ids):
        return self.tables[version.number][ids].to_numpy()

    def golden_error(self, version):  # noqa: ARG002
        if isinstance(self.error, Exception):
            raise self.error
        return self.error


@pytest.fixture(autouse=True)
def _archive_here(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "INGEST_REPORT", tmp_path / "report.json")
    write_json(paths.INGEST_REPORT, {"digests": {"train": HERE}})


def compared_with(champion, rows, probabilities):
    return comparison.compare(champion, rows, probabilities, 0.95)


def knows_by_heart(rows, known):
    """Probabilities of a model that ranks the ``known`` perfectly and the others badly."""
    badly = np.random.default_rng(5).random(len(rows)) - 0.5 * rows["label"]
    return np.where(known, rows["label"], badly)


@pytest.mark.parametrize("known_by", ["ids", "sha256"])
def test_patches_the_champion_was_trained_on_count_for_neither(known_by):
    """Catches a champion that wins by what it learned by heart; PCam's patches have other ids than
    Kaggle's, and the same pixels."""
    rows = holdout()
    seen = {known_by: rows[known_by.removesuffix("s")][:20]}
    compared = compared_with(fake_version(**seen), rows, knows_by_heart(rows, np.arange(40) < 20))
    assert (compared.n_patches, compared.n_excluded) == (20, 20)
    assert compared.n_groups == {"normal": 5, "tumour": 5}
    assert compared.challenger_auroc == 1.0
    assert compared.auroc < 0.5
    assert compared.difference.value == pytest.approx(1 - compared.auroc)


@pytest.mark.parametrize("seen", [{"ids": [0, 4]}, {"sha256": [3, 7]}], ids=str)
def test_one_patch_it_saw_stands_for_its_whole_group(seen):
    """Catches slides that a model knows, judged by those of their patches that are new to it."""
    rows = holdout()
    values = {key: rows[key.removesuffix("s")].iloc[at] for key, at in seen.items()}
    found = comparison.unseen(rows, fake_version(**values))
    assert set(rows["group"]) - set(found["group"]) == {"g0", "g1"}
    assert found["id"].tolist() == rows["id"][8:].tolist()


def test_slides_it_saw_in_another_archive_are_left_out():
    """Catches a model of a larger archive, which was trained on these slides but cut them into
    other patches: no id and no pixel gives it away."""
    slides = [f"slide {i // 2}" for i in range(40)]  # two a group
    rows = holdout().assign(slide=slides)
    version = fake_version(trained_on="another", slides=["slide 1", "slide 77"])
    found = comparison.unseen(rows, version)
    assert found["group"].unique().tolist() == [f"g{i}" for i in range(1, 10)]


@pytest.mark.parametrize(
    ("named_here", "named_there"), [("none", False), ("all", False), ("none", True), ("most", True)]
)
def test_other_archive_without_slide_names_can_not_be_judged(named_here, named_there):
    """Catches a model that is taken for new to slides nobody can say it never saw."""
    rows = holdout()
    names = rows["group"].where((rows.index > 0) | (named_here == "all"))
    rows = rows.assign(slide=None if named_here == "none" else names)
    version = fake_version(2, trained_on="another", slides=["g0"] if named_there else ())
    with pytest.raises(comparison.IncomparableGroups, match="can't tell what version 2 saw"):
        comparison.unseen(rows, version)


def gathered(look, challenger, champion):
    """Judge a version beside a champion that ranks the holdout badly."""
    rows = holdout()
    tables = {
        champion.number: pd.Series(knows_by_heart(rows, False), index=rows["id"]),
        challenger.number: rows.set_index("id")["probability"],
    }
    params = load_params()
    return comparison.gather(
        challenger,
        Champion(champion.number, champion),
        rows,
        FakeScores(tables),
        Look(look, "0" * 64),
        params.register_,
        confidence=params.evaluate.confidence,
        is_evaluated=True,
    )


def test_challenger_of_another_archive_fails_both_comparisons():
    """Catches 'no champion to compare with' or a comparison on slides that it may know."""
    challenger = fake_version(2, trained_on="another")
    decision = promotion.decide(gathered(1, challenger, fake_version())[0])
    for rule in ("beats_baseline", "not_worse_than_champion"):
        assert not decision.checks[rule].held
        reason = decision.checks[rule].reason
        assert reason.startswith("can't tell what version 2 saw: it was trained on another archive")


def test_champion_of_another_archive_stays_and_says_why():
    """Catches a champion replaced on slides that it knows by heart, or that nobody compared."""
    evidence, compared = gathered(1, fake_version(2), fake_version(trained_on="another"))
    decision = promotion.decide(evidence)
    assert decision.checks["beats_baseline"].held
    check = decision.checks["not_worse_than_champion"]
    assert not check.held
    assert check.reason.startswith(
        "can't be compared with the champion, which stays: can't tell what version 1 saw"
    )
    assert (compared.n_patches, compared.n_excluded, compared.difference) == (0, 40, None)


@pytest.mark.parametrize(
    ("look", "confidence", "shown"), [(1, 0.975, 97.5), (3, 1 - 0.05 / 12, 99.58)]
)
def test_later_looks_are_decided_at_a_stricter_confidence(look, confidence, shown):
    """Catches the best of many models promoted at the error rate of one."""
    evidence, _ = gathered(look, fake_version(2), fake_version())
    decision = promotion.decide(evidence)
    for difference in (evidence.to_baseline, evidence.to_champion):
        assert difference.confidence == pytest.approx(confidence)
    for rule in ("beats_baseline", "not_worse_than_champion"):
        reason = decision.checks[rule].reason
        assert f"({shown} % interval " in reason
        assert reason.endswith(f"; model {look} judged on this archive")
    assert decision.checks["beats_baseline"].value == evidence.to_baseline.low


def test_a_later_look_can_cost_the_verdict():
    """Catches a confidence that is shown, and not used."""
    low = [gathered(look, fake_version(2), fake_version())[0].to_baseline.low for look in (1, 1000)]
    assert low[0] > 0 > low[1]


def test_nothing_left_to_compare_on():
    rows = holdout()
    compared = compared_with(fake_version(ids=rows["id"]), rows, np.zeros(40))
    assert (compared.n_patches, compared.n_excluded, compared.difference) == (0, 40, None)
    assert "saw every holdout group in training" in compared.impossible


def test_one_class_left_is_no_comparison():
    rows = holdout()
    rows["group"] += np.where(rows["label"], "t", "n")
    seen = rows["id"][rows["label"] == 1]
    compared = compared_with(fake_version(ids=seen), rows, np.zeros(40))
    assert compared.difference is None
    assert "patches of both classes" in compared.impossible


def test_two_groups_left_are_no_comparison():
    """Catches two slides that happen to agree taken for certainty."""
    rows = holdout()
    compared = compared_with(fake_version(ids=rows["id"][:32]), rows, np.zeros(40))
    assert (compared.n_patches, compared.difference) == (8, None)
    assert "needs at least 3 groups; got 2" in compared.impossible


@pytest.mark.parametrize("error", [2e-3, float("nan"), VerificationError("sha256 mismatch: x")])
def test_champion_that_can_not_be_verified_is_shown_and_not_compared_with(error):
    champion = comparison.verified_champion(fake_version(3), FakeScores(golden_error=error), LOG)
    assert (champion.number, champion.version) == (3, None)
    assert champion.absent.startswith("champion version 3 can't be verified: ")
    sound = comparison.verified_champion(fake_version(3), FakeScores(golden_error=1e-4), LOG)
    assert sound.version is not None
    assert comparison.verified_champion(None, FakeScores(), LOG) == Champion()
