import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayft.data.formats import LONGEST_CELL, READERS, Part, read_file
from rayft.errors import DataError

WANTED = ("text", "label")


def read(folder: Path, name: str, content: str | bytes) -> Part:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_file(path, name, WANTED, READERS)


def fault(folder: Path, name: str, content: str | bytes) -> str:
    with pytest.raises(DataError) as caught:
        read(folder, name, content)
    return str(caught.value)


def test_csv_cells_and_the_lines_that_records_start_on(folder: Path) -> None:
    part = read(folder, "a.csv", 'id,text,label\n1,plain,x\n\n2,"two\nlines, and a ""quote""",y\n3,last,z\n')
    assert part.available == ("id", "text", "label")
    assert part.cells == {"text": ["plain", 'two\nlines, and a "quote"', "last"], "label": ["x", "y", "z"]}
    assert [part.place(row) for row in range(3)] == ["a.csv:2", "a.csv:4", "a.csv:6"]


def test_csv_with_byte_order_mark_and_windows_line_ends(folder: Path) -> None:
    part = read(folder, "a.csv", "\ufefftext,label\r\nhällo,x\r\nb,y\r\n")
    assert part.cells == {"text": ["hällo", "b"], "label": ["x", "y"]}
    assert part.place(1) == "a.csv:3"


def test_csv_cell_longer_than_the_default_limit(folder: Path) -> None:
    assert LONGEST_CELL > 200_000
    assert len(read(folder, "a.csv", f"text,label\n{'w ' * 100_000},x\n").cells["text"][0]) == 200_000


def test_csv_quote_that_is_never_closed_is_refused_where_it_opens(folder: Path) -> None:
    assert fault(folder, "a.csv", 'text,label\nfine,x\n"open,y\nnext,z\n').startswith("a.csv:3: doesn't parse")


def test_csv_rows_of_another_width_are_counted_and_placed(folder: Path) -> None:
    message = fault(folder, "a.csv", "text,label\none, two,x\nok,y\nshort\n")
    assert message == "a.csv: every row must have the header's 2 cells, but 2 don't: a.csv:2 has 3, a.csv:4 has 1"


def test_only_the_first_five_places_are_named(folder: Path) -> None:
    message = fault(folder, "a.csv", "text,label\n" + "short\n" * 7)
    assert "but 7 don't" in message
    assert "a.csv:6 has 1, ..." in message
    assert "a.csv:7" not in message


def test_csv_column_named_twice(folder: Path) -> None:
    assert fault(folder, "a.csv", "text,label,text\na,b,c\n") == "a.csv:1: 'text': must name a column once only"


def test_tsv_with_quotes_as_in_csv(folder: Path) -> None:
    assert read(folder, "a.tsv", 'text\tlabel\n"a\ttab"\tx\n').cells["text"] == ["a\ttab"]


def test_tsv_without_quoting(folder: Path) -> None:
    part = read(folder, "a.tsv", 'text\tlabel\n"Hello" she said\tx\nit is 5" long\ty\n"open\tz\n')
    assert part.cells["text"] == ['"Hello" she said', 'it is 5" long', '"open']


def test_json_lines(folder: Path) -> None:
    part = read(folder, "a.jsonl", '{"text": "a\u2028b", "label": 1}\n\n{"label": true, "other": null}\n')
    assert part.available == ("text", "label", "other")
    assert part.cells == {"text": ["a\u2028b", None], "label": [1, True]}
    assert part.place(1) == "a.jsonl:3"


def test_json_list_and_json_lines_in_a_json_file(folder: Path) -> None:
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    listed = read(folder, "a.json", json.dumps(rows, indent=1))
    lines = read(folder, "b.json", "\n".join(json.dumps(row) for row in rows))
    assert listed.cells == lines.cells == {"text": ["a", "b"], "label": ["x", "y"]}
    assert (listed.place(1), lines.place(1)) == ("a.json row 2", "b.json:2")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": \n[1]\n', "a.jsonl: every line must be a JSON object, but 2 are none"),
        ("a.json", '[{"text": "a"},\n{"text": }]', "a.json:2: doesn't parse as JSON"),
        ("a.json", '[{"text": "a"}, 3]', "a.json: must be a list of objects, but 1 are none: a.json row 2"),
        ("a.json", "[" * 100_000, "a.json: doesn't parse as JSON: it is nested too deeply"),
        ("a.jsonl", "[" * 100_000, "a.jsonl: every line must be a JSON object, but 1 are none: a.jsonl:1"),
        ("a.parquet", b"PAR1 not really", "a.parquet: doesn't parse as Parquet"),
        ("a.csv", "text,label\na,b\n".encode("utf-16"), "a.csv: must be UTF-8 text, but is UTF-16"),
        ("a.txt", "text", "a.txt: must be one of .csv, .tsv, .json, .jsonl, .parquet, but got .txt"),
        ("a", "text", "a: must be one of .csv, .tsv, .json, .jsonl, .parquet, but the name has no suffix"),
    ],
)
def test_what_does_not_parse_is_refused(folder: Path, name: str, content: str | bytes, message: str) -> None:
    assert fault(folder, name, content).startswith(message)


def test_bytes_that_are_not_utf8_stay_visible(folder: Path) -> None:
    assert read(folder, "a.csv", b"text,label\ncaf\xe9,x\n").cells["text"] == ["caf\udce9"]


def test_parquet_keeps_types_and_reads_wanted_columns_only(folder: Path) -> None:
    table = pa.table({"text": ["a", None], "label": [1.0, 2.0], "vector": [[1], [2]]})
    pq.write_table(table, folder / "a.PARQUET")
    part = read_file(folder / "a.PARQUET", "a.PARQUET", WANTED, READERS)
    assert part.available == ("text", "label", "vector")
    assert part.cells == {"text": ["a", None], "label": [1.0, 2.0]}
    assert part.place(1) == "a.PARQUET row 2"


def test_parquet_dictionaries_and_strings_that_are_not_utf8(folder: Path) -> None:
    broken = pa.array([b"fine", b"caf\xe9"]).view(pa.string())
    pq.write_table(pa.table({"text": broken, "label": pa.array(["x", "y"]).dictionary_encode()}), folder / "a.parquet")
    part = read_file(folder / "a.parquet", "a.parquet", WANTED, READERS)
    assert part.cells == {"text": ["fine", "caf\udce9"], "label": ["x", "y"]}
