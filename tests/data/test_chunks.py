import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayft.data import chunks
from rayft.data.chunks import ChunkedFile, open_chunked
from rayft.errors import DataError
from rayft.tasks import get_task


def opened(name: str, rows: int = 2, task: str = "text-classification", column: str = "text") -> ChunkedFile:
    return open_chunked(Path(name), name, [column], ["tags"], get_task(task), rows, "--column")  # type: ignore[arg-type]


def places(file: ChunkedFile) -> list[list[str]]:
    return [[chunk.part.place(row) for row in range(len(chunk))] for chunk in file.read()]


def refused(name: str) -> list[str]:
    with pytest.raises(DataError) as caught:
        opened(name)
    return [str(fault) for fault in caught.value.faults]


def test_csv_in_chunks_with_the_lines_that_records_start_on(folder: Path) -> None:
    Path("a.csv").write_text('text,n\none,1\n\n"two\nlines",2\nthree,3\n')
    file = opened("a.csv")
    assert (file.columns, file.rows, file.untyped) == (("text", "n"), 3, True)
    assert places(file) == [["a.csv:2", "a.csv:4"], ["a.csv:6"]] == places(file)
    assert [chunk.cells("n") for chunk in file.read()] == [["1", "2"], ["3"]]


def test_tsv_without_quoting(folder: Path) -> None:
    Path("a.tsv").write_text('text\tn\n"free mark\t1\nother\t2\nthird\t3\n')
    assert [chunk.cells("text") for chunk in opened("a.tsv").read()] == [['"free mark', "other"], ["third"]]
    Path("b.tsv").write_text('text\tn\n"open\t1\nragged\n')
    assert refused("b.tsv")[0].startswith("b.tsv:2: doesn't parse")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_json_lines_of_either_name_with_columns_that_come_late(folder: Path, name: str) -> None:
    Path(name).write_text("".join(json.dumps({"text": "t", **more}) + "\n\n" for more in ({}, {}, {"n": 1})))
    file = opened(name)
    assert file.columns == ("text", "n")
    assert places(file) == [[f"{name}:1", f"{name}:3"], [f"{name}:5"]]
    assert [chunk.cells("n") for chunk in file.read()] == [[None, None], [1]]


def test_parquet_rows_are_numbered_on_from_chunk_to_chunk(folder: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b", "c"], "n": [1, 2, 3]}), "a.parquet", row_group_size=3)
    file = opened("a.parquet")
    assert places(file) == [["a.parquet row 1", "a.parquet row 2"], ["a.parquet row 3"]]
    assert [list(chunk.part.cells) for chunk in file.read()] == [["text"], ["text"]]
    assert [chunk.cells("n") for chunk in file.read()] == [[1, 2], [3]]


def test_sentences_are_read_with_their_tags(folder: Path) -> None:
    Path("a.conll").write_text("one A\ntwo B\n\nthree A\n\nfour A\n")
    file = opened("a.conll", task="token-classification", column="tokens")
    assert file.columns == ("tokens", "tags")
    assert places(file) == [["a.conll:1", "a.conll:4"], ["a.conll:6"]]


def test_long_rows_make_short_chunks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "MAX_CHARACTERS", 10)
    Path("a.csv").write_text("text\nsix666\nsix666\nfour\nx\n")
    assert [chunk.cells("text") for chunk in opened("a.csv", rows=9).read()] == [["six666"], ["six666", "four"], ["x"]]


def test_faults_late_in_a_file_are_found_at_once(folder: Path) -> None:
    Path("a.csv").write_text("text,n\na,1\nb,2\nc,3\nd\n")
    assert refused("a.csv") == ["a.csv: every row must have the header's 2 cells, but 1 don't: a.csv:5 has 1"]
    Path("a.jsonl").write_text('{"text": "a"}\n' * 4 + "[1]\n")
    assert refused("a.jsonl") == ["a.jsonl: every line must be a JSON object, but 1 are none: a.jsonl:5"]
    Path("b.csv").write_bytes("text\na\n".encode("utf-16"))
    assert "is UTF-16" in refused("b.csv")[0]
    Path("c.parquet").write_bytes(b"PAR1 and no more")
    assert refused("c.parquet")[0].startswith("c.parquet: doesn't parse as Parquet")


@pytest.mark.parametrize(
    ("name", "content", "rule"), [("a.csv", "text,n\n", "has no rows"), ("a.jsonl", "", "is empty")]
)
def test_files_without_rows(folder: Path, name: str, content: str, rule: str) -> None:
    Path(name).write_text(content)
    assert refused(name) == [f"{name}: {rule}"]


def test_numbers_in_place_of_texts_only_if_all_are(folder: Path) -> None:
    Path("a.csv").write_text("text\n1\n2\n3\n")
    assert refused("a.csv")[0].startswith("a.csv: --column: the text column 'text' must hold text")
    Path("b.csv").write_text("text\n1\n2\nthree\n")
    assert opened("b.csv").rows == 3
