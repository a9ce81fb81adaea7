"""The YAML file as typed, frozen models; the one place where defaults live.

Imports neither torch nor ray, so that `rayft --help` and a typo's error are instant.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

StrategyName = Literal["full", "partial", "layerwise", "adversarial", "lora"]
MetricName = Literal["loss", "accuracy", "macro_f1", "weighted_f1", "matthews_correlation"]
Mode = Literal["min", "max"]
Value = str | int | float | bool | None

STRATEGIES: tuple[StrategyName, ...] = get_args(StrategyName)
METRICS: tuple[MetricName, ...] = get_args(MetricName)

STRATEGY_HYPERPARAMETERS: dict[StrategyName, frozenset[str]] = {
    "full": frozenset({"l2_sp"}),
    "partial": frozenset({"freeze_depth", "l2_sp"}),
    "layerwise": frozenset({"layer_decay", "freeze_depth", "l2_sp"}),
    "adversarial": frozenset({"adversarial_weight", "discriminator_learning_rate", "freeze_depth", "l2_sp"}),
    "lora": frozenset({"lora_rank", "lora_alpha", "lora_dropout"}),
}
"""What only some strategies read. A searched one is sampled only in trials whose strategy reads it."""

SOME_STRATEGIES_ONLY: frozenset[str] = frozenset().union(*STRATEGY_HYPERPARAMETERS.values())


class StrictModel(BaseModel):
    """Frozen, and closed to keys that it doesn't know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Columns(StrictModel):
    """Which columns hold what."""

    text: str | tuple[str, str] = "text"
    """The text column, or a list of two for pairs."""
    label: str = "label"


Source = str | list[str]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class DataConfig(StrictModel):
    """Where the rows come from and how they become token ids."""

    train: Source
    """A file, a glob, a list of files, a saved dataset folder, or hub:NAME[:CONFIG]."""
    validation: Fraction | Source = 0.15
    """Files, or the fraction of train that is held out, stratified by label and seeded."""
    test: Fraction | Source | None = None
    """Scored once, for the winner only."""
    unlabeled: Source | None = None
    """Rows without labels, which the adversarial strategy uses beside the labelled ones."""
    columns: Columns = Columns()
    max_length: int = Field(128, ge=4)
    """Tokens per row; what is longer is cut."""
    on_bad_row: Literal["error", "drop"] = "error"


class Hyperparameters(StrictModel):
    """What one trial trains with: each value is fixed under `training` or drawn from `search_space`."""

    strategy: StrategyName = "full"
    learning_rate: float = Field(5e-5, gt=0)
    batch_size: int = Field(16, ge=1)
    """Rows per optimiser step over all workers, whatever their number."""
    freeze_depth: int = Field(0, ge=0)
    """k freezes the embeddings and the first k blocks; 0 freezes nothing."""
    layer_decay: float = Field(0.8, gt=0, le=1)
    """The learning rate's factor from each block to the one below it."""
    adversarial_weight: float = Field(0.1, ge=0)
    """Weight of the loss of fooling the discriminator."""
    discriminator_learning_rate: float = Field(1e-3, gt=0)
    lora_rank: int = Field(8, ge=1)
    lora_alpha: float = Field(16.0, gt=0)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled decay, not on biases and norms."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Overrides every dropout of the model; without it the model's own stay."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Gradients are clipped to this norm; null clips nothing."""
    l2_sp: float = Field(0.0, ge=0)
    """Weight of the squared distance from the pretrained weights (Xuhong et al. 2018)."""
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    """The share of all steps over which the learning rate rises."""

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_switch(cls, value: Any) -> Any:
        if isinstance(value, bool):  # YAML's yes and on, which would pass as the number 1
            raise ValueError(f"must not be true or false, but got {value!r}")
        return value


class TrainingConfig(Hyperparameters):
    """The fixed hyperparameters, and what holds for every trial."""

    epochs: int = Field(4, ge=1)
    """The longest that a trial may train, and the learning rate schedule's horizon."""


When = dict[str, Value | list[Value]]


class Categorical(StrictModel):
    """One of several values."""

    choices: list[Value] = Field(min_length=1)
    when: When = {}


