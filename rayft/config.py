"""The YAML file as typed, frozen models; the one place where defaults live.

Imports neither torch nor ray, so that `rayft --help` and a typo's error are instant.
"""

import re
from typing import Annotated, Any, Literal, Self, cast, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from rayft.config_data import Columns, DataConfig, Source
from rayft.config_faults import FaultList, must_be, shown
from rayft.config_space import (
    MODEL,
    SOME_STRATEGIES_ONLY,
    STRATEGIES,
    STRATEGY_HYPERPARAMETERS,
    Categorical,
    Domain,
    Faults,
    Hyperparameters,
    Range,
    StrategyName,
    StrictModel,
    Value,
    as_list,
    condition_faults,
    is_number,
    parse_space,
    start_faults,
    strategy_faults,
)
from rayft.config_tasks import (
    COSTS,
    LATENCY,
    LOWER_IS_BETTER,
    TASK_RULES,
    MetricName,
    ObjectiveName,
    TaskName,
    TaskRules,
    task_faults,
)

__all__ = [
    "MODEL",
    "NO_CREDENTIALS",
    "SOME_STRATEGIES_ONLY",
    "STRATEGIES",
    "STRATEGY_HYPERPARAMETERS",
    "Categorical",
    "ClusterConfig",
    "Columns",
    "DataConfig",
    "Domain",
    "EarlyStoppingConfig",
    "FinalConfig",
    "Hyperparameters",
    "LoggerName",
    "MetricName",
    "Mode",
    "ObjectiveName",
    "Precision",
    "Range",
    "SearchConfig",
    "Source",
    "StrategyName",
    "StrictModel",
    "SweepConfig",
    "TaskName",
    "TrainingConfig",
    "Value",
    "as_list",
    "holds_credentials",
]

Precision = Literal["auto", "fp32", "bf16"]
Mode = Literal["min", "max"]
LoggerName = Literal["mlflow", "wandb"]

NO_CREDENTIALS = "must hold no credentials; the environment of the store's own tools may"


MOST_OBJECTIVES = 3


def _is_models(value: Any) -> bool:
    models = as_list(value)
    return models != [] and all(isinstance(model, str) and model for model in models) and len({*models}) == len(models)


def _is_loggers(value: Any) -> bool:
    names = get_args(LoggerName)
    return isinstance(value, list) and all(name in names and value.count(name) == 1 for name in value)


def _is_objectives(value: Any) -> bool:
    names = as_list(value)
    metrics = get_args(MetricName)
    is_known = names != [] and names[0] in metrics and all(name in (*metrics, *COSTS) for name in names)
    return value is None or (is_known and len({*names}) == len(names) <= MOST_OBJECTIVES)


class TrainingConfig(Hyperparameters):
    """The fixed hyperparameters, and what holds for every trial."""

    epochs: int = Field(4, ge=1)
    """The longest that a trial may train, and the learning rate schedule's horizon."""
    precision: Precision = "auto"
    """bf16 computes under autocast; auto does so where the processor gains from it."""
    cache: Annotated[
        Literal["auto", "off"], BeforeValidator(lambda raw: "off" if raw is False else raw)  # as YAML reads off
    ] = "auto"
    """auto keeps what frozen layers give on each node's disk, where reading it is faster than computing it."""
    cache_gb: float = Field(20.0, gt=0)
    """The most that the cache takes of a node's disk; what was used least recently makes room."""
    compile: bool = False
    """Whether the layers that train go through torch.compile, which takes a C++ compiler and a minute."""
    histograms: bool = False
    """Whether TensorBoard gets the distribution of each tensor that trains, and of its gradient, after each epoch."""


def parse_duration(raw: Any) -> Any:
    """Seconds from `90`, `90s`, `30m`, `2h`, `1d` or a sum such as `1h30m`."""
    if not isinstance(raw, str):
        return raw
    text = raw.replace(" ", "")
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"must be a duration such as 90s, 30m or 1h30m, but got {shown(raw)}")
    return sum(float(number) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[unit] for number, unit in parts)


