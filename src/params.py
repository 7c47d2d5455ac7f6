"""``params.yaml`` read once into frozen, typed sections: one a stage, ``model`` and ``runtime``.

Every value has its range and unit here and nowhere else; unknown keys are refused. Each parameter
that a stage reads stands in that stage's ``params`` in ``dvc.yaml`` (a test holds it), except
``runtime``, which can't change a result.
"""

from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    Tag,
    ValidationError,
    model_validator,
)

from src import paths
from src.system.errors import ProjectError


class ParamsError(ProjectError):
    """``params.yaml`` can't be read, or a value in it is not allowed."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Number = float  # a strict float: whole numbers pass, text and booleans don't
Seed = Annotated[int, Field(ge=0, lt=2**32, description="seed of every random choice made here")]


class SampleParams(_Section):
    """The generated archive."""

    seed: Seed
    n_train: int = Field(ge=20, le=1_000_000, description="labelled patches")
    n_test: int = Field(ge=1, le=1_000_000, description="unlabelled patches")
    n_train_slides: int = Field(ge=2, description="slides the labelled patches come from")
    n_test_slides: int = Field(ge=1, description="other slides, for the unlabelled patches")

    @model_validator(mode="after")
    def _slides_have_patches(self) -> "SampleParams":
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

    archive: str = Field(
        min_length=1, description="zip or folder in Kaggle's layout, or folder of PCam's h5 files"
    )
    no_submission: StrictBool = Field(
        default=False,
        description="leave the test images and sample_submission.csv out",
    )
    slides: Annotated[str, AfterValidator(_below_extra)] | None = Field(
        default=None, description="csv id,slide or id,wsi; null: the archive's own"
    )
    h5_sha256: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(
        default_factory=dict,
        description="file name → SHA-256 of h5 files that aren't PCam's published ones",
    )
    max_bad: int = Field(ge=0, description="unreadable images to quarantine before giving up")


class ExploreParams(_Section):
    """Pictures of the data."""

    seed: Seed
    patches_per_class: int = Field(ge=4, le=100, description="patches shown per class")


class SplitParams(_Section):
    """Whole groups go to train, val or holdout; train gets what the other two leave."""

    seed: Seed
    group_by: Literal["auto", "slide", "stain", "patch"] = Field(
        description="what stays together: slides, stain clusters standing in for them, or single "
        "patches; auto: slides where the archive names any, else stain"
    )
    val_fraction: Number = Field(gt=0, lt=1, description="share of labelled patches in val")
    holdout_fraction: Number = Field(gt=0, lt=1, description="share of labelled patches in holdout")
    n_folds: int | None = Field(
        default=None, ge=3, le=100, description="cross-validation folds; null uses the fractions"
    )
    fold: int = Field(
        default=0, ge=0, description="from 0: the fold held out; the next one is val, others train"
    )

    @model_validator(mode="after")
    def _leaves_train(self) -> "SplitParams":
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

    backbone: Literal["resnet50", "resnet_tiny"] = Field(
        description="resnet_tiny: four blocks and few channels, for tests and first tries"
    )
    weights: str = Field(
        min_length=1,
        description="initial weights: imagenet (downloaded once), none (random), or a file",
    )
    weights_sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 the weights file must have; null accepts Keras' published file only",
    )
    input_size: int = Field(ge=32, le=512, description="side in px the patch is resized to")
    centre_crop: int | None = Field(
        default=None, ge=32, le=96, description="side in px kept around the centre; null keeps all"
    )
    pooling: Literal["avg", "avg_max", "gem"] = Field(
        description="of the feature map: mean; mean and maximum; generalised mean with p = 3"
    )
    dropout: Number = Field(ge=0, lt=1, description="share of pooled features dropped in training")

    @model_validator(mode="after")
    def _crop_is_centred(self) -> "ModelParams":
        if self.centre_crop is not None and self.centre_crop % 2:
            raise ValueError(f"centre_crop must be even, to stay centred (got {self.centre_crop})")
        return self


class ConstantSchedule(_Section):
    """The same learning rate throughout."""

    name: Literal["constant"]


class PlateauSchedule(_Section):
    """The rate is multiplied by ``factor`` when val loss stalls for ``patience`` epochs."""

    name: Literal["plateau"]
    factor: Number = Field(gt=0, lt=1)
    patience: int = Field(ge=1, description="epochs")
    min_rate: Number = Field(ge=0)


class CosineSchedule(_Section):
    """Linear warm-up over ``warmup_epochs``, then a half cosine down to ``final_fraction``."""

    name: Literal["cosine"]
    warmup_epochs: Number = Field(ge=0, description="epochs; fractions are steps within one")
    final_fraction: Number = Field(ge=0, le=1, description="of the learning rate, at the last step")


class OneCycleSchedule(_Section):
    """Half a cosine up to the learning rate, then half a cosine down; momentum stays as it is."""

    name: Literal["one_cycle"]
    warmup_fraction: Number = Field(ge=0, lt=1, description="share of all steps spent rising")
    start_divisor: Number = Field(
        ge=1, le=1e6, description="first step: the learning rate divided by this"
    )
    final_divisor: Number = Field(
        ge=1, le=1e9, description="last step: the learning rate divided by this"
    )


Schedule = Annotated[
    ConstantSchedule | PlateauSchedule | CosineSchedule | OneCycleSchedule,
    Field(discriminator="name"),
]


class EarlyStopping(_Section):
    """Stop when the monitored value has not improved for ``patience`` epochs; the best is kept."""

    monitor: Literal["val_auroc", "val_loss"]
    patience: int = Field(ge=1, description="epochs")
    min_delta: Number = Field(ge=0, description="smallest change that counts as better")


class ClassWeights(_Section):
    """Explicit weights of the two classes in the loss."""

    normal: Number = Field(gt=0)
    tumour: Number = Field(gt=0)


class TrainParams(_Section):
    """Head alone, on pooled features of the frozen backbone."""

    seed: Seed
    epochs: int = Field(ge=1, le=10_000)
    batch_size: int = Field(ge=1, le=65_536, description="patches a step")
    optimizer: Literal["adam", "adamw", "sgd"] = Field(
        description="sgd: with Nesterov momentum; adamw: Adam with decoupled weight decay"
    )
    learning_rate: Number = Field(gt=0, le=10, description="peak rate")
    momentum: Number = Field(default=0.9, ge=0, lt=1, description="of sgd; the others ignore it")
    weight_decay: Number = Field(
        ge=0, lt=1, description="decoupled, times the rate, per step, kernels only; not with adam"
    )
    label_smoothing: Number = Field(
        default=0.0,
        ge=0,
        lt=0.5,
        description="e: labels 0 and 1 become e/2 and 1 - e/2 in the training loss",
    )
    average_decay: Number | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="of the moving average of the weights, per step; null: no average",
    )
    views: int = Field(ge=1, le=8, description="flips and rotations each patch is trained on")
    class_weights: Literal["balanced", "none"] | ClassWeights
    schedule: Schedule
    early_stopping: EarlyStopping

    @model_validator(mode="after")
    def _adam_has_no_weight_decay(self) -> "TrainParams":
        if self.optimizer == "adam" and self.weight_decay > 0:
            raise ValueError(
                "weight_decay must be 0 with optimizer adam, or set optimizer: adamw "
                f"(got {self.weight_decay})"
            )
        return self


class AugmentParams(_Section):
    """Random colours of each patch in training; its label stays true."""

    stain: Number = Field(
        ge=0,
        le=0.2,
        description="largest relative change, and largest shift in optical density, of each of "
        "haematoxylin, eosin and DAB",
    )
    brightness: Number = Field(ge=0, le=0.5, description="largest relative change")
    contrast: Number = Field(
        ge=0, le=0.5, description="largest relative change of the distance to the patch's mean"
    )

    @model_validator(mode="after")
    def _changes_something(self) -> "AugmentParams":
        if self.stain == self.brightness == self.contrast == 0:
            raise ValueError("one of stain, brightness and contrast must be > 0, or augment: null")
        return self


class FinetuneParams(TrainParams):
    """The top residual blocks as well."""

    depth: int = Field(ge=0, le=16, description="residual blocks unfrozen, from the top")
    batch_norm: Literal["frozen", "train"] = Field(
        description="frozen: stored statistics; train: the batch's, in the unfrozen blocks"
    )
    rate_decay: Number = Field(
        default=1.0,
        gt=0,
        le=1,
        description="f: the k-th residual block from the top learns at the learning rate times f^k",
    )
    augment: AugmentParams | None = Field(
        default=None, description="null: none; any needs pixels, so no activations are cached"
    )


class OperatingPointRule(_Section):
    """Which threshold on the probability is chosen on val: one of three rules."""

    min_sensitivity: Number | None = Field(
        default=None, gt=0, lt=1, description="the highest threshold that reaches it"
    )
    min_specificity: Number | None = Field(
        default=None, gt=0, lt=1, description="the lowest threshold that reaches it"
    )
    cost_fn: Number | None = Field(
        default=None, gt=0, description="of a missed tumour patch; with cost_fp, the least cost"
    )
    cost_fp: Number | None = Field(default=None, gt=0, description="of a false alarm")

    @model_validator(mode="after")
    def _is_one_rule(self) -> "OperatingPointRule":
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
    confidence: Number = Field(gt=0.5, lt=1, description="of every interval")
    operating_point: OperatingPointRule
    tta: StrictBool = Field(
        default=False,
        description="mean logit of the 8 flips and rotations, here and in models/final; 8 × slower",
    )


class RegisterParams(_Section):
    """Registry entry and promotion."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="registered model")
    margin: Number = Field(
        ge=0, lt=0.5, description="AUROC a challenger may fall below the champion and still replace"
    )
    min_groups: int = Field(
        ge=1, le=10_000, description="fewest holdout groups that hold tumour, and normal patches"
    )


