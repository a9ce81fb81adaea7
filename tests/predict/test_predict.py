import csv
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from rayft.data import chunks
from rayft.data.formats import READERS, read_file
from rayft.errors import UserError
from rayft.predict.predict import Predicted, predict
from rayft.predict.whole import TextClasses
from tests.conftest import WORDS
from tests.predict.conftest import LABELS, MAX_LENGTH

TEXTS = ["the film is good", "awful food", "it was a very very very dull book", "nice", "the market is not great"]
Exported = Callable[..., Path]


@pytest.fixture(autouse=True)
def working_directory(folder: Path) -> Path:
    return folder


def run(model: Path, file: str, to: str | None = None, *columns: str, size: int = 2, **options: Any) -> Predicted:
    options = {"generate": None, "overwrite": False, **options}
    return predict(str(model), file, None if to is None else Path(to), columns, size, **options)


def faults(model: Path | str, file: str, to: str | None = None, *columns: str, **options: Any) -> list[str]:
    before = sorted(Path().rglob("*"))
    with pytest.raises(UserError) as caught:
        run(Path(model), file, to, *columns, **options)
    assert sorted(Path().rglob("*")) == before
    return [str(fault) for fault in caught.value.faults]


def write_csv(name: str, *rows: list[str]) -> None:
    with Path(name).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def read_csv(name: str) -> list[dict[str, str]]:
    with Path(name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]


def logits(model: Path, *texts: Any, auto: Any = AutoModelForSequenceClassification, **options: Any) -> torch.Tensor:
    encoded = AutoTokenizer.from_pretrained(model)(*texts, return_tensors="pt", truncation=True, **options)
    with torch.inference_mode():
        return auto.from_pretrained(model)(**encoded).logits[0].float()


# What each task writes


def test_classes_are_the_models_own_in_the_order_of_the_rows(exported: Exported) -> None:
    model = exported("text-classification")
    write_csv("a.csv", ["id", "text"], *([str(row), text] for row, text in enumerate(TEXTS)))
    assert str(run(model, "a.csv")) == "wrote a-predictions.csv: 5 rows"
    rows = read_csv("a-predictions.csv")
    assert list(rows[0]) == ["id", "text", "prediction", "probability", *(f"probability:{name}" for name in LABELS)]
    assert [(row["id"], row["text"]) for row in rows] == [(str(n), text) for n, text in enumerate(TEXTS)]
    for row in rows:
        wanted = logits(model, row["text"]).softmax(dim=-1).tolist()
        assert [float(row[f"probability:{name}"]) for name in LABELS] == pytest.approx(wanted, abs=1e-5)
        assert row["prediction"] == LABELS[int(np.argmax(wanted))]
        assert float(row["probability"]) == pytest.approx(max(wanted), abs=1e-5)


def test_pairs_of_the_sweeps_columns_and_of_others(exported: Exported) -> None:
    model = exported("text-classification", '{"text": ["one", "two"]}')
    write_csv("a.csv", ["two", "one", "three"], ["good", "the film", "bad"])
    run(model, "a.csv", "b.csv")
    run(model, "a.csv", "c.csv", "one", "three")
    for name, second in (("b.csv", "good"), ("c.csv", "bad")):
        wanted = logits(model, "the film", second).softmax(dim=-1).max().item()
        assert float(read_csv(name)[0]["probability"]) == pytest.approx(wanted, abs=1e-5)
    assert faults(model, "a.csv", "d.csv", "one") == [
        "--column: the model reads 2 different columns ('one', 'two' in its sweep), but got 'one'"
    ]