class SearchConfig(StrictModel):
    """What is searched for, how long, and by which sampler."""

    metric: Annotated[
        MetricName | list[ObjectiveName] | None,
        must_be(
            f"one of {', '.join(get_args(MetricName))}; or a list of two or three that starts with one of these and "
            f"may go on with {' and '.join(COSTS)}",
            _is_objectives,
        ),
    ] = None
    """What to search for, the task's own if not given; of a list, the first is what the winner is chosen by."""
    mode: Mode | None = None
    """Follows from the metric if not given, and always where there are several."""
    trials: int = Field(16, ge=1)
    """How many; `rayft resume --trials` adds more."""
    time_limit: Annotated[float | None, BeforeValidator(parse_duration)] = Field(None, gt=0)
    """Seconds, or 90s, 30m, 1h30m, from the command's start to the exported winner, as far as can be foreseen."""
    core_hours: float | None = Field(None, gt=0)
    """Hours of all CPU cores that the workers hold, together."""
    gpu_hours: float | None = Field(None, gt=0)
    """Hours of all GPUs that the workers hold, together; a shared GPU counts by its share."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Of what is drawn, held out, shuffled and initialised."""
    sampler: Literal["tpe", "random", "gp", "qmc"] = "tpe"
    """Optuna's that proposes configurations."""
    start_with: list[dict[str, Value]] = Field(default_factory=list)
    """Configurations to try first; what one leaves out is sampled."""
    study: str | None = None
    """URL of a database for the study, such as postgresql://HOST/NAME; a file in the run folder without it."""

    @field_validator("study")
    @classmethod
    def _holds_no_password(cls, url: str | None) -> str | None:
        # It would lie in the run folder for all to read. What SQLAlchemy takes for one may hold a slash.
        if url is not None and (
            re.search(r"://[^:/]*:[^@]*@", url) or re.search(r"[?&]\w*(password|passwd)=", url, re.I)
        ):
            raise ValueError("must hold no password; the database's own environment variables or password file may")
        return url


class EarlyStoppingConfig(StrictModel):
    """ASHA on epochs (Li et al. 2020)."""

    grace_epochs: int = Field(1, ge=1)
    """Every trial trains at least this long."""
    reduction_factor: int = Field(3, ge=2)
    """One in this many goes on at each rung."""


class FinalConfig(StrictModel):
    """The last stage: the best configurations and the untuned default trained again, and the winner by the mean."""

    top: int = Field(2, ge=1)
    """How many configurations."""
    seeds: int = Field(3, ge=2)
    """How often each, with seeds that the search didn't have."""


def _is_final(value: Any) -> bool:
    return value in ("auto", "off", None, False) or isinstance(value, dict | FinalConfig)


def _is_gpu_share(value: Any) -> bool:
    return value == "auto" or (is_number(value) and value >= 0 and (value <= 1 or value == int(value)))


class ClusterConfig(StrictModel):
    """How trials are spread over the cluster."""

    concurrent_trials: Annotated[
        int | Literal["auto"],
        must_be("an integer of at least 1, or auto", lambda v: v == "auto" or (type(v) is int and v >= 1)),
    ] = "auto"
    """How many trials run side by side; auto takes what the cluster has room for."""
    workers_per_trial: int = Field(1, ge=1)
    """Processes that train one trial together, on its share of each batch."""
    cpus_per_worker: int = Field(1, ge=1)
    """Cores, and threads."""
    gpus_per_worker: Annotated[
        float | Literal["auto"], must_be("a fraction of one GPU, a whole number, or auto", _is_gpu_share)
    ] = "auto"
    """Fractions share a GPU; auto takes one GPU per worker where the cluster has any."""
    max_failures: int = Field(3, ge=0)
    """How often one trial may be started again after a worker or node was lost."""
    stall_timeout: Annotated[float, BeforeValidator(parse_duration)] = Field(1800.0, ge=1)
    """Seconds, or 90s, 30m, 1h30m: a trial whose worker computes no batch for so long fails, with stacks in the log."""