class PredictParams(_Section):
    """The submission."""

    unpromoted: Literal["allow", "refuse"] = Field(
        description="whether a challenger predicts where no champion stands"
    )


Value = int | float | str | StrictBool | None | dict[str, Any]  # one that a trial may take


class Choice(_Section):
    """One of the values named, without an order."""

    choice: tuple[Value, ...] = Field(min_length=1, strict=False)

    @property
    def ends(self) -> tuple[Value, ...]:
        """The values that stand for all when they are checked."""
        return self.choice


class _Range(_Section):
    @staticmethod
    def _ordered(bounds: tuple[float, ...], *, above: float) -> tuple[float, ...]:
        if len(bounds) != 2 or not above < bounds[0] < bounds[1]:
            zero = "0 < " if above == 0 else ""
            raise ValueError(f"must be [low, high] with {zero}low < high (got {list(bounds)})")
        return bounds


class LogRange(_Range):
    """A positive number, each factor as likely as any other."""

    log: tuple[Number, ...] = Field(strict=False)

    @model_validator(mode="after")
    def _is_ordered(self) -> "LogRange":
        self._ordered(self.log, above=0)
        return self

    @property
    def ends(self) -> tuple[Value, ...]:
        """Both bounds."""
        return self.log


class LinearRange(_Range):
    """A number, each difference as likely as any other; whole where both bounds are."""

    linear: tuple[int | Number, ...] = Field(strict=False)

    @model_validator(mode="after")
    def _is_ordered(self) -> "LinearRange":
        self._ordered(self.linear, above=float("-inf"))
        return self

    @property
    def ends(self) -> tuple[Value, ...]:
        """Both bounds."""
        return self.linear


