"""The command ``trace``: one changed byte anywhere, and the link is named."""

import hashlib
import logging
import sqlite3
import subprocess
import sys
import uuid
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from src import paths, predict, register, trace
from src.data.patches import content_digest
from src.params import load_params
from src.system.durable import MANIFEST, replacing_folder, write_json, write_manifest
from src.trace import BrokenChain
from src.tracking import registry
from src.tracking.aliases import alias_changes, read_log
from src.tracking.lifecycle import set_tags
from src.tracking.store import connect
from tests.fixtures import make_project
from tests.tracking.support import patches, point_paths_at, record

pytest_plugins = ("tests.tracking.fixtures",)
pytestmark = pytest.mark.tensorflow

LOG = logging.getLogger("hcd.test")


def write_ingest(archive: Path) -> dict[str, str]:
    """``data/ingest`` of a few patches; return its digests."""
    pixels = {"train": patches(4), "test": patches(3, seed=1)}
    tables = [
        pd.DataFrame(
            {
                "id": [f"{subset}{i}" for i in range(len(values))],
                "subset": subset,
                "row": np.arange(len(values)),
                "label": pd.array([i % 2 for i in range(len(values))], "Int8"),
                "sha256": [hashlib.sha256(patch).hexdigest() for patch in values],
            }
        )
        for subset, values in pixels.items()
    ]
    table = pd.concat(tables, ignore_index=True)
    digests = {str(name): content_digest(rows) for name, rows in table.groupby("subset")}
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    with replacing_folder(paths.INGEST) as folder:
        for subset, values in pixels.items():
            np.save(folder / f"{subset}.npy", values)
        table.to_parquet(folder / "patches.parquet")
        write_json(
            folder / "report.json",
            {
                "archive": {"name": archive.name, "kind": "zip", "sha256": sha256},
                "digests": digests,
            },
        )
    return digests


