"""tools/build_venv.py: where packages come from."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from src import paths


@pytest.fixture
def settings_for(monkeypatch, tmp_path):
    """uv's settings where pip has this configuration, of a file and of the environment."""

    def settings(*lines, **variables):
        file = tmp_path / "pip.conf"
        file.write_text("\n".join(["[global]", *lines]))
        monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        tool = runpy.run_path(str(paths.ROOT / "tools" / "build_venv.py"))
        function = tool["pip_settings_for_uv"]
        function.__globals__["PYTHON"] = Path(sys.executable)
        return function()

    return settings


def test_uv_takes_packages_from_where_pip_does(settings_for):
    """Catches an installation that needs another network than the one pip is set up for."""
    settings = settings_for("index-url = https://a.example/simple", "extra-index-url = file:///b/c")
    assert settings["UV_DEFAULT_INDEX"] == "https://a.example/simple"
    assert settings["UV_INDEX"].split()[-1] == "file:///b/c"


def test_the_environment_wins_as_it_does_in_pip(settings_for):
    """Catches sections of pip's configuration read in the wrong order."""
    settings = settings_for("find-links = /a", PIP_FIND_LINKS="/b /c")
    assert settings["UV_FIND_LINKS"] == "/b,/c"
