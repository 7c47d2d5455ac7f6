"""Metrics against numbers worked out by hand, scikit-learn, and one contract for every entry."""

import numpy as np
import pytest
from scipy.optimize import brentq
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression

from src.evaluation.metrics import (
    METRICS,
    N_BINS,
    UndefinedMetric,
    auroc,
    brier_loss,
    calibration_intercept,
    calibration_slope,
    ece,
    f1,
    log_loss,
    npv,
    ppv,
    scored,
    sensitivity,
    specificity,
)

THRESHOLD = 0.5


@pytest.fixture
def random_patches():
    """60 patches; scores on a grid of 0.1, so most are tied."""
    rng = np.random.default_rng(3)
    labels = rng.integers(2, size=60)
    return labels, np.clip(np.round(rng.normal(0.4 + 0.2 * labels, 0.2), 1), 0, 1)


def test_auroc_of_four_rows_by_hand():
    """Pairs (tumour, normal): 0.35>0.1, 0.35<0.4, 0.8>0.1, 0.8>0.4, three of four right."""
    assert auroc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) == 0.75


def test_auroc_of_all_ties_is_a_half():
    """Sorting without regard to ties gives 0 or 1, by row order."""
    assert auroc([0, 1, 1, 0, 1], [0.3] * 5) == 0.5


@pytest.mark.parametrize("label", [0, 1])
def test_auroc_of_one_class_is_refused(label):
    """0, 0.5 or NaN in its place would pass for a result."""
    with pytest.raises(UndefinedMetric, match="auroc needs patches of both classes"):
        auroc([label] * 3, [0.1, 0.2, 0.3])


def test_decisions_by_hand():
    """TP 2, FN 1, FP 1, TN 2: every share differs from its neighbour's mistake."""
    labels, scores = [1, 1, 1, 1, 0, 0, 0], [0.9, 0.5, 0.7, 0.4, 0.8, 0.1, 0.2]
    values = {m.name: m(labels, scores, threshold=0.5) for m in (sensitivity, specificity, ppv)}
    assert values == {"sensitivity": 3 / 4, "specificity": 2 / 3, "ppv": 3 / 4}
    assert npv(labels, scores, threshold=0.5) == 2 / 3
    assert f1(labels, scores, threshold=0.5) == 6 / 8


def test_score_at_the_threshold_is_called_tumour():
    """> in place of >=."""
    assert sensitivity([1, 0], [0.5, 0.1], threshold=0.5) == 1
    assert sensitivity([1, 0], [0.5, 0.1], threshold=np.nextafter(0.5, 1)) == 0


def test_losses_by_hand():
    """Log to another base, or the wrong class's probability."""
    assert log_loss([1, 0], [0.5, 0.75]) == pytest.approx((np.log(2) + np.log(4)) / 2)
    assert brier_loss([1, 0], [0.5, 0.75]) == pytest.approx((0.25 + 0.5625) / 2)


def test_ece_does_not_cancel_between_bins():
    """|mean of gaps| in place of the mean of |gaps| is 0 here."""
    assert ece([1, 0], [0.0, 1.0]) == 1


def test_certain_mistake_has_a_finite_log_loss():
    """Infinity can't be written to metrics.json."""
    assert 30 < log_loss([1], [0.0]) < 40


@pytest.mark.parametrize("metric", [ppv, f1])
def test_nothing_called_tumour(metric):
    """PPV is 0/0 and refused; F1 is 0."""
    if metric is f1:
        assert metric([0, 1], [0.1, 0.2], threshold=0.9) == 0
    else:
        with pytest.raises(UndefinedMetric, match="ppv needs patches called tumour"):
            metric([0, 1], [0.1, 0.2], threshold=0.9)


REFERENCES = {
    "auroc": sk.roc_auc_score,
    "average_precision": sk.average_precision_score,
    "sensitivity": lambda y, s, **k: sk.recall_score(y, s >= THRESHOLD, **k),
    "specificity": lambda y, s, **k: sk.recall_score(1 - y, s < THRESHOLD, **k),
    "ppv": lambda y, s, **k: sk.precision_score(y, s >= THRESHOLD, **k),
    "npv": lambda y, s, **k: sk.precision_score(1 - y, s < THRESHOLD, **k),
    "f1": lambda y, s, **k: sk.f1_score(y, s >= THRESHOLD, **k),
    "log_loss": sk.log_loss,
    "brier_loss": sk.brier_score_loss,
    "ece": lambda y, s, **k: _slow_ece(y, s, **k),
    "calibration_slope": lambda y, s, **k: _recalibrated(y, s, **k)[1],
    "calibration_intercept": lambda y, s, **k: _shift(y, s, **k),
}
# fitted step by step, as its reference: not exact to the last digit
TOLERANCES = {"calibration_slope": 1e-6, "calibration_intercept": 1e-6}


def _logits(scores):
    inside = np.clip(scores, np.finfo(float).eps, 1 - np.finfo(float).eps)
    return np.log(inside / (1 - inside))


def _recalibrated(labels, scores, sample_weight=None):
    logits = _logits(scores)[:, None]
    model = LogisticRegression(C=np.inf, tol=1e-12, solver="newton-cholesky")
    fitted = model.fit(logits, labels, sample_weight=sample_weight)
    return fitted.intercept_[0], fitted.coef_[0, 0]