def git(root: Path, *arguments: str) -> str:
    author = ("-c", "user.name=t", "-c", "user.email=t@t")
    done = subprocess.run(
        ["git", *author, "-C", str(root), *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture(scope="module")
def chain(store_root, keras_file, tmp_path_factory):
    """A submission with all that is behind it; tests put back what they break."""
    root = tmp_path_factory.mktemp("chain")
    name = f"traced-{uuid.uuid4().hex[:8]}"
    with pytest.MonkeyPatch.context() as patch:
        point_paths_at(store_root, patch)
        patch.setattr(paths, "ROOT", root)
        patch.setattr(paths, "INGEST", root / "data" / "ingest")
        patch.setattr(paths, "PATCHES", root / "data" / "ingest" / "patches.parquet")
        (root / "code.py").write_text("pass\n")
        git(root, "init", "-q")
        git(root, "add", "code.py")
        git(root, "commit", "-qm", "code")
        archive = root / "archive.zip"
        archive.write_bytes(b"all the patches")
        digests = write_ingest(archive)
        origin = {**record().origin, "git_commit": git(root, "rev-parse", "HEAD")}
        dataset = {**record().dataset, "content_digest": digests["train"]}
        project = make_project(root, keras_file, name, patch, dataset, origin)
        patch.setattr(paths, "INGEST_REPORT", paths.INGEST / "report.json")
        patch.setattr(paths, "SUBMISSION", root / "submission" / "submission.csv")
        set_tags(connect(), project.run_id, {"final_weights_sha256": "b" * 64})
        register.main()
        table = pd.DataFrame({"id": ["test0", "test1", "test2"], "label": [0.1, 0.2, 0.9]})
        predict.write_submission(
            root / "submission",
            predict.Submission(table, [], 0.4),
            registry.load_version(name, 1),
            role="champion",
            data_digests=digests,
        )
        version = registry.version_folder(name, 1)
        yield SimpleNamespace(
            root=root, name=name, run_id=project.run_id, version=version.folder, archive=archive
        )


@pytest.fixture
def links(chain, monkeypatch, store_root):
    """Follow the chain; return the links that don't hold, as 'part: what: state: said'."""
    point_paths_at(store_root, monkeypatch)

    def links() -> list[str]:
        parts = trace.trace(chain.root / "submission" / "submission.csv", [chain.archive], LOG)
        assert all(part.links for part in parts)
        return [
            f"{part.title}: {link.what}: {link.state}: {link.said}"
            for part in parts
            for link in part.links
            if link.state != "holds"
        ]

    return links


@contextmanager
def changed_byte(file: Path, place: float):
    """Flip the lowest bit of the byte at that share of the file."""
    data = file.read_bytes()
    at = int(place * (len(data) - 1))
    file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    try:
        yield
    finally:
        file.write_bytes(data)


@contextmanager
def gone(file: Path):
    data = file.read_bytes()
    file.unlink()
    try:
        yield
    finally:
        file.write_bytes(data)


def test_whole_chain_holds(links):
    assert links() == []


def test_version_that_was_champion_once_is_named(chain, links):
    """Catches any past move taken for the present one."""

    evidence_sha256 = read_log(chain.name).entries[-1].evidence_sha256
    with alias_changes(chain.name) as changes:
        changes.move("champion", None, expected=1, action="promote", why="taken away")
    (link,) = links()
    with alias_changes(chain.name) as changes:
        changes.move(
            "champion",
            1,
            expected=None,
            action="promote",
            why="back again",
            evidence_sha256=evidence_sha256,
        )
    assert "version 1 is champion no longer: none since" in link
    assert links() == []


@pytest.mark.parametrize("folder", ["head", "finetuned"])
@pytest.mark.parametrize(
    ("key", "named"), [("content_digest", "data of the run"), ("split_sha256", "split of the run")]
)
def test_run_of_another_dataset_than_the_evidence_is_named(links, monkeypatch, folder, key, named):
    """Split anew, evaluated and registered: the version's evidence alone agrees with itself."""
    from src.tracking import provenance

    read = provenance.read_version_evidence

    def leaked(model):
        evidence = read(model)
        evidence["runs"][folder]["record"]["dataset"][key] = "0" * 64
        return evidence

    monkeypatch.setattr(provenance, "read_version_evidence", leaked)
    broken = [link for link in links() if link.startswith("data: ")]
    assert broken == [
        f"data: {named} of {folder}: changed: is 000000000000…, but evaluate says "
        f"{broken[0].rpartition(' ')[2]}"
    ]


FILES = {
    "submission/submission.csv": "submission: submission.csv",
    "submission/lineage.json": "lineage.json",
    "submission/manifest.json": "manifest.json",
    "data/ingest/patches.parquet": "data: data/ingest/patches.parquet",
    "data/ingest/train.npy": "data: data/ingest/train.npy",
    "data/ingest/test.npy": "data: data/ingest/test.npy",
    "data/ingest/report.json": "data: data/ingest/report.json",
    "data/ingest/manifest.json": "data/ingest/manifest.json",
    "split.parquet": "data: split.parquet",
    "archive.zip": "archive: archive.zip",
}
VERSION_FILES = (
    "MLmodel",
    "data/model.keras",
    "evidence/evidence.json",
    "evidence/operating_point.json",
    "evidence/seen_ids.txt",
    "evidence/final_manifest.json",
    "evidence/golden_patches.npy",
    "evidence/golden_logits.npy",
    "requirements.txt",
    "manifest.json",
)
PLACES = (0.0, 0.13, 0.31, 0.52, 0.77, 1.0)


@pytest.mark.parametrize(("file", "named"), FILES.items())
def test_one_changed_byte_in_the_workspace_is_named(chain, links, file, named):
    for place in PLACES:
        with changed_byte(chain.root / file, place):
            broken = links()
            assert any(named in link for link in broken), (place, broken)


@pytest.mark.parametrize(
    ("file", "place", "named"),
    [
        ("train.npy", 0.3, ["data: train.npy: changed: 1 patches have other pixels"]),
        ("test.npy", 1.0, ["data: test.npy: changed: 1 patches have other pixels"]),
    ],
)
def test_changed_pixel_under_a_manifest_made_anew_is_named(chain, links, file, place, named):
    """Catches a chain that ends at a manifest, which anybody can write."""
    with changed_byte(chain.root / "data" / "ingest" / file, place):
        broken = under_new_manifest(chain.root / "data" / "ingest", links)
    assert [link.partition(" than")[0] for link in broken] == named


def test_changed_label_under_a_manifest_made_anew_is_named(chain, links):
    folder = chain.root / "data" / "ingest"
    before = (folder / "patches.parquet").read_bytes()
    table = pd.read_parquet(folder / "patches.parquet")
    table.loc[0, "label"] = 1 - table.loc[0, "label"]
    table.to_parquet(folder / "patches.parquet")
    try:
        (link,) = under_new_manifest(folder, links)
    finally:
        (folder / "patches.parquet").write_bytes(before)
    assert link.startswith("data: digest of train: changed")


@pytest.mark.parametrize("folder", ["submission", "data/ingest"])
def test_byte_of_a_manifest_that_json_does_not_notice_is_named(chain, links, folder):
    manifest = chain.root / folder / MANIFEST
    before = manifest.read_bytes()
    manifest.write_bytes(before.replace(b"\n", b" ", 1))
    try:
        (link,) = links()
    finally:
        manifest.write_bytes(before)
    assert "manifest.json" in link


def under_new_manifest(folder: Path, links) -> list[str]:
    before = (folder / MANIFEST).read_bytes()
    write_manifest(folder)
    try:
        return links()
    finally:
        (folder / MANIFEST).write_bytes(before)


@pytest.mark.parametrize("file", VERSION_FILES)
def test_one_changed_byte_of_the_registered_version_is_named(chain, links, file):
    for place in PLACES:
        with changed_byte(chain.version / file, place):
            broken = links()
            assert broken[0].startswith(f"registry: {chain.name} version 1: {file}"), broken


@pytest.mark.parametrize("place", PLACES)
def test_one_changed_byte_of_the_promotion_log_is_named(chain, links, place):
    with changed_byte(paths.PROMOTIONS / chain.name / "log.jsonl", place):
        assert any("promotion log: changed: line" in link for link in links())


def test_one_changed_byte_of_the_promotion_evidence_is_named(chain, links):
    (file,) = (paths.PROMOTIONS / chain.name / "evidence").iterdir()
    with changed_byte(file, 0.5):
        (link,) = links()
        assert "evidence of the promotion: changed" in link


@pytest.mark.parametrize("file", [file for file in FILES if file != "submission/submission.csv"])
def test_missing_file_is_named(chain, links, file):
    with gone(chain.root / file):
        assert any(FILES[file] in link for link in links())


@contextmanager
def in_database(table: str, column: str, value: object, where: str, *keys: str):
    """Change one cell of MLflow's tables behind its back."""
    database = sqlite3.connect(paths.MLFLOW_DB)
    ((row, before),) = database.execute(f"SELECT rowid, {column} FROM {table} {where}", keys)

    def put(new: object) -> None:
        database.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (new, row))
        database.commit()

    put(value)
    try:
        yield
    finally:
        put(before)
        database.close()


OF_RUN = "WHERE run_uuid = ? AND key = ?"


@pytest.mark.parametrize(
    ("table", "column", "value", "key", "named"),
    [
        ("params", "value", "4", "finetune.depth", "params: changed: finetune.depth not as"),
        ("params", "key", "model.dropuot", "model.dropout", "params: changed: model.dropout"),
        ("tags", "value", "x", "content_digest", "tags: changed: content_digest"),
        ("tags", "value", "x", "git_commit", "tags: changed: git_commit"),
        ("tags", "value", "x", "final_weights_sha256", "final weights: changed"),
        ("latest_metrics", "value", 0.99, "holdout.auroc", "metrics: changed: holdout.auroc"),
    ],
)
def test_changed_cell_of_the_run_is_named(chain, links, table, column, value, key, named):
    with in_database(table, column, value, OF_RUN, chain.run_id, key):
        (link,) = links()
    assert link.startswith("runs and parameters")
    assert named in link


def test_run_that_did_not_end_is_named(chain, links):
    with in_database("runs", "status", "KILLED", "WHERE run_uuid = ?", chain.run_id):
        (link,) = links()
    assert "finetune run" in link


def test_deleted_run_is_a_missing_link(chain, links):
    with in_database("runs", "run_uuid", "0" * 32, "WHERE run_uuid = ?", chain.run_id):
        (link,) = links()
    assert "is not in MLflow" in link


def test_dvc_names_a_folder_by_the_digest_that_trace_makes(tmp_path, monkeypatch):
    """Worked out by DVC itself."""
    from src.tracking import provenance

    folder = tmp_path / "submission"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "b.txt").write_text("1\n")
    (folder / "a.txt").write_text("2\n")
    git(tmp_path, "init", "-q")
    dvc = [sys.executable, "-m", "dvc", "--cd", str(tmp_path)]
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    for arguments in (["init", "-q"], ["add", "-q", "submission"]):
        subprocess.run([*dvc, *arguments], check=True, capture_output=True)
    (line,) = [
        line
        for line in (tmp_path / "submission.dvc").read_text().splitlines()
        if "md5: " in line and ".dir" in line
    ]
    assert line.split("md5: ")[1] == provenance._dvc_md5(folder)