def _kind(dimension: Any) -> str | None:
    if isinstance(dimension, dict):
        return str(next(iter(dimension))) if len(dimension) == 1 else None
    return str(next(iter(type(dimension).model_fields)))


Dimension = Annotated[
    Annotated[Choice, Tag("choice")]
    | Annotated[LogRange, Tag("log")]
    | Annotated[LinearRange, Tag("linear")],
    Discriminator(
        _kind,
        custom_error_type="dimension_kind",
        custom_error_message=(
            "must be {choice: [a, b]}, {log: [low, high]} or {linear: [low, high]}"
        ),
    ),
]


class MedianPruner(_Section):
    """A trial ends when its best score so far is below the median of the others' at that epoch."""

    name: Literal["median"]
    startup_trials: int = Field(ge=1, le=10_000, description="complete trials before any is ended")
    warmup_epochs: int = Field(ge=0, le=10_000, description="epochs no trial is ended in")


class HalvingPruner(_Section):
    """Only the best ``1 / reduction`` of the trials go on past each rung of epochs."""

    name: Literal["halving"]
    min_epochs: int = Field(ge=1, le=10_000, description="epochs up to the first rung")
    reduction: int = Field(ge=2, le=100, description="each rung is this many times longer")


class NoPruner(_Section):
    """Every trial runs to its end."""

    name: Literal["none"]


