"""The command ``trace``: one changed byte anywhere, and the link is named."""

import hashlib
import sqlite3
import subprocess
import uuid
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from src import paths, predict, register, trace
from src.params import load_params
from src.system.durable import replacing_folder, write_json
from src.trace import BrokenChain
from src.tracking import chain as chain_
from src.tracking import promotions, registry
from src.tracking.lifecycle import set_tags
from src.tracking.store import connect
from tests.fixtures import make_project
from tests.tracking.support import point_paths_at, record

pytest_plugins = ("tests.tracking.fixtures",)
pytestmark = pytest.mark.tensorflow


def write_ingest(archive: Path) -> dict[str, str]:
    """``data/ingest`` as far as trace looks at it; return its digests."""
    digests = {"train": "1" * 32, "test": "2" * 32}
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    with replacing_folder(paths.INGEST) as folder:
        for name in ("train.npy", "test.npy", "patches.parquet"):
            (folder / name).write_bytes(name.encode() * 20)
        of_archive = {"name": archive.name, "kind": "zip", "sha256": sha256}
        write_json(folder / "report.json", {"archive": of_archive, "digests": digests})
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
        version = registry.find_version(name, 1)
        model = {"name": name, "version": 1, "role": "champion", "run_id": version.run_id}
        model |= {
            "model_sha256": version.model_sha256,
            "manifest_sha256": version.manifest_sha256,
        }
        lineage = {"submission": {}, "model": model, "data": digests, "code": origin}
        lineage["operating_point"] = version.operating_point
        table = pd.DataFrame({"id": ["test0", "test1", "test2"], "label": [0.1, 0.2, 0.9]})
        predict.write_submission(root / "submission", table, lineage)
        yield SimpleNamespace(
            root=root, name=name, run_id=project.run_id, version=version.folder, archive=archive
        )


@pytest.fixture
def links(chain, monkeypatch, store_root):
    """Follow the chain; return the links that don't hold, as 'part: what: state: said'."""
    point_paths_at(store_root, monkeypatch)

    def links() -> list[str]:
        parts = chain_.follow(chain.root / "submission" / "submission.csv", chain.archive)
        assert all(links for _, links in parts)
        return [
            f"{title}: {link.what}: {link.state}: {link.said}"
            for title, links in parts
            for link in links
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
    version = registry.find_version(chain.name, 1)
    evidence_sha256 = promotions.read_log(chain.name)[-1].evidence_sha256

    def move(to, expected):
        promotions.move_alias(
            chain.name,
            "champion",
            to,
            expected=expected,
            action="promote",
            why="test",
            evidence_sha256=evidence_sha256,
        )

    move(None, 1)
    (link,) = links()
    move(version, None)
    assert "promotion log: changed: the champion is version None since" in link
    assert links() == []


@pytest.mark.parametrize("folder", ["head", "finetuned"])
@pytest.mark.parametrize("key", ["content_digest", "split_sha256"])
def test_run_of_another_dataset_than_the_evidence_is_named(chain, links, monkeypatch, folder, key):
    """Split anew, evaluated and registered: the version's evidence alone agrees with itself."""
    evidence = dict(registry.find_version(chain.name, 1).evidence)
    evidence["runs"][folder]["record"]["dataset"][key] = "0" * 64
    monkeypatch.setattr(registry.Version, "evidence", evidence)
    assert any(f"{key} of {folder}: changed: is 000000000000…" in link for link in links())


FILES = {
    "submission/submission.csv": "submission.csv",
    "submission/lineage.json": "lineage.json",
    "submission/manifest.json": "manifest",
    "data/ingest/patches.parquet": "data: data/ingest: changed: sha256 mismatch",
    "data/ingest/train.npy": "data: data/ingest: changed: sha256 mismatch",
    "data/ingest/report.json": "data: data/ingest: changed: sha256 mismatch",
    "split.parquet": "data: split.parquet: changed",
    "archive.zip": "data: archive archive.zip: changed",
}
VERSION_FILES = (
    "MLmodel",
    "data/model.keras",
    "evidence/evidence.json",
    "evidence/operating_point.json",
    "evidence/final_manifest.json",
    "evidence/golden.npz",
    "manifest.json",
)
PLACES = (0.13, 0.52, 0.9)


@pytest.mark.parametrize(("file", "named"), FILES.items())
def test_one_changed_byte_in_the_workspace_is_named(chain, links, file, named):
    for place in PLACES:
        with changed_byte(chain.root / file, place):
            broken = links()
        assert any(named in link for link in broken), (place, broken)


@pytest.mark.parametrize("file", [f for f in FILES if f != "submission/submission.csv"])
def test_missing_file_is_named(chain, links, file):
    with gone(chain.root / file):
        assert any(FILES[file].partition(": changed")[0] in link for link in links())


@pytest.mark.parametrize("file", VERSION_FILES)
def test_one_changed_byte_of_the_registered_version_is_named(chain, links, file):
    with changed_byte(chain.version / file, 0.5):
        (link,) = links()
    assert link.startswith(f"registry: version 1 of {chain.name}: files: changed: model verif")
    assert file in link


def test_damaged_promotion_log_is_named(chain, links):
    file = promotions.log_file(chain.name)
    before = file.read_bytes()
    file.write_bytes(before[:-20])
    try:
        (link,) = links()
    finally:
        file.write_bytes(before)
    assert "promotion log: changed: line " in link


def test_one_changed_byte_of_the_promotion_evidence_is_named(chain, links):
    (file,) = (paths.PROMOTIONS / chain.name / "evidence").iterdir()
    with changed_byte(file, 0.5):
        (link,) = links()
        assert "evidence of the promotion: changed" in link


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
        ("params", "value", "4", "finetune.depth", "parameters of finetuned: changed: not as"),
        ("tags", "value", "x", "content_digest", "tags of finetuned: changed: not as recorded: c"),
        ("tags", "value", "x", "git_commit", "tags of finetuned: changed"),
        ("tags", "value", "x", "final_weights_sha256", "not as recorded: final_weights_sha256"),
        ("latest_metrics", "value", 0.99, "holdout.auroc", "metrics: changed: not as recorded: h"),
    ],
)
def test_changed_cell_of_the_run_is_named(chain, links, table, column, value, key, named):
    with in_database(table, column, value, OF_RUN, chain.run_id, key):
        (link,) = links()
    assert link.startswith("runs: ")
    assert named in link


