"""What serving needs of MLflow: which version a folder is, and how a request is refused."""

from pathlib import Path
from typing import TYPE_CHECKING

from src.tracking.logged_models import WRITTEN_BY_READERS, VerificationError
from src.tracking.registry import VersionFiles, load_version

if TYPE_CHECKING:
    from mlflow.exceptions import MlflowException


def load_served(folder: Path) -> VersionFiles:
    """The registered version whose files MLflow put into ``folder``, verified before it is loaded.

    What the folder says of itself is only where to look: the SHA-256 that its files must have
    comes from the registry.

    Raises
    ------
    VerificationError
        The folder isn't a registered version's, or its files aren't those registered.
    TrackingError
        The registry has no such version.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    named = folder / WRITTEN_BY_READERS
    try:
        named_version = YAML(typ="safe", pure=True).load(named.read_text(encoding="utf-8"))
        name, version = str(named_version["model_name"]), int(named_version["model_version"])
    except (OSError, ValueError, TypeError, KeyError, YAMLError) as error:
        raise VerificationError(
            f"model verification failed: {folder} was not reached through the registry; serve it "
            'as "models:/<name>@champion"'
        ) from error
    return load_version(name, version, folder=folder)


def bad_request(message: str) -> "MlflowException":
    """What makes MLflow's server answer with status 400 and ``message``, and nothing else."""
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    return _answer(message, INVALID_PARAMETER_VALUE)


def broken_model(message: str) -> "MlflowException":
    """The same with status 500: it isn't the request that is at fault."""
    from mlflow.protos.databricks_pb2 import INTERNAL_ERROR

    return _answer(message, INTERNAL_ERROR)


def _answer(message: str, code: int) -> "MlflowException":
    """Left alone, the server puts the whole request into the answer, base64 and all."""
    from mlflow.exceptions import MlflowException

    error = MlflowException(message, error_code=code)
    answer = error.serialize_as_json()
    error.serialize_as_json = lambda: answer
    return error
