"""The page: whole, offline, escaped, and its slider agrees with Python in a real browser."""

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from src.evaluation.metrics import METRICS, UndefinedMetric, f1, npv, ppv, sensitivity, specificity
from src.evaluation.report import render_model_card, render_report
from tests.evaluation.report_sources import PICTURE, THRESHOLD, predictions, sources

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@pytest.fixture(scope="module")
def made():
    return sources()


@pytest.fixture(scope="module")
def page(made):
    return render_report(made)


class _Elements(HTMLParser):
    """Every start tag with its attributes, in order."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def of(self, *tags):
        return [attributes for tag, attributes in self.found if tag in tags]


def test_nothing_is_loaded_from_elsewhere(page):
    """A font or script from a server: no page without network, and readers are tracked."""
    elements = _Elements(page)
    for attributes in elements.of("img", "script", "link", "iframe", "source", "use"):
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith(("data:", "#"))
    assert all(a["xlink:href"].startswith("#") for a in elements.of("use"))
    assert all(a["href"].startswith("#") for a in elements.of("a"))
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert "http://" not in re.sub(r"http://www.w3.org/(2000/svg|1999/xlink)", "", page)
    assert "https://" not in page


def test_can_be_read_without_seeing_it(page):
    """Pictures without words, tables without headers, sections out of order."""
    elements = _Elements(page)
    tags = [tag for tag, _ in elements.found]
    assert tags.count("h1") == 1
    assert tags.count("table") == tags.count("caption")
    assert all(th.get("scope") in ("row", "col") for th in elements.of("th"))
    assert all(image.get("alt") for image in elements.of("img"))
    assert all(svg.get("aria-label") for svg in elements.of("svg"))
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in elements.of("a")} <= set(ids)


def test_verdict_comes_first_and_says_the_numbers(page, made):
    holdout = made.metrics["holdout"]
    place = page.index(f"{holdout['auroc']:.3f}")
    assert page.index('id="verdict"') < place < page.index('id="threshold"')
    assert f"{holdout['auroc_low']:.3f} to {holdout['auroc_high']:.3f}" in page
    told = "Yes" if made.metrics["against_baseline"]["beats"] else "No"
    assert re.search(rf"Better than the colour baseline\?</p><p class=\"big\">{told}<", page)


def test_names_from_outside_are_text():
    """An archive or group named like markup would run in the reader's browser."""
    evil = "</script><script>alert(1)</script>"
    table = predictions()
    table["id"] = [evil[:9] + id_[9:] for id_ in table["id"]]
    odd = sources(table.assign(slide=evil), ingest={"archive": {"name": evil}})
    assert evil not in render_report(odd)
    assert render_report(odd).count("</script>") == 2


def test_page_of_a_full_holdout_is_small_enough():
    """Kaggle's 33,000 holdout patches, 600 thumbnails and 40 pictures of usual size: below 8 MB."""
    table = predictions(66_000, n_groups=30)
    full = sources(table)
    thumbnails = dict.fromkeys(full.holdout["id"].iloc[:600], PICTURE + "A" * 2_500)
    pictures = dict.fromkeys(full.pictures, PICTURE + "A" * 30_000)
    explored = {f"{place}.png": (PICTURE + "A" * 110_000, 860, 600) for place in range(13)}
    full = sources(table, thumbnails=thumbnails, pictures=pictures, explored=explored)
    assert len(render_report(full).encode()) < 8e6


def test_card_says_what_the_page_says(made):
    """Two sources of one number."""
    card, metrics = render_model_card(made), made.metrics
    for name in ("auroc", "brier_loss", "calibration_slope"):
        values = metrics["holdout"]
        told = f"{values[name]:.3f}"
        if METRICS[name].scale is not None:
            told += f" ({values[f'{name}_low']:.3f} to"
        assert told in card
    assert "**Not for diagnosis.**" in card
    assert "CC0" in card
    assert "groups are slides" in card
    assert "c0ffee" in card
    rows = [line for line in card.splitlines() if line.startswith("| AUROC")]
    assert rows[0].count("|") == 5
    assert "\n\n\n\n" not in card


def test_page_and_card_name_the_floor_and_how_it_was_chosen(made):
    """The weaker of two baselines, or one chosen on holdout, that looks like any other."""
    baseline = made.metrics["baseline"]
    values = [f"{value:.3f} ({name})" for name, value in baseline["val_auroc"].items()]
    for text in (render_report(made), render_model_card(made)):
        assert f"chosen on val: {baseline['model']}, AUROC {' and '.join(values)}" in text


def _browser():
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None and os.environ.get("CI"):
        pytest.fail(f"no browser where CI needs one: none of {', '.join(BROWSERS)}")
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    return found