def test_deleted_run_is_a_missing_link(chain, links):
    with in_database("runs", "run_uuid", "0" * 32, "WHERE run_uuid = ?", chain.run_id):
        (link,) = links()
    assert "is not in MLflow" in link


@pytest.mark.parametrize("key", ["run_id", "manifest_sha256"])
def test_changed_tag_of_the_version_is_named(chain, links, key):
    where = "WHERE name = ? AND key = ?"
    with in_database("model_version_tags", "value", "x", where, chain.name, key):
        assert f"tag {key}: changed" in links()[0]


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


def test_code_with_local_changes_is_named(chain, links, monkeypatch):
    """Catches a commit that isn't the code that ran."""
    evidence = dict(registry.find_version(chain.name, 1).evidence)
    evidence["runs"]["finetuned"]["record"]["origin"]["git_dirty"] = "true"
    monkeypatch.setattr(registry.Version, "evidence", evidence)
    assert any("code of finetune: changed: had changes beyond commit" in link for link in links())


@pytest.mark.usefixtures("links")
def test_command_prints_the_tree_and_ends_by_the_chain(chain, monkeypatch, capsys):
    params = load_params()
    ingest = params.ingest.model_copy(update={"archive": "archive.zip"})
    monkeypatch.setattr(trace, "load_params", lambda: params.model_copy(update={"ingest": ingest}))
    monkeypatch.setattr(trace, "configure", lambda _: None)
    monkeypatch.setattr(paths, "ROOT", chain.root)
    submission = chain.root / "submission" / "submission.csv"
    trace.main(submission)
    shown = capsys.readouterr().out
    for part in ("submission", "registry", "runs", "code", "data", "archive"):
        assert part in shown
    assert "✗" not in shown
    with changed_byte(chain.archive, 0.5), pytest.raises(BrokenChain) as caught:
        trace.main(submission)
    assert "links are broken, first: archive archive.zip: is " in str(caught.value)
    assert "✗ archive archive.zip: CHANGED" in capsys.readouterr().out


def test_no_submission_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(trace, "configure", lambda _: None)
    with pytest.raises(BrokenChain, match="no submission at"):
        trace.main(tmp_path / "submission.csv")
    write_json(tmp_path / "lineage.json", {"submission": None, "reason": "left out"})
    with pytest.raises(BrokenChain, match="no submission: left out"):
        trace.main(tmp_path / "submission.csv")


def test_submission_without_lineage_is_a_broken_link(tmp_path):
    """A table copied out of its folder."""
    table = tmp_path / "submission.csv"
    table.write_text("id,label\n")
    ((_, (link,)),) = chain_.follow(table, tmp_path)
    assert (link.what, link.state) == ("submission.csv", "changed")
    assert "manifest missing" in link.said
