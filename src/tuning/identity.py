"""What a study belongs to: data, code, and the parameters that its space leaves alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from src.params import Params
from src.system.errors import ProjectError
from src.system.nested import flatten

IDENTITY = "identity"

_NOT_OF_A_STUDY = {"n_trials", "seed", "log_weights", "startup_trials", "pruner"}
_MOST_NAMED = 3
_LONGEST_SHOWN = 40


class OtherStudy(ProjectError):
    """A study of this name was made from other data, code or parameters."""


def study_identity(params: Params, *, data: Mapping[str, str], code: str) -> dict[str, Any]:
    """Everything trials must share to be compared, as plain flat values.

    Parameters in the space are left out: writing the best ones into ``params.yaml`` doesn't make it
    another study.
    """
    fixed = flatten(params.sections("model", "train", "finetune"))
    space = params.tune.space
    kept = {
        name: value
        for name, value in fixed.items()
        if not any(name == s or name.startswith(f"{s}.") for s in space)
    }
    kept["cache.dtype"] = params.cache.dtype
    tune = params.tune.model_dump(exclude=_NOT_OF_A_STUDY)
    return {**{f"data.{k}": v for k, v in data.items()}, "code": code, **kept, **_named(tune)}


def _named(tune: Mapping[str, Any]) -> dict[str, Any]:
    plain = {f"tune.{name}": value for name, value in tune.items() if name != "space"}
    space = {f"tune.space.{name}": value for name, value in tune["space"].items()}
    return {**plain, **space}


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names whose values differ, with both values where they are short."""
    return [
        _difference(name, then.get(name), now.get(name))
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]


def _difference(name: str, then: Any, now: Any) -> str:
    texts = [str(then), str(now)]
    is_long = any(len(text) > _LONGEST_SHOWN for text in texts)
    return name if is_long else f"{name} ({texts[0]} → {texts[1]})"


def check_same(study: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with a study that belongs to something else.

    Raises
    ------
    OtherStudy
        Names what differs.
    """
    found = differences(then, now)
    if found:
        raise OtherStudy(
            f"study {study} can't go on: since it began these changed: {_listed(found)}; "
            "change them back, or start another: --study NAME"
        )


def check_applicable(
    study: str, then: Mapping[str, Any], now: Mapping[str, Any], *, other_data: bool = False
) -> None:
    """Refuse to apply the best parameters of other data, or by another objective or space.

    Other code and other fixed parameters are no reason: the best are the best of what was searched.

    Raises
    ------
    OtherStudy
        Says so, and how to go on.
    """
    found = differences(then, now)
    searched = [d for d in found if d.startswith(("tune.objective", "tune.space."))]
    if searched:
        raise OtherStudy(
            f"study {study} searched for something else: {_listed(searched)} changed since; "
            "change it back, or run a new one: --study NAME"
        )
    data = [d for d in found if d.startswith("data.")]
    if data and not other_data:
        raise OtherStudy(
            f"study {study} belongs to other data ({', '.join(data)} changed); run a new one: "
            "--study NAME, or apply it all the same: --apply --other-data"
        )


def _listed(found: Sequence[str]) -> str:
    more = len(found) - _MOST_NAMED
    return ", ".join(found[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
