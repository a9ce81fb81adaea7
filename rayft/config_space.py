"""The hyperparameters, the domains that they are searched in, and the rules that hold between them."""

import math
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rayft.config_faults import must_be, rule_of, shown, unknown_key_rule

StrategyName = Literal["full", "partial", "layerwise", "adversarial", "lora"]
STRATEGIES: tuple[StrategyName, ...] = get_args(StrategyName)

FREEZING: tuple[str, str] = ("freeze_depth", "freeze_fraction")
"""Two ways to say how much is frozen, of which a sweep takes one."""
MODEL = "model"
"""What a model is called among a trial's values, where several are searched."""

STRATEGY_HYPERPARAMETERS: dict[StrategyName, frozenset[str]] = {
    "full": frozenset({"l2_sp"}),
    "partial": frozenset({*FREEZING, "l2_sp"}),
    "layerwise": frozenset({"layer_decay", *FREEZING, "l2_sp"}),
    "adversarial": frozenset({"adversarial_weight", "discriminator_learning_rate", *FREEZING, "l2_sp"}),
    "lora": frozenset({"lora_rank", "lora_alpha", "lora_dropout"}),
}
"""What only some strategies read. A searched one is sampled only in trials whose strategy reads it."""

SOME_STRATEGIES_ONLY: frozenset[str] = frozenset().union(*STRATEGY_HYPERPARAMETERS.values())

Faults = list[tuple[str, str]]
"""(dotted key, rule) pairs."""


def as_list(value: Any) -> list[Any]:
    """The value itself if it is a list, else a list of it."""
    return value if isinstance(value, list) else [value]


def is_number(value: Any) -> bool:
    """Whether this is a finite number, which YAML's yes and no are not."""
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | bool) or is_number(value)


Value = Annotated[str | int | float | bool | None, must_be("text, a number, true, false or null", _is_scalar)]
Number = Annotated[int | float, must_be("a number", is_number)]
Wanted = Annotated[
    Value | list[Value], must_be("a value or a list of values", lambda v: v != [] and all(map(_is_scalar, as_list(v))))
]
When = dict[str, Wanted]


class StrictModel(BaseModel):
    """Frozen, closed to keys that it doesn't know, and without conversions: '8', 8.0 and true are not the integer 8."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class Hyperparameters(StrictModel):
    """What one trial trains with: each value is fixed under `training` or drawn from `search_space`."""

    strategy: StrategyName = "full"
    """What trains, and how."""
    learning_rate: float = Field(5e-5, gt=0)
    """The highest; it rises over the warm-up and falls to 0 in a line."""
    batch_size: int = Field(16, ge=1)
    """Rows per optimiser step over all workers, whatever their number."""
    freeze_depth: int = Field(0, ge=0)
    """k freezes the embeddings and the first k blocks; 0 freezes nothing."""
    freeze_fraction: float | None = Field(None, ge=0, le=1)
    """In place of freeze_depth: this share of the model's blocks, which says the same of models of any depth."""
    layer_decay: float = Field(0.8, gt=0, le=1)
    """The learning rate's factor from each block to the one below it."""
    adversarial_weight: float = Field(0.1, ge=0)
    """Weight of the loss of fooling the discriminator."""
    discriminator_learning_rate: float = Field(1e-3, gt=0)
    """Of the discriminator that the adversarial strategy trains against."""
    lora_rank: int = Field(8, ge=1)
    """Of the adapters of the lora strategy."""
    lora_alpha: float = Field(16.0, gt=0)
    """What the adapters add is scaled by this over the rank."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Of what goes into the adapters."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled decay, not on biases and norms."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Overrides every dropout of the model; without it the model's own stay."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """The share of each target that is spread over all classes."""
    flip: bool = False
    """Half of the training images are mirrored."""
    crop: float = Field(0.0, ge=0, lt=1)
    """Training images are cut to a part of at least 1 minus this of their area, and resized."""
    randaugment: int = Field(0, ge=0, le=30)
    """Training images go through two operations of RandAugment (Cubuk et al. 2020) at this magnitude; 0 is none."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Gradients are clipped to this norm; null clips nothing."""
    l2_sp: float = Field(0.0, ge=0)
    """Weight of the squared distance from the pretrained weights (Xuhong et al. 2018)."""
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    """The share of all steps over which the learning rate rises."""


