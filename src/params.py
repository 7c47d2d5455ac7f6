"""``params.yaml`` read once into frozen, typed sections: one per stage, ``model`` and ``runtime``.

Every value has its range and unit here and nowhere else; unknown keys are refused. ``dvc.yaml``
lists the parameters that each stage reads, except ``runtime``, which can't change a result.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, combinations_with_replacement, product
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, DuplicateKeyError
from ruamel.yaml.error import YAMLError

from src import paths
from src.system.errors import ProjectError


class ParamsError(ProjectError):
    """``params.yaml`` can't be read, or a value in it is not allowed."""


class _Section(BaseModel):
    # strict: "1e-3", true and 3.0 are no numbers, no number and no whole number; 1 is a float
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Seed = Annotated[int, Field(ge=0, lt=2**32)]  # of every random choice that the section makes
Epochs = Annotated[int, Field(ge=1, le=10_000)]
BatchSize = Annotated[int, Field(ge=1, le=65_536)]  # patches
Between0And1 = Annotated[float, Field(gt=0, lt=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Switch = Literal["auto", "on", "off"]


class SampleParams(_Section):
    """The generated archive."""

    seed: Seed
    n_train: int = Field(ge=20, le=1_000_000)  # labelled patches
    n_test: int = Field(ge=1, le=1_000_000)  # unlabelled patches
    n_train_slides: int = Field(ge=2)  # slides the labelled patches come from
    n_test_slides: int = Field(ge=1)  # other slides, for the unlabelled patches

    @model_validator(mode="after")
    def _slides_have_patches(self) -> Self:
        if self.n_train_slides > self.n_train or self.n_test_slides > self.n_test:
            raise ValueError("n_train_slides and n_test_slides must not exceed n_train and n_test")
        return self


def _below_extra(path: str) -> str:
    parts = PurePosixPath(path).parts
    if parts[:2] != ("data", "extra") or len(parts) < 3 or ".." in parts:
        raise ValueError(f"must lie below data/extra, the folder that DVC watches (got {path!r})")
    return path


class IngestParams(_Section):
    """Where the patches come from, and how many may be unreadable."""

    # a zip or a folder in Kaggle's layout, or a folder of PatchCamelyon's h5 files
    archive: str = Field(min_length=1)
    no_submission: bool = False  # leave the test images and sample_submission.csv out
    # csv id,slide or id,wsi; null: the archive's own
    slides: Annotated[str, AfterValidator(_below_extra)] | None = None
    # file name → SHA-256 of h5 files other than those PatchCamelyon publishes
    h5_sha256: dict[str, Sha256] = Field(default_factory=dict)
    max_bad: int = Field(ge=0)  # unreadable images to quarantine before the stage fails


class ExploreParams(_Section):
    """Pictures of the data."""

    seed: Seed
    patches_per_class: int = Field(ge=4, le=100)  # patches shown


class SplitParams(_Section):
    """Whole groups go to train, val or holdout; train gets what the other two leave."""

    seed: Seed
    # what stays together; stain clusters stand in for slides; auto: slides if any are known
    group_by: Literal["auto", "slide", "stain", "patch"]
    val_fraction: Between0And1  # share of the labelled patches
    holdout_fraction: Between0And1
    n_folds: int | None = Field(default=None, ge=3, le=100)  # null: the fractions, no folds
    fold: int = Field(default=0, ge=0)  # the fold that is holdout; the next one is val

    @model_validator(mode="after")
    def _leaves_train(self) -> Self:
        if self.val_fraction + self.holdout_fraction >= 1:
            raise ValueError(
                "val_fraction + holdout_fraction must be < 1 "
                f"(got {self.val_fraction} + {self.holdout_fraction}); train gets the rest"
            )
        if self.fold >= (self.n_folds or 1):
            raise ValueError(
                f"fold must be < n_folds, or 0 without folds (got {self.fold} of {self.n_folds})"
            )
        return self


class ModelParams(_Section):
    """The classifier; shared by train and finetune."""

    backbone: Literal["resnet50", "resnet_tiny"]  # tiny: 4 blocks, few channels, for tests
    weights: str = Field(min_length=1)  # imagenet (downloaded once), none (random), or a file
    weights_sha256: Sha256 | None = None  # of that file; null: only Keras' published one will do
    input_size: int = Field(ge=32, le=512)  # side in px that the patch is resized to
    centre_crop: int | None = Field(default=None, ge=32, le=96)  # side in px; null keeps all
    pooling: Literal["avg", "avg_max", "gem"]  # mean; mean and maximum; generalised mean, p = 3
    dropout: float = Field(ge=0, lt=1)  # share of pooled features dropped in training

    @model_validator(mode="after")
    def _crop_is_centred(self) -> Self:
        if self.centre_crop is not None and self.centre_crop % 2:
            raise ValueError(f"centre_crop must be even, to stay centred (got {self.centre_crop})")
        return self


class ConstantSchedule(_Section):
    """The same learning rate throughout."""

    name: Literal["constant"]


class PlateauSchedule(_Section):
    """The rate is multiplied by ``factor`` when val loss stalls for ``patience`` epochs."""

    name: Literal["plateau"]
    factor: Between0And1
    patience: int = Field(ge=1)  # epochs
    min_rate: float = Field(ge=0)


class CosineSchedule(_Section):
    """Linear warm-up over ``warmup_epochs``, then half a cosine down to ``final_fraction``."""

    name: Literal["cosine"]
    warmup_epochs: float = Field(ge=0)  # fractions are steps within an epoch
    final_fraction: float = Field(ge=0, le=1)  # of the learning rate, at the last step


class OneCycleSchedule(_Section):
    """Half a cosine up to the learning rate, then half a cosine down; momentum is unchanged."""

    name: Literal["one_cycle"]
    warmup_fraction: float = Field(ge=0, lt=1)  # share of all steps spent rising
    start_divisor: float = Field(ge=1, le=1e6)  # the first step's rate is the peak divided by this
    final_divisor: float = Field(ge=1, le=1e9)  # and so is the last step's


Schedule = Annotated[
    ConstantSchedule | PlateauSchedule | CosineSchedule | OneCycleSchedule,
    Field(discriminator="name"),
]


class EarlyStopping(_Section):
    """Stop when the monitored value has not improved for ``patience`` epochs; the best is kept."""

    monitor: Literal["val_auroc", "val_loss"]
    patience: int = Field(ge=1)  # epochs
    min_delta: float = Field(ge=0)  # smallest change that counts as better


class ClassWeights(_Section):
    """Explicit weights of the two classes in the loss."""

    normal: float = Field(gt=0)
    tumour: float = Field(gt=0)


class TrainParams(_Section):
    """Head alone, on pooled features of the frozen backbone."""

    seed: Seed
    epochs: Epochs
    batch_size: BatchSize
    optimizer: Literal["adam", "adamw", "sgd"]  # sgd: Nesterov momentum; adamw: decoupled decay
    learning_rate: float = Field(gt=0, le=10)  # peak
    momentum: float = Field(default=0.9, ge=0, lt=1)  # of sgd; the others ignore it
    weight_decay: float = Field(ge=0, lt=1)  # decoupled, times the rate, kernels only; not in adam
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)  # e: labels become e/2 and 1 - e/2
    average_decay: Between0And1 | None = None  # of the weights' moving average; null: none
    views: int = Field(ge=1, le=8)  # flips and rotations each patch is trained on
    class_weights: Literal["balanced", "none"] | ClassWeights
    schedule: Schedule
    early_stopping: EarlyStopping

    @model_validator(mode="after")
    def _adam_has_no_weight_decay(self) -> Self:
        if self.optimizer == "adam" and self.weight_decay > 0:
            raise ValueError(
                "weight_decay must be 0 with optimizer adam, or set optimizer: adamw "
                f"(got {self.weight_decay})"
            )
        return self


class AugmentParams(_Section):
    """Random colours of each patch in training; its label stays true."""

    # largest relative change, and largest shift in optical density, of each of haematoxylin, eosin
    # and DAB
    stain: float = Field(ge=0, le=0.2)
    brightness: float = Field(ge=0, le=0.5)  # largest relative change
    contrast: float = Field(ge=0, le=0.5)  # the same, of the distance to the patch's mean

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if self.stain == self.brightness == self.contrast == 0:
            raise ValueError("one of stain, brightness and contrast must be > 0, or augment: null")
        return self


class FinetuneParams(TrainParams):
    """The top residual blocks as well."""

    depth: int = Field(ge=0, le=16)  # residual blocks unfrozen, from the top
    batch_norm: Literal["frozen", "train"]  # in those blocks: stored statistics, or the batch's
    rate_decay: float = Field(default=1.0, gt=0, le=1)  # f: k-th block from the top: rate × f^k
    augment: AugmentParams | None = None  # needs pixels, so no activations are cached


class OperatingPointRule(_Section):
    """Which threshold on the probability is chosen on val: one of three rules."""

    min_sensitivity: Between0And1 | None = None  # the highest threshold that reaches it
    min_specificity: Between0And1 | None = None  # the lowest threshold that reaches it
    cost_fn: float | None = Field(default=None, gt=0)  # of a missed tumour patch
    cost_fp: float | None = Field(default=None, gt=0)  # of a false alarm: the least cost of both

    @model_validator(mode="after")
    def _is_one_rule(self) -> Self:
        given = set(self.as_rule())
        if given not in ({"min_sensitivity"}, {"min_specificity"}, {"cost_fn", "cost_fp"}):
            raise ValueError(
                "must be min_sensitivity, min_specificity, or cost_fn with cost_fp "
                f"(got {', '.join(sorted(given)) or 'none'})"
            )
        return self

    def as_rule(self) -> dict[str, float]:
        """The limits that are given, by name."""
        return self.model_dump(exclude_none=True)


class EvaluateParams(_Section):
    """Metrics, intervals, operating point and test-time augmentation."""

    seed: Seed
    confidence: float = Field(gt=0.5, lt=1)  # of every interval
    operating_point: OperatingPointRule
    tta: bool = False  # mean logit of the 8 flips and rotations, in models/final too; 8 × slower


class RegisterParams(_Section):
    """Registry entry and promotion."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")  # of the registered model
    margin: float = Field(ge=0, lt=0.5)  # AUROC a challenger may fall below the champion by
    min_groups: int = Field(ge=1, le=10_000)  # fewest holdout groups that hold each class


class PredictParams(_Section):
    """The submission."""

    unpromoted: Literal["allow", "refuse"]  # whether a challenger predicts if there is no champion


Value = int | float | str | bool | None | dict[str, Any]  # one that a trial may take


class _Dimension(_Section):
    @property
    def ends(self) -> tuple[Value, ...]:
        """The values that stand for all when they are checked: every choice, or both bounds."""
        (values,) = self.model_dump().values()
        return tuple(values)


class Choice(_Dimension):
    """One of the values named, without an order."""

    choice: tuple[Value, ...] = Field(min_length=1, strict=False)


class LogRange(_Dimension):
    """A positive number, each factor as likely as any other."""

    log: tuple[float, ...] = Field(strict=False)

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if len(self.log) != 2 or not 0 < self.log[0] < self.log[1]:
            raise ValueError(f"must be [low, high] with 0 < low < high (got {list(self.log)})")
        return self


class LinearRange(_Dimension):
    """A number, each difference as likely as any other; whole if both bounds are."""

    linear: tuple[int | float, ...] = Field(strict=False)

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if len(self.linear) != 2 or not self.linear[0] < self.linear[1]:
            raise ValueError(f"must be [low, high] with low < high (got {list(self.linear)})")
        return self


def _kind(dimension: Any) -> str | None:
    """The only key of a mapping, or the only field of a dimension already read."""
    keys = list(dimension if isinstance(dimension, dict) else type(dimension).model_fields)
    return str(keys[0]) if len(keys) == 1 else None


_KINDS = "must be {choice: [a, b]}, {log: [low, high]} or {linear: [low, high]}"
Dimension = Annotated[
    Annotated[Choice, Tag("choice")]
    | Annotated[LogRange, Tag("log")]
    | Annotated[LinearRange, Tag("linear")],
    Discriminator(_kind, custom_error_type="dimension_kind", custom_error_message=_KINDS),
]


class MedianPruner(_Section):
    """A trial ends when its best score so far is below the median of the others' at that epoch."""

    name: Literal["median"]
    startup_trials: int = Field(ge=1, le=10_000)  # complete trials before any is ended
    warmup_epochs: int = Field(ge=0, le=10_000)  # in which no trial is ended


class HalvingPruner(_Section):
    """Only the best ``1 / reduction`` of the trials go on past each rung of epochs."""

    name: Literal["halving"]
    min_epochs: Epochs  # up to the first rung
    reduction: int = Field(ge=2, le=100)  # each rung is this many times longer


class NoPruner(_Section):
    """Every trial runs to its end."""

    name: Literal["none"]


Pruner = Annotated[MedianPruner | HalvingPruner | NoPruner, Field(discriminator="name")]


class TuneParams(_Section):
    """The search of ``python -m src.tune``; no stage depends on it."""

    seed: Seed
    n_trials: int = Field(ge=1, le=100_000)  # complete and pruned trials that a study ends with
    startup_trials: int = Field(ge=1, le=10_000)  # drawn at random before the sampler learns
    objective: Literal["val_auroc", "val_loss"]  # of the epoch that is kept
    epochs: Epochs | None = None  # of each trial; null: finetune.epochs
    subset: int | None = Field(default=None, ge=20)  # train patches of a trial; null: all
    log_weights: Literal["best", "all", "none"] = "best"  # trials whose weights go to MLflow
    pruner: Pruner
    space: dict[str, Dimension] = Field(min_length=1)  # dotted name of a parameter → its values

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        for name in self.space:
            if name.split(".")[0] not in ("model", "train", "finetune") or "." not in name:
                raise ValueError(
                    f"space.{name} must be a parameter of model, train or finetune, by its dotted "
                    "name, like finetune.depth"
                )
            if name.endswith(".seed"):
                raise ValueError(f"space.{name}: a seed isn't searched; see --confirm")
        for one, other in combinations(sorted(self.space), 2):
            if other.startswith(f"{one}."):
                raise ValueError(f"space.{other} lies inside space.{one}; keep one of them")
        if self.epochs is not None and "finetune.epochs" in self.space:
            raise ValueError("epochs must be null where space has finetune.epochs")
        return self


class CacheParams(_Section):
    """Activations of the frozen layers, kept on disk in .cache/activations."""

    max_gb: float = Field(ge=0, le=100_000)  # 10^9 bytes; what doesn't fit is computed each epoch
    dtype: Literal["float16", "float32"]  # of feature maps; the only setting here that rounds


class RuntimeParams(_Section):
    """What can't change a result, rounding apart; no stage depends on it."""

    threads: int = Field(ge=0, le=1024)  # of TensorFlow; 0: one per core
    workers: int = Field(ge=0, le=256)  # decoding processes; 0: one per core
    verbosity: Literal["debug", "info", "warning"]
    inference_batch_size: BatchSize  # images per forward pass; with evaluate.tta a patch is 8
    xla: Switch  # compile the training step; on: wherever TensorFlow can
    checkpoint_minutes: float = Field(gt=0, le=1440)  # between checkpoints within an epoch
    device: Literal["auto", "cpu", "gpu", "gpus"]  # auto: a GPU if any; gpus: all of this host
    mixed_precision: Switch  # train the top blocks in bfloat16; auto: on GPUs made for it
    deterministic: bool  # the same bits from every run on this machine; false may be faster
    quiet_tensorflow: bool  # hide TensorFlow's own log lines


class Params(_Section):
    """All of ``params.yaml``."""

    sample: SampleParams
    ingest: IngestParams
    explore: ExploreParams
    split: SplitParams
    model: ModelParams
    train: TrainParams
    finetune: FinetuneParams
    evaluate: EvaluateParams
    register_: RegisterParams = Field(alias="register")
    predict: PredictParams
    tune: TuneParams
    cache: CacheParams
    runtime: RuntimeParams

    def with_values(self, values: Mapping[str, Any]) -> Params:
        """These parameters with others by dotted name, like ``finetune.depth``, validated."""
        raw = self.model_dump(by_alias=True)
        for name, value in values.items():
            *outer, last = name.split(".")
            inside: Any = raw
            for i, key in enumerate(outer):
                inside = inside.setdefault(key, {})
                if not isinstance(inside, dict):
                    section = ".".join(outer[: i + 1])
                    raise ParamsError(
                        f"{name}: {section} is {inside!r} and has no {[*outer, last][i + 1]}; give "
                        f"{section} its values in params.yaml first, then again"
                    )
            inside[last] = value
        return _validated(raw)

    def value(self, name: str) -> Any:
        """The value of a dotted name, as plain data; None if nothing has that name."""
        found: Any = self.model_dump(by_alias=True)
        for key in name.split("."):
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def sections(self, *names: str) -> dict[str, Any]:
        """The named sections as plain nested values, for a run's record."""
        return {name: getattr(self, name).model_dump() for name in names}


def load_params(path: Path = paths.PARAMS) -> Params:
    """Read and validate ``params.yaml``; a :class:`ParamsError` names file, key, rule and value."""
    raw = _read_yaml(path)
    where = path.name
    try:
        params = _validated(raw)
        where = f"{path.name}: tune.space"
        space = params.tune.space
        first = {name: dimension.ends[0] for name, dimension in space.items()}
        for one, other in combinations_with_replacement(space, 2):  # every two values together
            for a, b in product(space[one].ends, space[other].ends):
                params.with_values({**first, one: a, other: b})
    except ParamsError as error:
        raise ParamsError(f"{where}: {error}") from error
    return params


def _read_yaml(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ParamsError(
            f"{path.name} not found in {path.parent}; copy presets/sample.yaml there"
        ) from error
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path.name}: not UTF-8; save it as UTF-8") from error
    try:
        raw = YAML(typ="safe", pure=True).load(text)
    except DuplicateKeyError as error:
        raise ParamsError(f"{path.name}: duplicate key: {error.problem}") from error
    except ConstructorError as error:
        raise ParamsError(f"{path.name}: unsafe YAML: {error.problem}; use plain values") from error
    except YAMLError as error:
        problem = " ".join(str(error).split())  # several lines, with a picture of the place
        raise ParamsError(f"{path.name}: not valid YAML: {problem}; correct it") from error
    if not isinstance(raw, dict):
        raise ParamsError(f"{path.name}: expected sections, got {type(raw).__name__}")
    return raw


_RULES = {
    "greater_than": "must be > {gt:g}",
    "greater_than_equal": "must be ≥ {ge:g}",
    "less_than": "must be < {lt:g}",
    "less_than_equal": "must be ≤ {le:g}",
    "extra_forbidden": "is not a known parameter; remove it or check its spelling",
    "missing": "is missing; see presets/sample.yaml",
    "literal_error": "must be {expected}",
    "finite_number": "must be a finite number",
    "string_pattern_mismatch": "must match {pattern}",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "union_tag_invalid": "must have a name among {expected_tags}",
    "union_tag_not_found": "needs a name",
    "value_error": "{error}",
}


def _validated(raw: Any) -> Params:
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        problems = error.errors()
    # a misspelt key is both unknown and missing, a union fails once per member: name the useful one
    problem = min(problems, key=lambda p: (p["type"] != "extra_forbidden", -len(_keys(p, raw))))
    rule = _RULES.get(problem["type"])
    message = rule.format(**problem.get("ctx", {})) if rule else problem["msg"]
    got = "" if problem["type"] in ("missing", "value_error") else f" (got {problem['input']!r})"
    where = ".".join(_keys(problem, raw))
    raise ParamsError(f"{where}: {message}{got}".replace(": must", " must"))


def _keys(problem: ErrorDetails, raw: Any) -> list[str]:
    """The keys of ``raw`` that lead to a problem, without the union members pydantic adds."""
    keys = []
    for position, part in enumerate(problem["loc"], start=1):
        inside = isinstance(raw, dict) and part in raw
        is_union_member = str(part).startswith("literal[") or part == ClassWeights.__name__
        if inside or (position == len(problem["loc"]) and not is_union_member):
            keys.append(str(part))
        raw = raw[part] if inside else raw
    return keys