class Range(StrictModel):
    """A range, both ends included; of integers if both ends are integers."""

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None
    when: When = {}

    @property
    def is_int(self) -> bool:
        """Whether values are integers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low must be <= high, but got low {self.low} and high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low must be > 0 where log is true, but got {self.low}")
        if self.log and self.step is not None:
            raise ValueError("log and step can't be combined")
        if self.step is not None and self.step <= 0:
            raise ValueError(f"step must be > 0, but got {self.step}")
        if self.is_int and isinstance(self.step, float):
            raise ValueError(f"step must be an integer where low and high are, but got {self.step}")
        return self


Domain = Categorical | Range


def parse_duration(raw: Any) -> Any:
    """Seconds from `90`, `90s`, `30m`, `2h`, `1d` or a sum such as `1h30m`."""
    if not isinstance(raw, str):
        return raw
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", raw)
    if not parts or "".join(number + unit for number, unit in parts) != raw.replace(" ", ""):
        raise ValueError(f"must be a duration such as 90s, 30m or 1h30m, but got {raw!r}")
    return sum(float(number) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[unit] for number, unit in parts)


class SearchConfig(StrictModel):
    """What is searched for, how long, and by which sampler."""

    metric: MetricName = "accuracy"
    mode: Mode | None = None
    """Follows from the metric if not given."""
    trials: int = Field(16, ge=1)
    time_limit: Annotated[float | None, BeforeValidator(parse_duration)] = Field(None, gt=0)
    """Seconds, or 90s, 30m, 1h30m: no epoch is started after it."""
    seed: int = Field(0, ge=0, lt=2**31)
    sampler: Literal["tpe", "random", "gp", "qmc"] = "tpe"
    start_with: list[dict[str, Value]] = []
    """Configurations to try first; what one leaves out is sampled."""
    study: str | None = None
    """URL of a database for the study, such as postgresql://HOST/NAME; a file in the run folder without it."""

    @property
    def direction(self) -> Mode:
        """Whether less or more of the metric is better."""
        return self.mode or ("min" if self.metric == "loss" else "max")


class EarlyStoppingConfig(StrictModel):
    """ASHA on epochs (Li et al. 2020)."""

    grace_epochs: int = Field(1, ge=1)
    """Every trial trains at least this long."""
    reduction_factor: int = Field(3, ge=2)
    """One in this many goes on at each rung."""


class ClusterConfig(StrictModel):
    """How trials are spread over the cluster."""

    concurrent_trials: int | Literal["auto"] = "auto"
    workers_per_trial: int = Field(1, ge=1)
    cpus_per_worker: int = Field(1, ge=1)
    gpus_per_worker: float | Literal["auto"] = "auto"
    """Fractions share a GPU; auto takes one GPU per worker where the cluster has any."""
    max_failures: int = Field(3, ge=0)
    """How often one trial may be started again after a worker or node was lost."""

    @model_validator(mode="after")
    def _counts_are_possible(self) -> Self:
        if self.concurrent_trials != "auto" and self.concurrent_trials < 1:
            raise ValueError(f"concurrent_trials must be >= 1 or auto, but got {self.concurrent_trials}")
        gpus = self.gpus_per_worker
        if gpus != "auto" and (gpus < 0 or (gpus > 1 and gpus != int(gpus))):
            raise ValueError(f"gpus_per_worker must be a fraction of one GPU, a whole number or auto, but got {gpus}")
        return self