def _shift(labels, scores, sample_weight=None):
    """Where the weighted mean probability is the weighted share of tumour."""
    logits = _logits(scores)
    return brentq(
        lambda a: np.average(labels - 1 / (1 + np.exp(-logits - a)), weights=sample_weight),
        *(-20, 20),
        xtol=1e-13,
    )


def _slow_ece(labels, scores, sample_weight=None):
    weights = np.ones(len(labels)) if sample_weight is None else sample_weight
    total = 0.0
    for lower in range(N_BINS):
        edges = lower / N_BINS, (lower + 1) / N_BINS
        inside = (scores >= edges[0]) & ((scores < edges[1]) | (edges[1] == 1))
        if weights[inside].sum():
            share = np.average(labels[inside], weights=weights[inside])
            mean = np.average(scores[inside], weights=weights[inside])
            total += weights[inside].sum() * abs(share - mean)
    return total / weights.sum()


# how well probabilities fit, not how well they tell the classes apart
_OF_FIT = (calibration_slope, calibration_intercept)


class TestContract:
    """What every entry of METRICS promises."""

    @pytest.fixture(params=METRICS, autouse=True)
    def metric(self, request):
        return METRICS[request.param]

    def test_is_named_as_listed(self, metric):
        assert METRICS[metric.name] is metric
        if metric.name.endswith("loss"):
            assert metric.best == 0

    def test_equals_an_independent_route(self, metric, random_patches):
        labels, scores = random_patches
        value = metric(labels, scores, threshold=THRESHOLD)
        tolerance = TOLERANCES.get(metric.name, 1e-12)
        assert value == pytest.approx(REFERENCES[metric.name](labels, scores), rel=tolerance)

    def test_weighted_equals_an_independent_route(self, metric, random_patches):
        labels, scores = random_patches
        weights = np.random.default_rng(5).integers(4, size=60).astype(float)
        patches = scored(labels, scores, threshold=THRESHOLD)
        value = metric.statistic(patches)(weights[None])[0]
        reference = REFERENCES[metric.name](labels, scores, sample_weight=weights)
        assert value == pytest.approx(reference, rel=TOLERANCES.get(metric.name, 1e-12))

    def test_row_order_is_irrelevant(self, metric, random_patches):
        labels, scores = random_patches
        order = np.random.default_rng(7).permutation(60)
        value = metric(labels, scores, threshold=THRESHOLD)
        permuted = metric(labels[order], scores[order], threshold=THRESHOLD)
        assert permuted == pytest.approx(value, rel=1e-9)

    def test_weights_of_zero_leave_it_undefined(self, metric, random_patches):
        labels, scores = random_patches
        patches = scored(labels, scores, threshold=THRESHOLD)
        assert np.isnan(metric.statistic(patches)(np.zeros((1, 60)))).all()

    def test_no_patches_are_refused(self, metric):
        with pytest.raises(UndefinedMetric, match="no patches"):
            metric([], [], threshold=THRESHOLD)


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 1], [0.1], "must be"),
        ([0, 2], [0.1, 0.2], "0 .normal. or 1"),
        ([0, 1], [0.1, np.nan], "1 scores are not finite"),
    ],
)
def test_wrong_input_is_refused(labels, scores, message):
    """NaN sorts last and would quietly count as the lowest score."""
    with pytest.raises(ValueError, match=message):
        auroc(labels, scores)


def test_logits_are_no_probabilities():
    """A log loss of logits is a number, and wrong."""
    with pytest.raises(ValueError, match="apply the sigmoid"):
        log_loss([0, 1], [-2.0, 3.0])


def _drawn(n, seed=0, *, scale=1.0, shift=0.0):
    """Labels drawn from probabilities that are then bent: logit → scale × logit + shift."""
    rng = np.random.default_rng(seed)
    true = rng.normal(-0.5, 2.0, n)
    labels = rng.random(n) < 1 / (1 + np.exp(-true))
    return labels, 1 / (1 + np.exp(-(scale * true + shift)))


@pytest.mark.parametrize("scale", [0.05, 0.5, 2.0, 5.0])
def test_slope_undoes_a_scale(scale):
    """Newton from a poor start runs away when probabilities are near 0 and 1."""
    labels, plain = _drawn(500)
    _, bent = _drawn(500, scale=scale)
    assert calibration_slope(labels, bent) == pytest.approx(
        calibration_slope(labels, plain) / scale, rel=1e-4
    )


@pytest.mark.parametrize("shift", [-10.0, -1.0, 3.0, 10.0])
def test_intercept_undoes_a_shift(shift):
    """The sign: probabilities too high by 3 in the logit need −3."""
    labels, plain = _drawn(500)
    _, bent = _drawn(500, shift=shift)
    expected = calibration_intercept(labels, plain) - shift
    assert calibration_intercept(labels, bent) == pytest.approx(expected, abs=1e-6)


def test_separated_classes_have_no_slope():
    """A slope of 37 is where the iteration stopped, not a result."""
    with pytest.raises(UndefinedMetric, match="overlap in probability"):
        calibration_slope([0, 0, 1, 1], [0.1, 0.2, 0.7, 0.9])