class SweepConfig(StrictModel):
    """A whole sweep file."""

    model: Annotated[str | list[str], must_be("a model as text, or a list of different ones to search", _is_models)]
    """Hub id or local folder; or a list of them, of which each trial draws one."""
    task: TaskName = "text-classification"
    """What the model is for."""
    data: DataConfig
    training: TrainingConfig = TrainingConfig()
    search_space: dict[str, Domain] = Field(default_factory=dict)
    """Hyperparameters and what each may be."""
    search: SearchConfig = SearchConfig()
    early_stopping: EarlyStoppingConfig | None = EarlyStoppingConfig()
    """null lets every trial train to its end."""
    final: Annotated[
        FinalConfig | Literal["auto"] | None,
        BeforeValidator(lambda raw: None if raw in ("off", False) else raw),
        must_be("auto, off or a mapping of top and seeds", _is_final),
    ] = "auto"
    """auto trains again where that takes at most a quarter of the search's own time."""
    cluster: ClusterConfig = ClusterConfig()
    storage: str = Field("runs", min_length=1)
    """A folder, or an address such as s3://BUCKET/PREFIX; credentials and endpoint come from the environment."""
    logging: Annotated[list[LoggerName], must_be("a list of mlflow, wandb or both, each once", _is_loggers)] = Field(
        default_factory=list
    )
    """Where each trial also becomes a run; server, project and keys come from the environment."""

    @property
    def models(self) -> list[str]:
        """Every model that a trial may fine-tune."""
        return as_list(self.model)

    @property
    def space(self) -> dict[str, Domain]:
        """All that is drawn for a trial: the search space, and the model if there are several."""
        models: dict[str, Domain] = {MODEL: Categorical(choices=list(self.models))} if len(self.models) > 1 else {}
        return models | self.search_space

    def encoded_folder(self, model: str) -> str:
        """Where a run folder has the rows as this model reads them."""
        return "encoded" if len(self.models) == 1 else f"encoded/{self.models.index(model)}"

    @property
    def rules(self) -> TaskRules:
        """What the task reads."""
        return TASK_RULES[self.task]

    @property
    def objectives(self) -> tuple[ObjectiveName, ...]:
        """All that is searched for; of several, each trial that no other one beats in all is as good as any."""
        return tuple(as_list(self.search.metric or self.rules.default_metric))

    @property
    def modes(self) -> tuple[Mode, ...]:
        """For each objective, whether less or more of it is better."""
        if self.search.mode is not None:
            return (self.search.mode,)
        return tuple("min" if name in LOWER_IS_BETTER else "max" for name in self.objectives)

    @property
    def metric(self) -> MetricName:
        """What is searched for, and of several objectives what the winner is chosen by."""
        return cast("MetricName", self.objectives[0])

    @property
    def mode(self) -> Mode:
        """Whether less or more of it is better."""
        return self.modes[0]

    @property
    def strategies(self) -> list[StrategyName]:
        """Every strategy that a trial may have."""
        domain = self.search_space.get("strategy")
        if domain is None:
            return [self.training.strategy]
        assert isinstance(domain, Categorical)
        return [name for name in STRATEGIES if name in domain.choices]

    @property
    def notes(self) -> list[str]:
        """What is allowed and yet may not be meant."""
        notes = []
        if self.training.compile and "dropout" in self.search_space:
            notes.append(
                "training.compile compiles anew, for some 10 s per worker, for each value of search_space.dropout"
            )
        if LATENCY in self.objectives and len(self.models) == 1:
            notes.append(f"search.metric {LATENCY} is the same for every trial: it differs only between models")
        return notes

    @field_validator("storage")
    @classmethod
    def _holds_no_credentials(cls, storage: str) -> str:
        if holds_credentials(storage):  # all who see the run, or its job on a cluster, could read them
            raise ValueError(NO_CREDENTIALS)
        return storage

    @field_validator("search_space", mode="before")
    @classmethod
    def _parse_space(cls, raw: Any) -> dict[str, Domain]:
        if not isinstance(raw, dict):
            raise ValueError(f"must be a mapping of hyperparameters to what they may be, but got {shown(raw)}")
        space, faults = parse_space(raw)
        if faults:
            raise FaultList(faults)
        return space

    @model_validator(mode="after")
    def _space_fits(self) -> Self:
        faults: Faults = [
            *condition_faults(self.space),
            *start_faults(self.space, self.search.start_with),
        ]
        for name in self.search_space:
            if name in self.training.model_fields_set:
                rule = "given under training and under search_space; fix it or search it, not both"
                faults.append((f"search_space.{name}", rule))
        if self.early_stopping and self.early_stopping.grace_epochs > self.training.epochs:
            rule = f"must be <= training.epochs {self.training.epochs}, but got {self.early_stopping.grace_epochs}"
            faults.append(("early_stopping.grace_epochs", rule))
        faults += strategy_faults(self.search_space, self.training, self.strategies)
        faults += task_faults(
            self.task,
            {
                "training": self.training.model_fields_set,
                "search_space": self.search_space.keys(),
                "data": self.data.model_fields_set,
                "data.columns": self.data.columns.model_fields_set,
            },
            self.objectives,
            self.strategies,
        )
        if (
            self.data.unlabeled is not None
            and "adversarial" not in self.strategies
            and "unlabeled" in self.rules.data_keys
        ):
            faults.append(("data.unlabeled", "no strategy of this sweep reads it; adversarial would"))
        if self.search.mode is not None and len(self.objectives) > 1:
            faults.append(("search.mode", "must not be given with several metrics, each of which has its own"))
        if faults:
            raise FaultList(faults)
        return self


def holds_credentials(address: str) -> bool:
    """Whether a storage address has some in it; a secret may hold a slash, and what is after a port is none."""
    return re.match(r"[\w+.-]+://([^/]*|[^/:]*:(?!\d+/)[^@]*)@", address) is not None