Pruner = Annotated[MedianPruner | HalvingPruner | NoPruner, Field(discriminator="name")]


class TuneParams(_Section):
    """The search of ``python -m src.tune``; no stage depends on it."""

    seed: Seed
    n_trials: int = Field(
        ge=1, le=100_000, description="complete and pruned trials that a study ends with"
    )
    startup_trials: int = Field(ge=1, le=10_000, description="drawn at random before the model is")
    objective: Literal["val_auroc", "val_loss"] = Field(
        description="of the epoch that is kept: highest AUROC, or lowest log loss"
    )
    epochs: int | None = Field(
        default=None, ge=1, le=10_000, description="of each trial; null: finetune.epochs"
    )
    subset: int | None = Field(
        default=None, ge=20, description="train patches of a trial, both classes; null: all"
    )
    log_weights: Literal["best", "all", "none"] = Field(
        default="best", description="trials whose weights go to MLflow"
    )
    pruner: Pruner
    space: dict[str, Dimension] = Field(
        min_length=1, description="dotted name of a parameter of model, train or finetune → values"
    )

    @model_validator(mode="after")
    def _names_are_distinct(self) -> "TuneParams":
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

    max_gb: Number = Field(
        ge=0, le=100_000, description="disk in 10^9 bytes; what doesn't fit is computed each epoch"
    )
    dtype: Literal["float16", "float32"] = Field(description="of feature maps; alone in a result")


class RuntimeParams(_Section):
    """What can't change a result, rounding apart; no stage depends on it."""

    threads: int = Field(ge=0, le=1024, description="TensorFlow threads; 0 = one a core")
    workers: int = Field(ge=0, le=256, description="decoding processes; 0 = one a core")
    verbosity: Literal["debug", "info", "warning"]
    inference_batch_size: int = Field(
        ge=1, le=65_536, description="images per forward pass; with evaluate.tta a patch is 8"
    )
    xla: Literal["auto", "on", "off"] = Field(
        description="compile the training step with XLA; on: wherever TensorFlow can"
    )
    checkpoint_minutes: Number = Field(
        gt=0, le=1440, description="minutes between checkpoints within an epoch"
    )
    device: Literal["auto", "cpu", "gpu", "gpus"] = Field(
        description="auto: a GPU where there is one; gpus: all of this host, sharing each batch"
    )
    mixed_precision: Literal["auto", "on", "off"] = Field(
        description="train the top blocks in bfloat16; auto: on GPUs that are made for it"
    )
    deterministic: StrictBool = Field(
        description="the same bits from every run on this machine; false lets kernels be faster"
    )
    quiet_tensorflow: StrictBool = Field(description="hide TensorFlow's own log lines")


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

    @model_validator(mode="after")
    def _space_is_allowed(self) -> "Params":
        """Every two values of the space together, the others at their first."""
        for values in _pairs(self.tune.space):
            try:
                _sections_with(self, values)
            except ValidationError as error:
                raise ValueError(f"tune.space: {_why_not(error, values)}") from error
            except _NotASection as error:
                raise ValueError(f"tune.space: {error}") from error
        return self

    def with_values(self, values: Mapping[str, Any]) -> "Params":
        """These parameters with others by dotted name, like ``finetune.depth``, validated.

        Raises
        ------
        ParamsError
            One of them isn't known or not allowed.
        """
        try:
            return self.model_copy(update=_sections_with(self, values))
        except ValidationError as error:
            raise ParamsError(_why_not(error, values)) from error
        except _NotASection as error:
            raise ParamsError(str(error)) from error

    def value(self, name: str) -> Any:
        """The value of a dotted name, as plain data; None where nothing has that name."""
        found: Any = self.model_dump(by_alias=True)
        for key in name.split("."):
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def sections(self, *names: str) -> dict[str, Any]:
        """The named sections as plain nested values, for a run's record."""
        return {name: getattr(self, name).model_dump() for name in names}