def test_several_labels_are_those_above_one_half(exported: Exported) -> None:
    model = exported("multi-label-classification")
    Path("a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    run(model, "a.jsonl")
    run(model, "a.jsonl", "a.csv")
    for row, cells in zip(read_lines("a-predictions.jsonl"), read_csv("a.csv"), strict=True):
        wanted = logits(model, row["text"]).sigmoid().tolist()
        assert [row[f"probability:{name}"] for name in LABELS] == pytest.approx(wanted, abs=1e-5)
        assert row["prediction"] == [name for name, one in zip(LABELS, wanted, strict=True) if one > 0.5]
        assert json.loads(cells["prediction"]) == row["prediction"]


def test_numbers(exported: Exported) -> None:
    model = exported("regression")
    write_csv("a.csv", ["text"], *([text] for text in TEXTS))
    run(model, "a.csv")
    found = [float(row["prediction"]) for row in read_csv("a-predictions.csv")]
    assert found == pytest.approx([logits(model, text).item() for text in TEXTS], abs=1e-5)


def test_tags_of_words_also_beyond_what_the_model_reads_at_once(exported: Exported) -> None:
    model = exported("token-classification")
    sentences = [["the", "film"], (WORDS * 2)[:40], ["bad"]]
    Path("a.jsonl").write_text("".join(json.dumps({"tokens": words, "n": 1}) + "\n" for words in sentences))
    run(model, "a.jsonl")
    rows = read_lines("a-predictions.jsonl")
    windows = [sentences[1][start : start + MAX_LENGTH - 2] for start in range(0, 40, MAX_LENGTH - 2)]
    for row, parts in zip(rows, [[sentences[0]], windows, [sentences[2]]], strict=True):
        options = {"auto": AutoModelForTokenClassification, "is_split_into_words": True}
        wanted = [one for words in parts for one in logits(model, words, **options).softmax(dim=-1)[1:-1].tolist()]
        assert row["prediction"] == [LABELS[int(np.argmax(one))] for one in wanted]
        assert row["probability"] == pytest.approx([max(one) for one in wanted], abs=1e-5)


def test_conll_becomes_csv_with_spaces_between_words(exported: Exported) -> None:
    Path("a.conll").write_text("the O\nfilm B-X\n\nbad O\n")
    run(exported("token-classification"), "a.conll")
    first, second = read_csv("a-predictions.csv")
    assert (first["tokens"], first["tags"], second["tokens"]) == ("the film", "O B-X", "bad")
    assert [len(first[name].split()) for name in ("probability", "tags")] == [2, 2]


def test_losses_of_texts_of_any_length_and_their_continuations(exported: Exported) -> None:
    model = exported("causal-lm")
    texts = ["the film is good", " ".join((WORDS * 2)[:40]), "bad"]
    Path("a.txt").write_text("\n\n".join(texts))
    run(model, "a.txt", generate=4, size=3)
    tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    for row, text in zip(read_csv("a-predictions.csv"), texts, strict=True):
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        losses = []
        for start in range(0, len(ids), MAX_LENGTH):
            piece = torch.tensor([ids[start : start + MAX_LENGTH]])
            with torch.inference_mode():
                found = network(piece).logits[0, :-1].log_softmax(dim=-1)
            losses += (-found[torch.arange(len(found)), piece[0, 1:]]).tolist()
        assert float(row["loss"]) == pytest.approx(np.mean(losses), abs=1e-4)
        assert float(row["perplexity"]) == pytest.approx(math.exp(np.mean(losses)), rel=1e-3)
        prompt = torch.tensor([tokenizer(text)["input_ids"][-(MAX_LENGTH - 4) :]])
        made = network.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4, do_sample=False, pad_token_id=0
        )
        assert row["continuation"] == tokenizer.decode(made[0, prompt.shape[1] :], skip_special_tokens=True)
    run(model, "a.txt", "b.csv")
    assert "continuation" not in read_csv("b.csv")[0]
    assert faults(model, "a.txt", "c.csv", generate=MAX_LENGTH) == [
        "--generate: must be less than the 16 tokens that the model reads, but got 16"
    ]


def test_losses_of_answers_in_chats(exported: Exported) -> None:
    model = exported("causal-lm", '{"messages": "chat"}')
    chat = [{"role": "user", "content": "is it good"}, {"role": "assistant", "content": "very good"}]
    Path("a.jsonl").write_text(f"{json.dumps({'chat': chat})}\n{json.dumps({'chat': chat[:1]})}\n")
    done = run(model, "a.jsonl", generate=2)
    assert done.places == ["a.jsonl:2 (a chat without an answer of the assistant)"]
    first, second = read_lines("a-predictions.jsonl")
    assert first["loss"] > 0 and isinstance(first["continuation"], str)
    assert second["loss"] is second["continuation"] is None