def _dom(page_file: Path, hash_: str, profile: Path) -> str:
    done = subprocess.run(
        [
            _browser(),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={profile}",
            "--virtual-time-budget=3000",
            "--dump-dom",
            f"{page_file.as_uri()}#{hash_}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def _text(dom: str, id_: str) -> str:
    return re.search(rf'id="{id_}"[^>]*>([^<]*)<', dom).group(1)


# at the threshold itself 6 patches stand; a hair above it they are no longer called tumour
@pytest.mark.parametrize(
    "threshold", [THRESHOLD, float(np.nextafter(THRESHOLD, 1)), 0.3, 0.731, 0.0, 1.0]
)
def test_slider_moves_the_numbers_to_those_of_python(page, made, tmp_path, threshold):
    """> in place of >=, rounded probabilities, or rates with their parts swapped."""
    file = tmp_path / "index.html"
    file.write_text(page, encoding="utf-8")
    dom = _dom(file, f"threshold={threshold!r}", tmp_path / "profile")
    label = made.holdout["label"].to_numpy(dtype=bool)
    probability = made.holdout["probability"].to_numpy()
    called = probability >= threshold
    expected = {
        "tp": label & called,
        "fn": label & ~called,
        "fp": ~label & called,
        "tn": ~label & ~called,
    }
    assert {name: int(_text(dom, name)) for name in expected} == {
        name: int(patches.sum()) for name, patches in expected.items()
    }
    for metric in (sensitivity, specificity, ppv, npv, f1):
        try:
            value = f"{metric(label, probability, threshold=threshold):.4f}"
        except UndefinedMetric:
            value = "undefined"
        assert _text(dom, metric.name) == value
    low, high = sorted((threshold, THRESHOLD))
    n_changed = int(((probability >= low) & (probability < high)).sum())
    told = _text(dom, "change")
    assert told.startswith(f"{n_changed} patches" if n_changed else "This is the chosen threshold")
    assert dom.count("▲") + dom.count("▼") - page.count("▲") - page.count("▼") == min(n_changed, 60)
    values = made.metrics["holdout"]
    if threshold == THRESHOLD:
        bounds = f"{values['sensitivity_low']:.3f} to {values['sensitivity_high']:.3f}"
        assert _text(dom, "sensitivity-ci") == bounds


def _after(page: str, script: str, tmp_path: Path) -> str:
    """The page's DOM after a reader did what ``script`` does."""
    file = tmp_path / "index.html"
    file.write_text(page.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    return _dom(file, "", tmp_path / "profile")


def test_moving_the_slider_moves_the_numbers(page, made, tmp_path):
    """A handler that isn't attached: the tests above come in by the address alone.

    Then an emptied number field, which Number() takes for 0: it stays where it was.
    """
    script = """
        const field = (id) => document.getElementById(id);
        const act = (id, value, event) => {
          field(id).value = value;
          field(id).dispatchEvent(new Event(event, { bubbles: true }));
        };
        act("slider", "0.7", "input");
        const moved = field("tp").textContent + " " + field("exact").value;
        act("exact", "0.3", "change");
        act("exact", "", "change");
        document.title = moved + " " + field("tp").textContent + " " + field("exact").value;
    """
    title = re.search(r"<title>([^<]*)<", _after(page, script, tmp_path)).group(1)
    found = made.holdout["label"].to_numpy(dtype=bool), made.holdout["probability"].to_numpy()
    tp = {threshold: int((found[0] & (found[1] >= threshold)).sum()) for threshold in (0.7, 0.3)}
    assert tp[0.7] != tp[0.3]
    assert title == f"{tp[0.7]} 0.7 {tp[0.3]} 0.3"


def test_moving_the_slider_moves_the_marks(page, made, tmp_path):
    """A mark shifted the wrong way, or by the units of another figure.

    The marks are where matplotlib drew them; a second point drawn by matplotlib says where the
    browser has to put them.
    """
    script = """
        const field = document.getElementById("slider");
        field.value = "0.7";
        field.dispatchEvent(new Event("input", { bubbles: true }));
        const where = (id) => {
          const mark = document.getElementById(id), chart = mark.ownerSVGElement;
          const box = mark.getBoundingClientRect(), all = chart.getBoundingClientRect();
          const scale = chart.viewBox.baseVal.width / all.width;
          const x = box.x + box.width / 2 - all.x, y = box.y + box.height / 2 - all.y;
          return [x * scale, y * scale];
        };
        document.title = JSON.stringify(["roc-marker", "precision_recall-marker",
          "histogram-threshold"].map(where));
    """
    title = re.search(r"<title>([^<]*)<", _after(page, script, tmp_path)).group(1)
    found = made.holdout["label"].to_numpy(dtype=bool), made.holdout["probability"].to_numpy()
    point = made.metrics["operating_point"] | {"threshold": 0.7}
    rates = {
        metric.name: metric(*found, threshold=0.7) for metric in (sensitivity, specificity, ppv)
    }
    holdout = made.metrics["holdout"] | rates
    there = render_report(
        sources(metrics={**made.metrics, "operating_point": point, "holdout": holdout})
    )
    for place, (x, y) in zip(
        ("roc-marker", "precision_recall-marker", "histogram-threshold"),
        json.loads(title),
        strict=True,
    ):
        drawn = there[there.index(f'id="{place}"') :]
        if place.endswith("marker"):
            expected = re.search(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"', drawn).groups()
        else:
            expected = (re.search(r'd="M ([\d.]+)', drawn).group(1), y)
        assert (x, y) == pytest.approx([float(value) for value in expected], abs=0.5)


def test_card_names_the_backbone_and_the_data(made):
    """Facts of the usual case said of any other."""
    model = {**made.record["params"]["model"], "backbone": "densenet121"}
    params = {**made.record["params"], "model": model}
    other = sources(record={**made.record, "params": params})
    assert "- densenet121 with preprocessing inside" in render_model_card(other)
    assert "- ResNet50 with preprocessing inside" in render_model_card(made)
    drawn = sources(holdout=made.holdout.assign(slide="train_slide_000"))
    for text in (render_model_card(drawn), render_report(drawn)):
        assert "CC0" not in text
        assert "Dutch hospitals" not in text
    assert "Dutch hospitals" in render_model_card(made)
