"""A real SQLite store for the session; name this file in ``pytest_plugins`` to use it."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tracking.support import point_paths_at


@pytest.fixture(scope="session")
def store_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tables take seconds to create: once a session. Spaces: URIs must be quoted and back."""
    from src.tracking.store import connect

    root = tmp_path_factory.mktemp("a store with spaces")
    with pytest.MonkeyPatch.context() as patch:
        point_paths_at(root, patch)
        connect()
        yield root


@pytest.fixture
def store(store_root: Path, monkeypatch: pytest.MonkeyPatch):
    from src.tracking.store import connect

    point_paths_at(store_root, monkeypatch)
    return connect()


@pytest.fixture
def model_name() -> str:
    return f"tiny-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="session")
def keras_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """uint8 (n, 96, 96, 3) → probability (n, 1), a few kB."""
    import keras

    keras.utils.set_random_seed(1)
    patches = keras.Input((96, 96, 3), dtype="uint8")
    mean = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(patches))
    logit = keras.layers.Dense(1)(mean)
    probability = keras.layers.Activation("sigmoid", name="probability")(logit)
    model = keras.Model(patches, probability)
    path = tmp_path_factory.mktemp("keras") / "model.keras"
    model.save(path)
    return path