class SweepConfig(StrictModel):
    """A whole sweep file."""

    model: str
    """Hub id or local folder."""
    task: Literal["text-classification"] = "text-classification"
    data: DataConfig
    training: TrainingConfig = TrainingConfig()
    search_space: dict[str, Domain] = {}
    search: SearchConfig = SearchConfig()
    early_stopping: EarlyStoppingConfig | None = EarlyStoppingConfig()
    """null lets every trial train to its end."""
    cluster: ClusterConfig = ClusterConfig()
    storage: str = "runs"

    @property
    def strategies(self) -> list[StrategyName]:
        """Every strategy that a trial may have."""
        domain = self.search_space.get("strategy")
        if domain is None:
            return [self.training.strategy]
        assert isinstance(domain, Categorical)
        return [name for name in STRATEGIES if name in domain.choices]

    @field_validator("search_space", mode="before")
    @classmethod
    def _parse_space(cls, raw: Any) -> dict[str, Domain]:
        if not isinstance(raw, dict):
            raise ValueError(f"must be a mapping of hyperparameters to what they may be, but got {raw!r}")
        faults: list[tuple[str, str]] = []
        space = {}
        for name, entry in raw.items():
            key = f"search_space.{name}"
            if name not in Hyperparameters.model_fields:
                faults.append((key, unknown_key_rule(str(name), list(Hyperparameters.model_fields))))
                continue
            try:
                space[name] = parse_domain(entry)
            except ValidationError as error:
                faults += [(".".join([key, *map(str, e["loc"])]), rule_of(e)) for e in error.errors()]
            except ValueError as error:
                faults.append((key, str(error)))
            else:
                faults += [(key, rule) for rule in domain_rules(name, space[name])]
        if faults:
            raise FaultList(faults)
        return space

    @model_validator(mode="after")
    def _space_fits(self) -> Self:
        faults = [*self._condition_faults(), *self._start_faults()]
        for name in self.search_space:
            if name in self.training.model_fields_set:
                rule = "given under training and under search_space; fix it or search it, not both"
                faults.append((f"search_space.{name}", rule))
        if self.early_stopping and self.early_stopping.grace_epochs > self.training.epochs:
            rule = f"must be <= training.epochs {self.training.epochs}, but got {self.early_stopping.grace_epochs}"
            faults.append(("early_stopping.grace_epochs", rule))
        if not faults:  # the strategies are known to be valid from here on
            faults = self._strategy_faults()
        if faults:
            raise FaultList(faults)
        return self

    def _condition_faults(self) -> list[tuple[str, str]]:
        faults = []
        for name, domain in self.search_space.items():
            for parent, wanted in domain.when.items():
                key = f"search_space.{name}.when.{parent}"
                other = self.search_space.get(parent)
                if not isinstance(other, Categorical):
                    searched = [n for n, d in self.search_space.items() if isinstance(d, Categorical) and n != name]
                    faults.append(
                        (key, f"must name a searched list of choices, available are {', '.join(searched) or 'none'}")
                    )
                    continue
                if other.when:
                    faults.append((key, f"{parent} has a condition of its own; conditions can't be nested"))
                for value in as_list(wanted):
                    if value not in other.choices:
                        faults.append((key, f"{value!r} is not among {parent}'s choices {other.choices}"))
        return faults

    def _start_faults(self) -> list[tuple[str, str]]:
        faults = []
        for index, start in enumerate(self.search.start_with):
            for name, value in start.items():
                key = f"search.start_with.{index}.{name}"
                domain = self.search_space.get(name)
                if name not in Hyperparameters.model_fields:
                    faults.append((key, unknown_key_rule(name, list(Hyperparameters.model_fields))))
                elif domain is None:
                    faults.append((key, f"is not searched; searched are {', '.join(self.search_space) or 'none'}"))
                elif isinstance(domain, Categorical):
                    if value not in domain.choices:
                        faults.append((key, f"must be one of {domain.choices}, but got {value!r}"))
                elif (
                    isinstance(value, bool)
                    or not isinstance(value, int | float)
                    or not domain.low <= value <= domain.high
                ):
                    faults.append((key, f"must lie in {domain.low} to {domain.high}, but got {value!r}"))
                elif domain.is_int and not isinstance(value, int):
                    faults.append((key, f"must be an integer, but got {value!r}"))
        return faults

    def _strategy_faults(self) -> list[tuple[str, str]]:
        faults = []
        read = frozenset().union(*(STRATEGY_HYPERPARAMETERS[name] for name in self.strategies))
        for name in SOME_STRATEGIES_ONLY - read:
            for section, keys in (
                ("training", self.training.model_fields_set),
                ("search_space", set(self.search_space)),
            ):
                if name in keys:
                    readers = [s for s in STRATEGIES if name in STRATEGY_HYPERPARAMETERS[s]]
                    faults.append(
                        (f"{section}.{name}", f"no strategy of this sweep reads it; {', '.join(readers)} would")
                    )
        if "partial" in self.strategies:
            domain = self.search_space.get("freeze_depth")
            applies = domain is None or "partial" in as_list(domain.when.get("strategy", "partial"))
            if (domain is None and self.training.freeze_depth < 1) or not applies:
                faults.append(
                    (
                        "search_space.freeze_depth",
                        "strategy partial needs it: give a range of at least 1, or fix it under training",
                    )
                )
        if self.data.unlabeled is not None and "adversarial" not in self.strategies:
            faults.append(("data.unlabeled", "no strategy of this sweep reads it; adversarial would"))
        return faults