class _NotASection(Exception):
    """A dotted name leads through a value that has no parts."""


def _pairs(space: Mapping[str, Dimension]) -> Iterator[dict[str, Any]]:
    first: dict[str, Any] = {name: dimension.ends[0] for name, dimension in space.items()}
    if len(first) == 1:
        yield from ({name: end} for name, dimension in space.items() for end in dimension.ends)
    for one, other in combinations(space, 2):
        for a in space[one].ends:
            yield from ({**first, one: a, other: b} for b in space[other].ends)


def _sections_with(params: Params, values: Mapping[str, Any]) -> dict[str, _Section]:
    """The sections that ``values`` (by dotted name) change, validated."""
    changed: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, *keys = name.split(".")
        changed.setdefault(section, getattr(params, section).model_dump())
        inside: dict[str, Any] = changed[section]
        for i, key in enumerate(keys[:-1]):
            inside = inside.setdefault(key, {})
            if not isinstance(inside, dict):
                outer = ".".join([section, *keys[: i + 1]])
                raise _NotASection(
                    f"{name}: {outer} is {inside!r} and has no {keys[i + 1]}; give {outer} its "
                    "values in params.yaml first, then again"
                )
        inside[keys[-1]] = value
    return {
        section: type(getattr(params, section)).model_validate(raw)
        for section, raw in changed.items()
    }


def _why_not(error: ValidationError, values: Mapping[str, Any]) -> str:
    section = next(
        name.split(".")[0]
        for name in values
        if error.title in (f"{name.split('.')[0].title()}Params",)
    )
    problem = error.errors()[0]
    rule = _RULES.get(problem["type"])
    message = rule.format(**problem.get("ctx", {})) if rule else problem["msg"]
    where = ".".join([section, *map(str, problem["loc"])])
    got = "" if problem["type"] in _WITHOUT_VALUE else f" (got {problem['input']!r})"
    return f"{where}: {message}{got}".replace(": must", " must")


def load_params(path: Path = paths.PARAMS) -> Params:
    """Read and validate ``params.yaml``.

    Raises
    ------
    ParamsError
        One line: file, dotted key, rule and what came.
    """
    raw = _read_yaml(path)
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise ParamsError(f"{path.name}: {_first_problem(error, raw)}") from error


def _read_yaml(path: Path) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import ConstructorError, DuplicateKeyError
    from ruamel.yaml.error import YAMLError

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
        problem = " ".join(str(error).split())  # of several lines, with a picture of the place
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
_WITHOUT_VALUE = {"missing", "value_error"}


def _first_problem(error: ValidationError, raw: Any) -> str:
    # a misspelt key is both unknown and missing, a union fails once a member: name the useful one
    problems = sorted(
        error.errors(),
        key=lambda p: (p["type"] != "extra_forbidden", -len(_keys(p["loc"], raw))),
    )
    problem = problems[0]
    rule = _RULES.get(problem["type"])
    message = rule.format(**problem.get("ctx", {})) if rule else problem["msg"]
    got = "" if problem["type"] in _WITHOUT_VALUE else f" (got {problem['input']!r})"
    where = ".".join(_keys(problem["loc"], raw))
    return f"{where}: {message}{got}".replace(": must", " must").removeprefix(": ")


def _keys(loc: tuple[int | str, ...], raw: Any) -> list[str]:
    """The keys of ``raw`` along ``loc``, without the union members pydantic puts between them."""
    keys = []
    for position, part in enumerate(loc):
        inside = isinstance(raw, dict) and part in raw
        is_union_member = str(part).startswith("literal[") or part == ClassWeights.__name__
        if inside or (position == len(loc) - 1 and not is_union_member):
            keys.append(str(part))
        raw = raw[part] if inside else raw
    return keys
