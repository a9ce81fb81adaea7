import random
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from rayft.config import STRATEGIES, STRATEGY_HYPERPARAMETERS, Columns, SweepConfig
from rayft.config_paths import with_absolute_paths
from rayft.config_tasks import MetricName
from rayft.errors import SWEEP_FILE, ConfigError, Fault
from rayft.sweep_file import MAX_BYTES, dump_sweep, load_sweep, locate

METRICS = get_args(MetricName)

SEARCH_SPACES = Path(__file__).parent.parent / "search_spaces"
FILE = Path("sweep.yaml")
MINIMAL = "model: m\ndata: {train: t.csv}\n"

DESIGN = """\
model: bert-base-uncased            # Hub id or local folder
task: text-classification
data:
  train: reviews/train.jsonl        # file, glob, list of files, saved dataset folder, or hub:NAME[:CONFIG]
  validation: 0.15                  # a file, or a fraction held out of train (stratified, seeded)
  test: reviews/test.jsonl          # optional
  columns: {text: text, label: label}    # text: [premise, hypothesis] for pairs
  max_length: 128
  on_bad_row: error                 # or drop
training:
  epochs: 4                         # the longest that a trial may train
  weight_decay: 0.01
search_space:
  strategy: [full, partial, layerwise]
  learning_rate: {low: 1.0e-5, high: 5.0e-4, log: true}
  batch_size: [16, 32]
  freeze_depth: {low: 1, high: 6, when: {strategy: partial}}
  layer_decay: {low: 0.6, high: 0.95, when: {strategy: layerwise}}
search:
  metric: accuracy                  # mode follows from the metric, or mode: min | max
  trials: 16
  time_limit: 30m
  seed: 0
  start_with: [{strategy: full, learning_rate: 5.0e-5, batch_size: 16}]
early_stopping: {grace_epochs: 1, reduction_factor: 3}
cluster:
  concurrent_trials: auto           # from what the cluster has
  workers_per_trial: 1
  cpus_per_worker: 1
  gpus_per_worker: auto             # fractions allowed
  max_failures: 3
storage: runs                       # or s3://bucket/prefix
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(content: str | bytes, *overrides: str) -> SweepConfig:
    FILE.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_sweep(FILE, list(overrides))


def faults(content: str | bytes, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(content, *overrides)
    return [str(fault) for fault in caught.value.faults]


def test_the_design_s_sweep() -> None:
    config = load(DESIGN)
    assert (config.model, config.data.validation, config.search.time_limit) == ("bert-base-uncased", 0.15, 1800)
    assert config.strategies == ["full", "partial", "layerwise"]
    assert config.search_space["freeze_depth"].when == {"strategy": "partial"}
    assert config.search.start_with == [{"strategy": "full", "learning_rate": 5e-5, "batch_size": 16}]


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("columns: {text: text, label: label}", "columns: {text: [premise, hypothesis], label: label}"),
        ("train: reviews/train.jsonl", "train: [reviews/a.csv, reviews/b.csv]"),
        ("train: reviews/train.jsonl", "train: reviews/*.csv"),
        ("train: reviews/train.jsonl", "train: hub:imdb"),
        ("train: reviews/train.jsonl", "train: hub:glue:sst2"),
        ("validation: 0.15", "validation: reviews/validation.jsonl"),
        ("  test: reviews/test.jsonl", "  test: 0.1"),
        ("  test: reviews/test.jsonl", ""),
        ("on_bad_row: error", "on_bad_row: drop"),
        ("metric: accuracy", "metric: loss\n  mode: min"),
        ("gpus_per_worker: auto", "gpus_per_worker: 0.5"),
        ("concurrent_trials: auto", "concurrent_trials: 2"),
        ("storage: runs", "storage: s3://bucket/prefix"),
        ("early_stopping: {grace_epochs: 1, reduction_factor: 3}", "early_stopping: null"),
    ],
)
def test_what_the_design_s_comments_say_may_stand_there(line: str, instead: str) -> None:
    assert DESIGN.count(line) == 1
    assert load(DESIGN.replace(line, instead)) != load(DESIGN)


@pytest.mark.parametrize(
    "path", sorted(SEARCH_SPACES.rglob("*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_every_sweep_that_is_shipped_loads(path: Path) -> None:
    config = load_sweep(path)
    assert config.search_space, "a sweep without anything to search"
    assert load(dump_sweep(config)) == config


def test_there_are_shipped_sweeps() -> None:
    assert (SEARCH_SPACES / "quickstart.yaml").exists()


# Plain values


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-5", 1e-5), ("1E-5", 1e-5), ("2.5e-5", 2.5e-5), ("1.e-3", 1e-3), (".5e-1", 0.05), ("+1e-5", 1e-5), ("3", 3.0)],
)
def test_numbers(text: str, value: float) -> None:
    assert load(f"{MINIMAL}training: {{learning_rate: {text}}}\n").training.learning_rate == value
    assert load(MINIMAL, f"training.learning_rate={text}").training.learning_rate == value


@pytest.mark.parametrize(
    "text", ["2020-01-01", "2020-99-01", "010", "0x10", "1:30", "1e", "e5", "=", "v1.0", "1_000.5"]
)
def test_what_looks_like_a_number_to_some_is_text(text: str) -> None:
    assert load(f"data: {{train: t.csv}}\nmodel: {text}\n").model == text


@pytest.mark.parametrize("text", ["1e5", "5", "1_000", "yes", "null", "~", "1.5"])
def test_text_that_looks_like_another_value_must_be_quoted(text: str) -> None:
    (fault,) = faults(f"data: {{train: t.csv}}\nmodel: {text}\n")
    assert fault.startswith(
        "sweep.yaml:2: model: must be a model as text, or a list of different ones to search, but got "
    )
    assert load(f"data: {{train: t.csv}}\nmodel: '{text}'\n").model == text


def test_byte_order_mark_and_windows_line_ends() -> None:
    assert load("\ufeff" + MINIMAL.replace("\n", "\r\n")).model == "m"


# Files that can't be read


def test_no_such_file() -> None:
    with pytest.raises(ConfigError) as caught:
        load_sweep(FILE)
    assert str(caught.value) == "sweep.yaml: no such file"


def test_a_folder() -> None:
    FILE.mkdir()
    with pytest.raises(ConfigError, match=r"^sweep.yaml: is a folder; a sweep file was expected$"):
        load_sweep(FILE)


def test_a_path_through_a_file() -> None:
    FILE.write_text(MINIMAL)
    with pytest.raises(ConfigError, match=r"^sweep.yaml/sweep.yaml: can't be read: Not a directory$"):
        load_sweep(FILE / "sweep.yaml")


def test_a_file_too_large() -> None:
    assert load(MINIMAL + "#" * (MAX_BYTES - len(MINIMAL))).model == "m"
    assert faults(MINIMAL + "#" * (MAX_BYTES + 1 - len(MINIMAL))) == [
        f"sweep.yaml: is {MAX_BYTES + 1} bytes; a sweep file has at most {MAX_BYTES}"
    ]


NOT_A_MAPPING = "sweep.yaml: must be a mapping of keys such as model and data, but is "


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"model: caf\xe9\n", "sweep.yaml: must be UTF-8 text, but byte 10 is not"),
        ("", f"{NOT_A_MAPPING}empty"),
        ("# nothing\n", f"{NOT_A_MAPPING}empty"),
        ("~\n", f"{NOT_A_MAPPING}empty"),
        ("- model: m\n", f"{NOT_A_MAPPING}a list"),
        ("bert\n", f"{NOT_A_MAPPING}'bert'"),
        ("model: m\ndata:\n\ttrain: t\n", "sweep.yaml:3: is not valid YAML: found character '\\t' that cannot start"),
        ("model: m\ndata: {train: t\nsearch: {}\n", "sweep.yaml:3: is not valid YAML: expected ',' or '}', but got"),
        ("model: 'm\n", "sweep.yaml:2: is not valid YAML: found unexpected end of stream"),
        ("model: m\n---\nmodel: n\n", "sweep.yaml:2: is not valid YAML: but found another document"),
        ("model: m\0\n", "sweep.yaml: is not valid YAML: unacceptable character #x0000"),
        ("model: m\nmodel: n\n", "sweep.yaml:2: model: given twice, first on line 1"),
        ("model: m\n1: x\n", "sweep.yaml:2: keys must be text, but got '1'"),
        ("model: m\nsearch: {on: x}\n", "sweep.yaml:2: search: keys must be text, but got 'on'"),
        ("model: m\n? [a, b]\n: x\n", "sweep.yaml:2: keys must be text, but got a list or mapping"),
        ("model: m\nsearch: {trials: " + "9" * 5000 + "}\n", "sweep.yaml: is not valid YAML: Exceeds the limit"),
        ("[" * 20_000, "sweep.yaml: is nested too deeply"),
        ("model: &m x\ndata:\n  train: *m\n", "sweep.yaml:3: is not valid YAML: aliases can't be used here"),
        ("model: &m [*m]\n", "sweep.yaml:1: is not valid YAML: aliases can't be used here"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_files_that_are_no_sweep(content: str | bytes, fault: str) -> None:
    (found,) = faults(content)
    assert found.startswith(fault)
    assert "\n" not in found


@pytest.mark.parametrize(
    "value",
    ["!!python/object/apply:os.system ['touch executed']", "!!python/name:os.system", "!mine x", "!!binary aGk="],
)
def test_tags_are_refused_and_build_nothing(value: str, folder: Path) -> None:
    refused = ["sweep.yaml:2: is not valid YAML: tags can't be used here"]
    assert faults(f"data: {{train: t}}\nmodel: {value}\n") == refused
    assert faults(f"data: {{train: t}}\n{value.split()[0]} model: m\n") == refused
    assert faults(MINIMAL, f"model={value}") == [f"--set: model: {value!r} is not a YAML value"]
    assert [path.name for path in folder.iterdir()] == ["sweep.yaml"]


def test_a_bomb_of_aliases_is_refused_before_it_expands() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    assert faults("\n".join(lines)) == ["sweep.yaml:2: is not valid YAML: aliases can't be used here"]


def test_keys_given_twice_at_every_depth_at_once() -> None:
    content = (
        "model: m\n"
        "data:\n"
        "  train: a\n"
        "  train: b\n"
        "search_space:\n"
        "  batch_size: {low: 8, high: 16, low: 9}\n"
        "search:\n"
        "  start_with:\n"
        "    - {dropout: 0.1}\n"
        "    - dropout: 0.1\n"
        "      dropout: 0.2\n"
        "model: n\n"
    )
    assert faults(content) == [
        "sweep.yaml:4: data.train: given twice, first on line 3",
        "sweep.yaml:6: search_space.batch_size.low: given twice, first on line 6",
        "sweep.yaml:11: search.start_with.1.dropout: given twice, first on line 10",
        "sweep.yaml:12: model: given twice, first on line 1",
    ]


# Faults and their lines


def test_every_fault_at_once_each_at_its_line() -> None:
    content = (
        "modle: m\n"
        "data:\n"
        "  # a comment, and an empty line\n"
        "\n"
        "  train: t.csv\n"
        "  columns: {txt: body}\n"
        "  max_length: long\n"
        "training:\n"
        "  learning_rat: 1e-5\n"
        "  batch_size: 16\n"
        "  epochs:\n"
        "    3.5\n"
        "search_space:\n"
        "  learning_rate:\n"
        "    low: 1e-5\n"
        "    hihg: 1e-3\n"
        "  batch_size: [8,\n"
        "               0]\n"
        "search:\n"
        "  metric: accurate\n"
        "early_stopping: {grace: 1}\n"
    )
    found = sorted(faults(content), key=lambda fault: (len(fault.split(": ")[0]), fault))
    assert [fault.split(";")[0].split(", but")[0] for fault in found] == [
        "sweep.yaml: model: is missing",
        "sweep.yaml:1: modle: unknown key",
        "sweep.yaml:6: data.columns.txt: unknown key",
        "sweep.yaml:7: data.max_length: must be an integer",
        "sweep.yaml:9: training.learning_rat: unknown key",
        "sweep.yaml:11: training.epochs: must be an integer",
        "sweep.yaml:14: search_space.learning_rate.high: is missing",
        "sweep.yaml:16: search_space.learning_rate.hihg: unknown key",
        "sweep.yaml:17: search_space.batch_size: must be >= 1",
        "sweep.yaml:20: search.metric: must be one of " + ", ".join(METRICS),
        "sweep.yaml:21: early_stopping.grace: unknown key",
    ]


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("modle: m\n", "modle: unknown key; did you mean model? known are model, task, data, training, search_space"),
        ("traning: {}\n", "traning: unknown key; did you mean training? known are model,"),
        ("training: {epoch: 3}\n", "training.epoch: unknown key; did you mean epochs? known are strategy,"),
        ("search: {trails: 3}\n", "search.trails: unknown key; did you mean trials? known are metric, mode, trials,"),
        ("cluster: {gpu_per_worker: 1}\n", "cluster.gpu_per_worker: unknown key; did you mean gpus_per_worker? known"),
        ("early_stopping: {grace_epoch: 1}\n", "early_stopping.grace_epoch: unknown key; did you mean grace_epochs?"),
        (
            "search_space: {drop-out: [0]}\n",
            "search_space.drop-out: unknown key; did you mean dropout?",
        ),
        (
            "search_space: {dropout: {choice: [0]}}\n",
            "search_space.dropout.choice: unknown key; did you mean choices?",
        ),
        ("search: {qqqq: 1}\n", "search.qqqq: unknown key; known are metric,"),
    ],
)
def test_the_nearest_key_is_named(content: str, hint: str) -> None:
    assert any(fault.startswith(f"sweep.yaml:3: {hint}") for fault in faults(MINIMAL + content))


def test_faults_between_sections_have_lines() -> None:
    content = (
        "model: m\n"
        "data:\n"
        "  train: t.csv\n"
        "training:\n"
        "  dropout: 0.1\n"
        "  lora_rank: 4\n"
        "search_space:\n"
        "  strategy: [full, partial]\n"
        "  dropout: [0.1, 0.2]\n"
        "  weight_decay:\n"
        "    low: 0.0\n"
        "    high: 0.1\n"
        "    when: {strategy: lora}\n"
        "search:\n"
        "  start_with:\n"
        "    - strategy: full\n"
        "      dropout: 0.3\n"
    )
    assert sorted(fault.split(": ")[:2] for fault in faults(content)) == [
        ["sweep.yaml:13", "search_space.weight_decay.when.strategy"],
        ["sweep.yaml:17", "search.start_with.0.dropout"],
        ["sweep.yaml:6", "training.lora_rank"],
        ["sweep.yaml:7", "search_space.freeze_depth"],
        ["sweep.yaml:9", "search_space.dropout"],
    ]


def test_late_faults_get_the_line_of_their_key(folder: Path) -> None:
    FILE.write_text(DESIGN)
    found = locate(
        FILE,
        [
            Fault(SWEEP_FILE, "must be <= 2", "search_space.freeze_depth.high"),
            Fault(SWEEP_FILE, "can't be found", "model"),
            Fault(SWEEP_FILE, "is missing", "data.unlabeled"),
            Fault(SWEEP_FILE, "without a key"),
            Fault("train.csv:7", "is empty", "data.columns"),
        ],
    )
    line = DESIGN.split("freeze_depth")[0].count("\n") + 1
    places = [f"sweep.yaml:{line}", "sweep.yaml:1", "sweep.yaml:3", "sweep.yaml", "train.csv:7"]
    assert [fault.where for fault in found] == places
    assert [(fault.rule, fault.key) for fault in found[:2]] == [
        ("must be <= 2", "search_space.freeze_depth.high"),
        ("can't be found", "model"),
    ]
    FILE.unlink()
    assert locate(FILE, [Fault(SWEEP_FILE, "rule", "model")]) == [Fault("sweep.yaml", "rule", "model")]


# --set


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("search.trials=4", "search", "trials", 4),
        ("search.time_limit=1h30m", "search", "time_limit", 5400),
        ("search.study=postgresql://host/name?a=b", "search", "study", "postgresql://host/name?a=b"),
        ("training.learning_rate=1e-5", "training", "learning_rate", 1e-5),
        ("training.dropout=null", "training", "dropout", None),
        ("training.dropout=", "training", "dropout", None),
        ("training.strategy=lora", "training", "strategy", "lora"),
        ("data.train=[a.csv, b.csv]", "data", "train", ["a.csv", "b.csv"]),
        ("data.columns={text: [a, b]}", "data", "columns", Columns(text=("a", "b")).model_dump()),
        ("data.columns.label=stars", "data", "columns", Columns(text="body", label="stars").model_dump()),
        ("cluster.gpus_per_worker=0.5", "cluster", "gpus_per_worker", 0.5),
        ("early_stopping.reduction_factor=4", "early_stopping", "reduction_factor", 4),
    ],
)
def test_overrides(override: str, section: str, key: str, value: Any) -> None:
    content = "model: m\ndata: {train: t.csv, columns: {text: body}}\nearly_stopping: null\nsearch: {trials: 9}\n"
    changed = load(content, override).model_dump()
    assert changed[section][key] == value
    before = load(content).model_dump()
    same = [name for name in before if name != section]
    assert {name: changed[name] for name in same} == {name: before[name] for name in same}
    if section != "early_stopping":
        assert {k: v for k, v in changed[section].items() if k != key} == {
            k: v for k, v in before[section].items() if k != key
        }


def test_overrides_of_a_search_space() -> None:
    space = load(DESIGN, "search_space.batch_size=[16]", "search_space.learning_rate.high=1e-2").search_space
    before = load(DESIGN).search_space
    assert space["batch_size"].model_dump()["choices"] == [16]
    assert space["learning_rate"] == before["learning_rate"].model_copy(update={"high": 1e-2})
    assert space["freeze_depth"] == before["freeze_depth"]


def test_of_two_overrides_the_last_one_counts() -> None:
    assert load(MINIMAL, "search.trials=4", "search.trials=5").search.trials == 5


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("search.trials", "--set: must be KEY=VALUE such as search.trials=4, but got 'search.trials'"),
        ("=4", "--set: must be KEY=VALUE such as search.trials=4, but got '=4'"),
        ("search..trials=4", "--set: must be KEY=VALUE such as search.trials=4, but got 'search..trials=4'"),
        ("model={", "--set: model: '{' is not a YAML value"),
        ("model=" + "9" * 5000, "--set: model: '9999"),
        ("model=" + "[" * 5000, "--set: model: '[[[["),
        ("model.name=x", "--set: model.name: model is not a section"),
        ("search.start_with.0.dropout=0", "--set: search.start_with.0.dropout: start_with is not a section"),
        ("search.trials=many", "--set: search.trials: must be an integer, but got 'many'"),
        ("search.trails=4", "--set: search.trails: unknown key; did you mean trials? known are"),
        ("serach.trials=4", "--set: serach: unknown key; did you mean search? known are"),
        ("data={}", "--set: data.train: is missing"),
        ("search_space.dropout={low: 1, high: 0}", "--set: search_space.dropout: low must be <= high, but got"),
    ],
)
def test_wrong_overrides(override: str, fault: str) -> None:
    (found,) = faults(MINIMAL + "search: {trials: 4, start_with: []}\n", override)
    assert found.startswith(fault)
    assert len(found) < 300


def test_every_wrong_override_is_told_and_the_file_s_faults_keep_their_lines() -> None:
    assert len(faults(MINIMAL, "a", "b", "model={")) == 3
    content = MINIMAL + "search: {trials: 0, seed: -1}\n"
    assert faults(content, "search.trials=-4") == [
        "--set: search.trials: must be >= 1, but got -4",
        "sweep.yaml:3: search.seed: must be >= 0, but got -1",
    ]


# Round trips

WORDS = [
    "m",
    "1e-5",
    "1e5",
    "5",
    "yes",
    "null",
    "~",
    "010",
    "1:30",
    "2020-01-01",
    "a: b",
    "# no",
    "ünï\U0001f600",
    " x ",
]
WORDS += [
    "!!int 3",
    "*a",
    "&a",
    "<<",
    "=",
    "'",
    '"',
    "a\nb",
    "\t",
    "{",
    "[",
    "-",
    "- a",
    "%",
    "@",
    "x" * 300,
    ".5",
    "0x1f",
]


def random_sweep(rng: random.Random) -> dict[str, Any]:
    """Some sections of a valid sweep, each with some of its keys."""

    def some(keys: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in keys.items() if rng.random() < 0.5}

    def word() -> str:
        return rng.choice(WORDS)

    def domain(low: float, high: float, *choices: Any) -> Any:
        end = low + (high - low) * rng.random()
        log = {"log": rng.random() < 0.5} if low > 0 else {}
        return rng.choice([list(choices), {"choices": list(choices)}, {"low": low, "high": end, **log}])

    strategies = rng.sample(STRATEGIES, rng.randint(1, len(STRATEGIES)))
    read = frozenset().union(*(STRATEGY_HYPERPARAMETERS[name] for name in strategies))
    space: dict[str, Any] = some(
        {
            "learning_rate": domain(10 ** rng.uniform(-7, -5), 10 ** rng.uniform(-4, 2), 1e-5, 3e-05, 1),
            "batch_size": rng.choice([[8, 16], {"low": 4, "high": 32, "step": 4}, {"low": 1, "high": 64, "log": True}]),
            "dropout": [None, 0, 0.1],
            "weight_decay": domain(0, 1, 0, 0.5),
            "warmup_ratio": {"low": 0.0, "high": 0.5, "when": {"strategy": rng.choice([strategies, strategies[0]])}},
        }
    )
    space["strategy"] = strategies
    if "partial" in strategies:
        space["freeze_depth"] = {"low": 1, "high": 6, "when": {"strategy": "partial"}}
    if "layer_decay" in read:
        space |= some({"layer_decay": {"low": 0.6, "high": 0.9, "step": 0.1}})
    start = {"strategy": strategies[0], **({"batch_size": 8} if "batch_size" in space else {})}
    data = some(
        {
            "validation": rng.choice([0.15, rng.random() or 0.5, word(), [word(), word()]]),
            "test": rng.choice([None, 0.1, word()]),
            "columns": some({"text": rng.choice([word(), [word(), word()]]), "label": word()}),
            "max_length": rng.randint(4, 512),
        }
    )
    sections = some(
        {
            "task": "text-classification",
            "training": some({"epochs": rng.randint(1, 9), "label_smoothing": rng.random(), "max_grad_norm": None}),
            "search": some(
                {
                    "metric": "loss",
                    "mode": "max",
                    "time_limit": rng.choice([None, "90s", "1h30m", rng.uniform(1, 1e6)]),
                    "seed": rng.randrange(2**31),
                    "start_with": [start, {}],
                    "study": word(),
                }
            ),
            "early_stopping": rng.choice([None, {"grace_epochs": 1}]),
            "cluster": some(
                {"concurrent_trials": rng.choice(["auto", 3]), "gpus_per_worker": rng.choice(["auto", 0, 0.3, 2])}
            ),
            "storage": word(),
        }
    )
    return {"model": word(), "data": {"train": word(), **data}, "search_space": space, **sections}


@pytest.mark.parametrize("seed", range(150))
def test_what_is_dumped_is_what_is_loaded(seed: int) -> None:
    config = SweepConfig.model_validate(random_sweep(random.Random(seed)))
    loaded = load(dump_sweep(config))
    assert loaded == config
    assert loaded.model_dump() == config.model_dump()
    assert loaded.training.model_fields_set == config.training.model_fields_set
    assert dump_sweep(loaded) == dump_sweep(config)
    absolute = with_absolute_paths(config)
    assert load(dump_sweep(absolute)) == absolute


def test_a_changed_number_of_trials_is_dumped() -> None:
    config = load(MINIMAL)
    config = config.model_copy(update={"search": config.search.model_copy(update={"trials": 40})})
    assert load(dump_sweep(config)).search.trials == 40


def test_a_dump_reads_like_what_was_given() -> None:
    assert dump_sweep(load(MINIMAL + "search_space: {dropout: [0.1, 0.2]}\n")) == (
        "model: m\ndata:\n  train: t.csv\nsearch_space:\n  dropout:\n    choices:\n    - 0.1\n    - 0.2\n"
    )


def test_the_page_of_all_keys_is_what_the_code_reads() -> None:
    script = Path(__file__).parent.parent / "docs" / "keys.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