@pytest.mark.parametrize("key", ["run_id", "manifest_sha256"])
def test_changed_tag_of_the_version_is_named(chain, links, key):
    where = "WHERE name = ? AND key = ?"
    with in_database("model_version_tags", "value", "x", where, chain.name, key):
        (link,) = links()
    assert f"tag {key}: changed" in link


def test_unknown_commit_is_a_missing_link(chain, links, monkeypatch):
    """A clone without that commit."""
    other = chain.root / "elsewhere"
    other.mkdir(exist_ok=True)
    git(other, "init", "-q")
    monkeypatch.setattr(paths, "ROOT", other)
    broken = links()
    assert [link.split(":")[1].strip() for link in broken] == [
        "code of predict",
        "code of finetune",
        "code of train",
    ]
    assert all("is not in this repository" in link for link in broken)


def test_deleted_registry_is_a_missing_link(chain, links, monkeypatch):
    monkeypatch.setattr(paths, "MLFLOW_DB", chain.root / "gone.db")
    broken = links()
    assert "registry has no version 1" in broken[0]


def test_code_with_local_changes_holds_only_where_dvc_names_the_same_bytes(
    chain, links, monkeypatch
):
    """``dvc exp run -S`` changes params.yaml, so every such run is dirty; its code isn't."""
    from src.tracking import provenance

    origin = {"git_commit": git(chain.root, "rev-parse", "HEAD"), "git_dirty": "true"}
    md5 = hashlib.md5(b"pass\n", usedforsecurity=False).hexdigest()
    monkeypatch.setattr(paths, "ROOT", chain.root)
    states = [
        provenance._commit_link("finetune", origin, locked).state
        for locked in ({}, {"code.py": md5}, {"code.py": "0" * 32}, {"gone.py": md5})
    ]
    assert states == ["changed", "holds", "changed", "changed"]
    assert links() == []


