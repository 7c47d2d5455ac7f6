"""``params.yaml`` read once into frozen, typed sections: one a stage, ``model`` and ``runtime``.

Every value has its range and unit here and nowhere else; unknown keys are refused. Each parameter
that a stage reads stands in that stage's ``params`` in ``dvc.yaml`` (a test holds it), except
``runtime``, which can't change a result.
"""

from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
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


Extra = Annotated[str, AfterValidator(_below_extra)]


class IngestParams(_Section):
    """Where the patches come from, and how many may be unreadable."""

    archive: str = Field(
        min_length=1, description="zip or folder in Kaggle's layout, or folder of PCam's h5 files"
    )
    extra: tuple[Extra, ...] = Field(
        default=(), strict=False, description="further archives whose labelled patches join train"
    )
    no_submission: StrictBool = Field(
        default=False,
        description="leave the test images out; allows PCam beside Kaggle's archive, whose test "
        "images PCam labels",
    )
    slides: Extra | None = Field(
        default=None, description="csv id,slide or id,wsi; null: the archive's own"
    )
    h5_sha256: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(
        default_factory=dict,
        description="file name → SHA-256 of h5 files that aren't PCam's published ones",
    )
    max_bad: int = Field(ge=0, description="unreadable images to quarantine before giving up")

    @model_validator(mode="after")
    def _archive_is_not_extra(self) -> "IngestParams":
        if len({self.archive, *self.extra}) != 1 + len(self.extra):
            raise ValueError("archive and extra must name different archives, each once")
        return self


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

    backbone: Literal["resnet50"]
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
    pooling: Literal["avg", "avg_max"]
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


Schedule = Annotated[
    ConstantSchedule | PlateauSchedule | CosineSchedule, Field(discriminator="name")
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
    learning_rate: Number = Field(gt=0, le=10, description="peak rate of Adam")
    weight_decay: Number = Field(ge=0, lt=1, description="decoupled, per step, kernels only")
    views: int = Field(ge=1, le=8, description="flips and rotations each patch is trained on")
    class_weights: Literal["balanced", "none"] | ClassWeights
    schedule: Schedule
    early_stopping: EarlyStopping


class FinetuneParams(TrainParams):
    """The top residual blocks as well."""

    depth: int = Field(ge=0, le=16, description="residual blocks unfrozen, from the top")
    batch_norm: Literal["frozen", "train"] = Field(
        description="frozen: stored statistics; train: the batch's, in the unfrozen blocks"
    )


class OperatingPointRule(_Section):
    """Which threshold on the probability is chosen on val."""

    min_sensitivity: Number = Field(gt=0, lt=1, description="the highest threshold that reaches it")


class EvaluateParams(_Section):
    """Metrics, intervals and operating point."""

    seed: Seed
    n_resamples: int = Field(ge=100, le=100_000, description="bootstrap resamples of the groups")
    confidence: Number = Field(gt=0.5, lt=1, description="of every interval")
    operating_point: OperatingPointRule


class RegisterParams(_Section):
    """Registry entry and promotion."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="registered model")
    margin: Number = Field(
        ge=0, lt=0.5, description="AUROC a challenger may fall below the champion and still replace"
    )


class PredictParams(_Section):
    """The submission."""

    unpromoted: Literal["allow", "refuse"] = Field(
        description="whether a challenger predicts where no champion stands"
    )


class RuntimeParams(_Section):
    """What can't change a result; no stage depends on it."""

    threads: int = Field(ge=0, le=1024, description="TensorFlow threads; 0 = one a core")
    workers: int = Field(ge=0, le=256, description="decoding processes; 0 = one a core")
    verbosity: Literal["debug", "info", "warning"]
    inference_batch_size: int = Field(ge=1, le=65_536, description="patches a forward pass")
    xla: Literal["auto", "on", "off"] = Field(description="compile the training step with XLA")
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
    runtime: RuntimeParams

    def sections(self, *names: str) -> dict[str, Any]:
        """The named sections as plain nested values, for a run's record."""
        return {name: getattr(self, name).model_dump() for name in names}


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
        raise ParamsError(f"{path.name}: not valid YAML: {error}") from error
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
    return f"{'.'.join(_keys(problem['loc'], raw))}: {message}{got}".replace(": must", " must")


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
