"""``python -m tests.pipeline.closure`` (``make deps``): every stage's import closure into dvc.yaml.

``test_dvc_yaml.py`` fails while ``dvc.yaml`` is out of date.
"""

from ruamel.yaml import YAML

from src import paths
from src.system.code import import_closure

DVC_YAML = paths.ROOT / "dvc.yaml"


def main() -> None:
    """Replace every stage's modules among its deps in dvc.yaml by its import closure."""
    yaml = YAML()
    yaml.width = 100
    yaml.indent(mapping=2, sequence=4, offset=2)
    document = yaml.load(DVC_YAML)
    for name, stage in document["stages"].items():
        data = [dep for dep in stage.get("deps", []) if not is_module(str(dep))]
        stage["deps"] = data + sorted(import_closure(f"src.{name}"))
    yaml.dump(document, DVC_YAML)


def is_module(dep: str) -> bool:
    """Whether a dependency of a stage is one of our modules."""
    return dep.startswith("src/") and dep.endswith(".py")


if __name__ == "__main__":
    main()