class FaultList(ValueError):
    """Several faults from one validator, as (key, rule) pairs."""

    def __init__(self, faults: list[tuple[str, str]]) -> None:
        self.faults = faults
        super().__init__("; ".join(f"{key}: {rule}" for key, rule in faults))


def with_absolute_paths(config: SweepConfig) -> SweepConfig:
    """The same sweep from whichever folder, and in whichever process, it is read."""
    sources = {name: _absolute(getattr(config.data, name)) for name in ("train", "validation", "test", "unlabeled")}
    data = config.data.model_copy(update={name: value for name, value in sources.items() if value is not None})
    model = str(Path(config.model).absolute()) if Path(config.model).is_dir() else config.model
    return config.model_copy(update={"model": model, "data": data})


def _absolute(source: Any) -> Any:
    if isinstance(source, list):
        return [_absolute(item) for item in source]
    return str(Path(source).absolute()) if isinstance(source, str) and not source.startswith("hub:") else source


def as_list(value: Any) -> list[Any]:
    """The value itself if it is a list, else a list of it."""
    return value if isinstance(value, list) else [value]


def parse_domain(raw: Any) -> Domain:
    """A list of choices, or a mapping with `choices` or `low` and `high`, as a domain."""
    if isinstance(raw, Categorical | Range):
        return raw
    if isinstance(raw, list):
        return Categorical(choices=raw)
    if isinstance(raw, dict):
        return Categorical(**raw) if "choices" in raw else Range(**raw)
    raise ValueError(
        f"must be a list of choices or {{low: ..., high: ...}}, but got {raw!r}; a fixed value goes under training"
    )


def domain_rules(name: str, domain: Domain) -> list[str]:
    """The rules that values in a hyperparameter's domain would break."""
    if isinstance(domain, Categorical):
        values = domain.choices
    elif name == "strategy":
        return [f"must be a list of strategies, available are {', '.join(STRATEGIES)}"]
    else:
        values = [domain.low, domain.high]
    return [rule for value in values if (rule := value_rule(name, value))]


def value_rule(name: str, value: Any) -> str | None:
    """The rule that this value of a hyperparameter breaks, or None."""
    try:
        Hyperparameters.model_validate({name: value})
    except ValidationError as error:
        return rule_of(error.errors()[0])
    return None


def unknown_key_rule(name: str, known: list[str]) -> str:
    """An unknown key's error text, with the nearest known key."""
    import difflib

    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"unknown key; {hint}known are {', '.join(known)}"


def rule_of(error: Any) -> str:
    """A pydantic error as `must be ..., but got ...`."""
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    symbols = {"greater_than": ">", "greater_than_equal": ">=", "less_than": "<", "less_than_equal": "<="}
    limits = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}
    if kind in symbols:
        return f"must be {symbols[kind]} {context[limits[kind]]}, but got {value!r}"
    if kind == "literal_error":
        return f"must be one of {context['expected']}, but got {value!r}"
    if kind == "missing":
        return "is missing"
    if kind == "value_error":
        return str(context["error"])
    for prefix, noun in {
        "int_": "an integer",
        "float_": "a number",
        "string_": "text",
        "bool_": "true or false",
        "dict_": "a mapping",
    }.items():
        if kind.startswith(prefix):
            return f"must be {noun}, but got {value!r}"
    return f"{error['msg'][0].lower()}{error['msg'][1:]}, but got {value!r}"