def test_command_prints_the_tree_and_ends_by_the_chain(chain, links, monkeypatch, capsys):
    params = load_params()
    ingest = params.ingest.model_copy(update={"archive": "archive.zip"})
    monkeypatch.setattr(trace, "load_params", lambda: params.model_copy(update={"ingest": ingest}))
    monkeypatch.setattr(trace, "configure", lambda _: None)
    monkeypatch.setattr(paths, "ROOT", chain.root)
    submission = chain.root / "submission" / "submission.csv"
    trace.main(submission)
    shown = capsys.readouterr().out
    for part in ("submission", "registry", "runs and parameters", "code", "data", "archive"):
        assert part in shown
    assert "✗" not in shown
    with changed_byte(submission, 0.5), pytest.raises(BrokenChain) as caught:
        trace.main(submission)
    assert "links don't hold, first: submission.csv: " in str(caught.value)
    assert "✗ submission.csv: CHANGED" in capsys.readouterr().out
    assert links() == []


def test_no_submission_is_one_line(tmp_path):
    with pytest.raises(BrokenChain, match="no submission at"):
        trace.trace(tmp_path / "submission.csv", [], LOG)


def test_submission_without_lineage_is_a_missing_link(tmp_path):
    """A table copied out of its folder."""
    table = tmp_path / "submission.csv"
    table.write_text("id,label\n")
    ((link,),) = [part.links for part in trace.trace(table, [], LOG)]
    assert (link.what, link.state) == ("lineage.json", "missing")
