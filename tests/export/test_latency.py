"""What a model takes for one row, as it is measured before a sweep and of its exports."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from rayft.config import SweepConfig, TaskName
from rayft.data.encode import encode_splits
from rayft.data.encoded import RAW, EncodedData
from rayft.errors import RunError
from rayft.export.latency import measure_latencies
from rayft.export.model_folder import write_untrained
from rayft.export.scorers import score
from rayft.export.scorers.latency import MOST_CALLS, WARM_UP, latency_ms
from rayft.export.scorers.score import load
from rayft.models.load import load_preprocessor
from rayft.sweep.run_folder import LATENCIES, RunFolder
from rayft.tasks import get_task
from tests.examples import FAMILY, splits_of
from tests.export.test_scorers import model_folder


def prepared(task: TaskName, folder: Path, models: list[Path]) -> tuple[SweepConfig, RunFolder]:
    """A run whose data is encoded."""
    chosen, splits = get_task(task), splits_of(task)
    length = {"max_length": 12} if chosen.preprocessor == "tokenizer" else {}
    names = [str(model) for model in models]
    config = SweepConfig.model_validate(
        {"model": names if len(names) > 1 else names[0], "task": task, "data": {"train": "train", **length}}
    )
    run = RunFolder.at(str(folder / "run"))
    for model in names:
        preprocessor = load_preprocessor(model, chosen)
        encode_splits(splits, chosen, preprocessor, config.data, run.path / config.encoded_folder(model))
    return config, run


@pytest.mark.parametrize("task", FAMILY)
def test_every_task_s_pipeline_is_timed_on_one_row_at_a_time(
    tmp_path: Path, task: TaskName, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = prepared(task, tmp_path, [model_folder(task, FAMILY[task], tmp_path / "base")])
    data = EncodedData.open(run.encoded)
    write_untrained(config, config.models[0], data, tmp_path / "model")
    pipe = load(data.task, tmp_path / "model", torch.device("cpu"))
    sizes: list[int] = []
    forward = type(pipe.model).forward

    def counted(model: Any, *args: Any, **inputs: Any) -> Any:
        sizes.append(len(args[0] if args else next(iter(inputs.values()))))
        return forward(model, *args, **inputs)

    monkeypatch.setattr(type(pipe.model), "forward", counted)
    table = pa.ipc.open_file(str(run.encoded / RAW / "validation.arrow")).read_all()
    assert 0 < latency_ms(pipe, table) < 60_000
    assert sizes == [1] * (WARM_UP + MOST_CALLS), "one forward pass of one row, or of one new token, for each call"


def test_each_model_of_a_sweep_is_timed_once_in_a_clean_process(tmp_path: Path) -> None:
    task: TaskName = "text-classification"
    models = [model_folder(task, family, tmp_path / family) for family in ("bert", "roberta")]
    config, run = prepared(task, tmp_path, models)
    notes: list[str] = []
    measure_latencies(config, run, notes.append)
    found = run.latencies()
    assert [*found] == config.models
    assert all(value > 0 for value in found.values())
    assert [note.split()[0] for note in notes] == ["bert", "roberta"]

    (run.path / LATENCIES).write_text(json.dumps({config.models[0]: 123.0}))
    measure_latencies(config, run, notes.append)
    assert run.latencies()[config.models[0]] == 123.0, "what is on record stays"
    assert notes[2:] == [f"roberta takes {run.latencies()[config.models[1]]:.2f} ms for one row"]


@pytest.mark.parametrize("text", ["", "[1]", '{"model": "fast"}', "{"])
def test_a_damaged_record_of_latencies_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / LATENCIES).write_text(text)
    with pytest.raises(RunError, match=r"latency\.json: must be a JSON object of models and milliseconds"):
        RunFolder.at(str(tmp_path)).latencies()


def test_the_script_gives_the_time_beside_the_scores(tmp_path: Path) -> None:
    config, run = prepared("regression", tmp_path, [model_folder("regression", "bert", tmp_path / "base")])
    data = EncodedData.open(run.encoded)
    write_untrained(config, config.models[0], data, tmp_path / "model")
    command = [sys.executable, "-P", score.__file__, data.task, str(tmp_path / "model"), str(run.encoded / RAW)]
    command += ["validation", f"--facts={json.dumps(data.facts)}", "--latency"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = json.loads(printed.splitlines()[-1])
    assert found["latency_ms"] > 0
    assert len(found["pairs"]["validation"]) == len(data.validation)
    assert found["metrics"]["validation"]["mse"] == pytest.approx(
        sum((one - other) ** 2 for one, other in found["pairs"]["validation"]) / len(data.validation)
    )


@pytest.mark.parametrize("column", ["text", "messages"])
def test_a_text_longer_than_the_model_takes_is_cut(tmp_path: Path, column: str) -> None:
    config, run = prepared("causal-lm", tmp_path, [model_folder("causal-lm", "gpt2", tmp_path / "base")])
    data = EncodedData.open(run.encoded)
    write_untrained(config, config.models[0], data, tmp_path / "model")
    pipe = load(data.task, tmp_path / "model", torch.device("cpu"))
    pipe.tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    long = "the film " * 5 * pipe.model.config.n_positions
    cell = long if column == "text" else json.dumps([{"role": "user", "content": long}])
    assert latency_ms(pipe, pa.table({column: [cell]})) > 0