class Categorical(StrictModel):
    """One of several values."""

    choices: list[Value]
    when: When = {}

    @model_validator(mode="after")
    def _choices_differ(self) -> Self:
        if not self.choices:
            raise ValueError("must have at least one choice")
        repeated = [choice for index, choice in enumerate(self.choices) if choice in self.choices[:index]]
        if repeated:
            raise ValueError(f"must have no choice twice, but has {shown(repeated[0])} twice")
        return self


class Range(StrictModel):
    """A range, both ends included; of integers if the hyperparameter is one."""

    low: Number
    high: Number
    log: bool = False
    step: Number | None = None
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
        return self


Domain = Categorical | Range


def parse_space(raw: dict[Any, Any]) -> tuple[dict[str, Domain], Faults]:
    """Every domain of a search space, and what is wrong with those that can't be read."""
    faults: Faults = []
    space: dict[str, Domain] = {}
    for name, entry in raw.items():
        key = f"search_space.{name}"
        if name not in Hyperparameters.model_fields:
            faults.append((key, unknown_key_rule(str(name), list(Hyperparameters.model_fields))))
            continue
        try:
            domain = parse_domain(entry)
        except ValidationError as error:
            known = list(Categorical.model_fields) if _has_choices(entry) else ["choices", *Range.model_fields]
            faults += [(".".join([key, *map(str, e["loc"])]), rule_of(e, known)) for e in error.errors()]
        except ValueError as error:
            faults.append((key, str(error)))
        else:
            rules = domain_rules(name, domain)
            faults += [(key, rule) for rule in rules]
            space[name] = domain if rules else _as_declared(name, domain)
    return space, faults


def parse_domain(raw: Any) -> Domain:
    """A list of choices, or a mapping with `choices` or `low` and `high`, as a domain."""
    if isinstance(raw, Categorical | Range):
        return raw
    if isinstance(raw, list):
        return Categorical(choices=raw)
    if isinstance(raw, dict):
        return (Categorical if _has_choices(raw) else Range).model_validate(raw)
    raise ValueError(
        f"must be a list of choices or {{low: ..., high: ...}}, but got {shown(raw)}; a fixed value goes under training"
    )


def domain_rules(name: str, domain: Domain) -> list[str]:
    """The rules that a hyperparameter's domain breaks."""
    if isinstance(domain, Categorical):
        values: list[Value] = domain.choices
    elif name == "strategy":
        return [f"must be a list of strategies, available are {', '.join(STRATEGIES)}"]
    else:
        values = [domain.low, domain.high]
    rules = [rule for value in values if (rule := value_rule(name, value))]
    if isinstance(domain, Range) and _is_int(name) and isinstance(domain.step, float):
        rules.append(f"step must be an integer, but got {domain.step}")
    return rules


def value_rule(name: str, value: Any) -> str | None:
    """The rule that this value of a hyperparameter breaks, or None."""
    try:
        Hyperparameters.model_validate({name: value})
    except ValidationError as error:
        return rule_of(error.errors()[0])
    return None