def test_images_of_a_folder_and_of_a_csv(exported: Exported) -> None:
    model = exported("image-classification")
    Path("images/one").mkdir(parents=True)
    for name, color in (("one/a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (20, 30), color).save(Path("images") / name)
    write_csv("images.csv", ["path"], ["images/b.png"], ["images/c.png"], ["images.csv"])
    run(model, "images", "folder.csv")
    done = run(model, "images.csv", None, "path")
    assert done.places == ["images.csv:3 (no such file images/c.png)", "images.csv:4 (unreadable image images.csv)"]
    (blue, *_), rows = read_csv("images-predictions.csv"), read_csv("folder.csv")
    assert [Path(row["image"]).name for row in rows] == ["b.png", "a.png"]
    assert blue["probability"] == rows[0]["probability"]
    processor = AutoImageProcessor.from_pretrained(model)
    with torch.inference_mode():
        batch = processor(Image.open("images/b.png"), return_tensors="pt")
        wanted = AutoModelForImageClassification.from_pretrained(model)(**batch).logits[0].softmax(dim=-1)
    assert [float(blue[f"probability:{name}"]) for name in LABELS] == pytest.approx(wanted.tolist(), abs=1e-5)


# Files


SUFFIXES = [".csv", ".tsv", ".json", ".jsonl", ".parquet"]
NOTES = ['a "quoted"\r\nnote, with\ttabs', "hällo\rthere", "plain"]


def write_source(name: str) -> None:
    """Three rows, the second without a text, in the format of the suffix."""
    rows = [{"text": text, "note": note} for text, note in zip(["the film", "", "bad"], NOTES, strict=True)]
    path, suffix = Path(name), Path(name).suffix
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="," if suffix == ".csv" else "\t")
            writer.writerows([["text", "note"], *(row.values() for row in rows)])


@pytest.mark.parametrize("to", SUFFIXES)
@pytest.mark.parametrize("source", SUFFIXES)
def test_every_format_into_every_other(exported: Exported, source: str, to: str) -> None:
    write_source(f"a{source}")
    done = run(exported("regression"), f"a{source}", f"b{to}")
    assert (done.rows, done.bad) == (3, 1)
    assert str(done).startswith(f"wrote b{to}: 3 rows, 1 of them without a prediction: a{source}")
    part = read_file(Path(f"b{to}"), "b", ["text", "note", "prediction"], READERS)
    assert part.available == ("text", "note", "prediction")
    assert part.cells["text"] == ["the film", "", "bad"]
    assert part.cells["note"] == NOTES
    first, second, third = part.cells["prediction"]
    assert float(first) != float(third) and second in (None, "")


def test_parquet_keeps_its_types_and_metadata(exported: Exported) -> None:
    columns = {"text": pa.array(["good"]).dictionary_encode(), "n": pa.array([3], pa.uint8()), "at": pa.array([[1, 2]])}
    pq.write_table(pa.table(columns).replace_schema_metadata({"by": "hand"}), "a.parquet")
    run(exported("regression"), "a.parquet")
    found = pq.read_table("a-predictions.parquet")
    assert found.drop_columns(["prediction"]).equals(pq.read_table("a.parquet"))
    assert found.schema.metadata[b"by"] == b"hand"
    assert found.schema.field("prediction").type == pa.float64()


def test_a_column_of_different_kinds_becomes_json_and_no_parquet(exported: Exported) -> None:
    model = exported("regression")
    Path("a.jsonl").write_text('{"text": "good", "n": 1}\n{"text": "bad", "n": "x", "more": [1]}\n')
    assert faults(model, "a.jsonl", "b.parquet") == [
        "a.jsonl: 'n': has cells of different kinds, which Parquet can't hold; write to .jsonl"
    ]
    run(model, "a.jsonl", "b.csv")
    assert [(row["n"], row["more"]) for row in read_csv("b.csv")] == [("1", ""), ("x", "[1]")]


def test_bytes_that_are_no_text_leave_csv_as_they_came(exported: Exported) -> None:
    Path("a.csv").write_bytes(b"text,note\ncaf\xff,n\xff\ngood,x\n")
    assert run(exported("regression"), "a.csv").places == ["a.csv:2 (undecodable bytes)"]
    assert Path("a-predictions.csv").read_bytes().startswith(b"text,note,prediction\ncaf\xff,n\xff,\ngood,x,")


def test_only_a_chunk_is_in_memory_and_its_batches_are_of_like_length(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is read for chunk after chunk, each of which is written before the next one is read."""
    events: list[str] = []
    parts, answers = chunks.formats.delimited_part, TextClasses.answers

    def read(batch: Any, *rest: Any) -> Any:
        events.append(f"read {len(batch)}")
        return parts(batch, *rest)

    def answer(self: TextClasses, rows: Any) -> Any:
        events.append(" ".join(str(len(row[0].split())) for row in rows))
        return answers(self, rows)

    monkeypatch.setattr(chunks.formats, "delimited_part", read)
    monkeypatch.setattr(TextClasses, "answers", answer)
    monkeypatch.setattr(TextClasses, "rows_per_chunk", 4)
    lengths = [1, 4, 2, 3, 5, 1]
    write_csv("a.csv", ["text"], *([" ".join(["good"] * length)] for length in lengths))
    run(exported("text-classification"), "a.csv")
    assert events == ["read 4", "read 2", "read 4", "4 3", "2 1", "read 2", "5 1"]
    assert [len(row["text"].split()) for row in read_csv("a-predictions.csv")] == lengths


# What can be wrong


def test_typos_are_all_told_at_once_with_what_was_meant(exported: Exported) -> None:
    model = exported("regression")
    write_csv("reviews.csv", ["tekst", "stars"], ["good", "5"])
    assert faults(model.parent / "bst", "review.csv", "out.cvs") == [
        f"{model.parent / 'bst'}: there is no such folder; did you mean {model}?",
        "out.cvs: --to: must be one of .csv, .tsv, .json, .jsonl, .parquet, but got .cvs",
        "review.csv: there is no such file; did you mean reviews.csv?",
    ]
    missing = "there is no column 'text', nearest first there are 'tekst', 'stars'"
    assert faults(model, "reviews.csv") == [f"reviews.csv: --column: {missing}"]
    assert "'txt', nearest first" in faults(model, "reviews.csv", None, "txt")[0]
    assert "every cell is a number, such as '5'" in faults(model, "reviews.csv", None, "stars")[0]
    assert str(run(model, "reviews.csv", None, "tekst")) == "wrote reviews-predictions.csv: 1 row"


def test_no_model(exported: Exported) -> None:
    write_csv("a.csv", ["text"], ["good"])
    Path("run").mkdir()
    assert faults("run", "a.csv")[0].endswith("but has no rayft.json and no best/rayft.json")
    Path("run/sweep.yaml").touch()
    assert "this run has no model yet" in faults("run", "a.csv")[0]
    assert faults("a.csv", "a.csv")[0].endswith("but is a file")
    with pytest.raises(UserError, match="brings a model here"):
        predict("s3://a/b", "a.csv", None, [], 1, None, overwrite=False)
    shutil.copytree(exported("regression"), "model")
    run(Path("model"), "a.csv", "b.csv")
    weights = load_file("model/model.safetensors")
    save_file({name: one for name, one in weights.items() if name != "classifier.bias"}, "model/model.safetensors")
    assert faults("model", "a.csv", "c.csv")[0].endswith("but 1 are missing: classifier.bias")
    Path("model/model.safetensors").write_bytes(b"damaged")
    assert faults("model", "a.csv", "c.csv")[0].startswith("model: its model can't be read: ")
    Path("model/rayft.json").write_text('{"task": "chess"}')
    assert faults("model", "a.csv", "c.csv")[0].startswith("model/rayft.json: task: Input should be ")


def test_a_run_folder_stands_for_its_best_model(exported: Exported) -> None:
    write_csv("a.csv", ["text"], ["good"])
    assert run(exported("regression").parent, "a.csv").rows == 1


def test_files_that_are_there_and_files_that_are_bad(exported: Exported) -> None:
    model = exported("regression")
    write_csv("a.csv", ["text"], ["good"])
    run(model, "a.csv", "b.csv")
    rule = "--to: is there already; --overwrite replaces it, --to writes elsewhere"
    assert faults(model, "a.csv", "b.csv") == [f"b.csv: {rule}"]
    run(model, "a.csv", "b.csv", overwrite=True)
    assert "must be another file" in faults(model, "a.csv", "a.csv", overwrite=True)[0]
    assert "there is no folder no" in faults(model, "a.csv", "no/b.csv")[0]
    assert "must have no columns of the names of predictions, but has 'prediction'" in faults(model, "b.csv")[0]
    write_csv("bad.csv", ["text", "n"], ["", "1"], [" ", "2"])
    assert faults(model, "bad.csv") == [
        "bad.csv: must have a row to predict, but all 2 are bad: bad.csv:2 (empty text), bad.csv:3 (empty text)"
    ]
    write_csv("ragged.csv", ["text", "n"], ["good", "1"], ["good"])
    assert "but 1 don't: ragged.csv:3 has 1" in faults(model, "ragged.csv")[0]
    Path("odd.xml").touch()
    assert "must be one of .csv, .tsv, .json, .jsonl, .parquet, but got .xml" in faults(model, "odd.xml")[0]
    assert "for task regression, but is a folder" in faults(model, str(model))[0]
    assert faults(model, "a.csv", "c.csv", generate=3) == [
        "--generate: is for models of task causal-lm, but this one's is regression"
    ]


def test_too_large_a_batch_for_the_gpu(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise torch.OutOfMemoryError

    write_csv("a.csv", ["text"], ["good"], ["bad"])
    monkeypatch.setattr(TextClasses, "answers", fails)
    rule = "--batch-size: must be less, as 2 rows at once don't fit the GPU's memory"
    assert faults(exported("text-classification"), "a.csv", "b.csv") == [rule]


def test_a_failure_amid_the_rows_leaves_the_earlier_file(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    write_csv("a.csv", ["text"], ["good"], ["bad"])
    Path("b.csv").write_text("earlier")

    def fails(*_: object) -> None:
        assert list(Path().glob(".b.csv.*.partial"))
        raise OSError("no space")

    monkeypatch.setattr(TextClasses, "answers", fails)
    with pytest.raises(OSError, match="no space"):
        run(exported("text-classification"), "a.csv", "b.csv", overwrite=True)
    assert Path("b.csv").read_text() == "earlier"
    assert sorted(path.name for path in Path().iterdir()) == ["a.csv", "b.csv"]


# The program


def program(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "rayft.cli", "predict", *arguments]


def test_the_program_says_what_it_wrote_and_nothing_else(exported: Exported) -> None:
    write_csv("a.csv", ["text"], ["good"], [""])
    ended = subprocess.run(program(str(exported("regression")), "a.csv"), capture_output=True, text=True, timeout=240)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == ("wrote a-predictions.csv: 2 rows, 1 of them without a prediction: a.csv:3 (empty text)\n")
    ended = subprocess.run(program("best", "a.csv"), capture_output=True, text=True, timeout=240)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("rayft: 2 faults in the input\n  best: there is no such folder")


def test_an_interrupt_leaves_no_file(exported: Exported) -> None:
    Path("a.csv").write_text("text\n" + "the film is good\n" * 200_000)
    process = subprocess.Popen(
        program(str(exported("regression")), "a.csv"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 200
    while not list(Path().glob(".a-predictions.csv.*.partial")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    shown, told = process.communicate(timeout=60)
    assert (process.returncode, shown, told) == (130, "", "rayft: interrupted, nothing is written\n")
    assert [path.name for path in Path().iterdir()] == ["a.csv"]