def condition_faults(space: dict[str, Domain]) -> Faults:
    """What is wrong with the `when` of each domain."""
    faults: Faults = []
    for name, domain in space.items():
        if name == "strategy" and domain.when:
            faults.append(("search_space.strategy.when", "strategy can't have a condition; others depend on it"))
            continue
        for parent, wanted in domain.when.items():
            key = f"search_space.{name}.when.{parent}"
            other = space.get(parent)
            if not isinstance(other, Categorical) or parent == name:
                searched = [n for n, d in space.items() if isinstance(d, Categorical) and n != name]
                rule = f"must name another searched list of choices, available are {', '.join(searched) or 'none'}"
                faults.append((key, rule))
                continue
            if other.when and parent != "strategy":
                faults.append((key, f"{parent} has a condition of its own; conditions can't be nested"))
            for value in as_list(wanted):
                if value not in other.choices:
                    faults.append((key, f"{value!r} is not among {parent}'s choices {other.choices}"))
    return faults


def start_faults(space: dict[str, Domain], starts: list[dict[str, Value]]) -> Faults:
    """What is wrong with `search.start_with`."""
    faults: Faults = []
    for index, start in enumerate(starts):
        for name, value in start.items():
            if rule := _start_rule(space, name, value):
                faults.append((f"search.start_with.{index}.{name}", rule))
    return faults


def strategy_faults(space: dict[str, Domain], fixed: Hyperparameters, strategies: list[StrategyName]) -> Faults:
    """Hyperparameters that no strategy of the sweep reads, and one that a strategy needs."""
    faults: Faults = []
    read = frozenset().union(*(STRATEGY_HYPERPARAMETERS[name] for name in strategies))
    for section, keys in (("training", fixed.model_fields_set), ("search_space", set(space))):
        for name in sorted(keys & SOME_STRATEGIES_ONLY - read):
            readers = [s for s in STRATEGIES if name in STRATEGY_HYPERPARAMETERS[s]]
            faults.append((f"{section}.{name}", f"no strategy of this sweep reads it; {', '.join(readers)} would"))
    given = [name for name in FREEZING if name in space or name in fixed.model_fields_set]
    if len(given) == 2:
        section = "search_space" if "freeze_fraction" in space else "training"
        faults.append((f"{section}.freeze_fraction", "freeze_depth says the same in blocks; give one of them"))
    elif "partial" in strategies and not _partial_has_a_depth(space, fixed):
        section = "search_space" if "strategy" in space else "training"
        rule = "strategy partial needs it, or freeze_fraction: give a range above 0, or fix it under training"
        faults.append((f"{section}.freeze_depth", rule))
    return faults


def _has_choices(raw: Any) -> bool:
    return isinstance(raw, list) or "choices" in raw


def _is_int(name: str) -> bool:
    return Hyperparameters.model_fields[name].annotation is int


def _as_declared(name: str, domain: Domain) -> Domain:
    """`{low: 0, high: 1}` of a hyperparameter that isn't an integer has all that lies between."""
    if isinstance(domain, Categorical) or _is_int(name):
        return domain
    step = None if domain.step is None else {"step": float(domain.step)}
    return domain.model_copy(update={"low": float(domain.low), "high": float(domain.high), **(step or {})})


def _start_rule(space: dict[str, Domain], name: str, value: Value) -> str | None:
    domain = space.get(name)
    if domain is None and name not in Hyperparameters.model_fields:
        return unknown_key_rule(name, list(Hyperparameters.model_fields))
    if domain is None:
        return f"is not searched; searched are {', '.join(space) or 'none'}"
    if isinstance(domain, Categorical):
        return None if value in domain.choices else f"must be one of {domain.choices}, but got {shown(value)}"
    if isinstance(value, bool) or not isinstance(value, int | float) or not domain.low <= value <= domain.high:
        return f"must lie in {domain.low} to {domain.high}, but got {shown(value)}"
    if domain.is_int and not isinstance(value, int):
        return f"must be an integer, but got {shown(value)}"
    return None


def _partial_has_a_depth(space: dict[str, Domain], fixed: Hyperparameters) -> bool:
    domain = space.get("freeze_depth") or space.get("freeze_fraction")
    if domain is None:
        return fixed.freeze_depth >= 1 or bool(fixed.freeze_fraction)
    return domain.when.keys() <= {"strategy"} and "partial" in as_list(domain.when.get("strategy", "partial"))
