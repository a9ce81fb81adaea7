import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from rayft.config import DataConfig
from rayft.config_tasks import TASK_RULES
from rayft.data.encode import encode_splits
from rayft.data.encoded import IGNORED, EncodedData
from rayft.data.splits import Rows, Splits
from rayft.errors import DataError, ModelError
from rayft.models.dropout import set_dropout
from rayft.models.load import load_model
from rayft.tasks import get_task
from rayft.tasks.causal_lm import OPEN_BLOCKS, chat_tokens
from tests.conftest import LM_FAMILIES, LM_VOCABULARY, WORDS, tiny_lm_tokenizer, tiny_model
from tests.examples import encode, rows_of, splits_of
from tests.tasks.conftest import Faults, Load, collated, loss_of

TASK = get_task("causal-lm")
TOKENIZER = tiny_lm_tokenizer()
END = TOKENIZER.eos_token_id
MESSAGES = {"columns": {"messages": "messages"}}
CHAT = [
    {"role": "user", "content": "is it good"},
    {"role": "assistant", "content": "it is very good"},
    {"role": "user", "content": "the food"},
    {"role": "assistant", "content": "great"},
]
ASK = {"role": "user", "content": "is it"}


def answer(*words: str) -> dict[str, str]:
    return {"role": "assistant", "content": " ".join(words)}


def texts(*rows: str) -> Splits:
    return Splits("causal-lm", *[Rows({"text": list(rows)}, None)] * 2, None, None, (), ())


def chats(*rows: list[dict[str, str]]) -> Splits:
    dumped = Rows({"messages": [json.dumps(row) for row in rows]}, None)
    return Splits("causal-lm", dumped, dumped, None, None, (), ())


def blocks(data: EncodedData) -> list[dict[str, list[int]]]:
    names = ("input_ids", "position_ids", "targets")
    return [{name: data.train.ragged(name, row).tolist() for name in names} for row in range(len(data.train))]


def pieces(data: EncodedData) -> list[tuple[list[int], list[int]]]:
    """Ids and targets of each text, or part of one, wherever it lies."""
    found = []
    for block in blocks(data):
        starts = [place for place, position in enumerate(block["position_ids"]) if position == 0]
        for start, end in zip(starts, [*starts[1:], None], strict=True):
            found.append((block["input_ids"][start:end], block["targets"][start:end]))
    return found


# ---- rows


def test_plain_text_files_are_read_by_their_blank_lines(folder: Path, load: Load) -> None:
    content = "\n\none\ntwo\n \n\nthree\u2028still three\n\n\nfour"
    for name, end in (("train.txt", "\n"), ("train.md", "\r\n")):
        (folder / name).write_bytes(content.replace("\n", end).encode())
        splits = load("causal-lm", name, validation=name)
        assert splits.train.inputs == {"text": ["one\ntwo", "three\u2028still three", "four"]}
        assert splits.train.labels is None and splits.label_names == ()


def test_a_bad_document_is_named_by_its_first_line(folder: Path, load: Load, faults: Faults) -> None:
    (folder / "train.txt").write_bytes(b"one\n\n\ntwo\ncaf\xe9\n\nthree\n")
    (fault,) = faults("causal-lm", "train.txt")
    assert "1 of 3 rows are bad: train.txt:4 (undecodable bytes); mend them" in fault
    splits = load("causal-lm", "train.txt", validation="train.txt", on_bad_row="drop")
    assert splits.train.inputs["text"] == ["one", "three"]


def test_a_text_column(folder: Path, load: Load, faults: Faults) -> None:
    (folder / "train.csv").write_text("body\na film\n[{a film\n")
    splits = load("causal-lm", "train.csv", validation="train.csv", columns={"text": "body"})
    assert splits.train.inputs["text"] == ["a film", "[{a film"]
    (folder / "numbers.csv").write_text("text\n1\n2\n")
    assert "must hold text, but every cell is a number" in faults("causal-lm", "numbers.csv")[0]
    (folder / "two.csv").write_text("a,b\nx,y\nz,w\n")
    assert "task causal-lm reads one text column" in " ".join(
        faults("causal-lm", "two.csv", columns={"text": ["a", "b"]})
    )


@pytest.mark.parametrize("file", ["chats.jsonl", "chats.parquet"])
def test_chats(folder: Path, load: Load, file: str) -> None:
    rows = [{"messages": CHAT}, {"messages": CHAT[:2]}]
    if file.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), folder / file)
    else:
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = load("causal-lm", file, validation=file, **MESSAGES)
    assert [json.loads(chat) for chat in splits.train.inputs["messages"]] == [CHAT, CHAT[:2]]


@pytest.mark.parametrize(
    ("chat", "reason"),
    [
        ([{"role": "user"}, answer("good")], "a message without a role or a content"),
        ([ASK, {"role": "assistant", "content": None}], "a message without a role or a content"),
        ([ASK], "a chat without an answer of the assistant"),
        ([], "a chat without an answer of the assistant"),
        ([ASK, answer("caf\udce9")], "undecodable bytes"),
        (None, "empty text"),
    ],
)
def test_bad_chats(folder: Path, load: Load, faults: Faults, chat: Any, reason: str) -> None:
    (folder / "chats.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in (CHAT, chat, CHAT)))
    (fault,) = faults("causal-lm", "chats.jsonl", **MESSAGES)
    assert f"1 of 3 rows are bad: chats.jsonl:2 ({reason}); mend them" in fault
    splits = load("causal-lm", "chats.jsonl", validation="chats.jsonl", on_bad_row="drop", **MESSAGES)
    assert len(splits.train) == 2


@pytest.mark.parametrize(
    ("chat", "reason"),
    [
        ("just text", "a chat must be a list of {role, content}, but is a text"),
        ("[{'role': 'user'}]", "a chat must be a list of {role, content}, but is a text"),
        (["just text"], "a chat must be a list of {role, content}, but is \"['just text']\""),
    ],
)
def test_what_is_no_chat_is_never_dropped(folder: Path, faults: Faults, chat: Any, reason: str) -> None:
    (folder / "chats.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in (CHAT, chat)))
    (fault, *_) = faults("causal-lm", "chats.jsonl", validation="chats.jsonl", on_bad_row="drop", **MESSAGES)
    assert f"1 of 2 rows have the wrong type: chats.jsonl:2 ({reason})" in fault


def test_chats_in_the_text_column_are_no_texts(folder: Path, faults: Faults) -> None:
    (folder / "chats.jsonl").write_text((json.dumps({"text": CHAT}) + "\n") * 2)
    assert "text is a chat, whose column is data.columns.messages" in faults("causal-lm", "chats.jsonl")[0]


# ---- packing


def test_packing_loses_no_token_and_repeats_none(tmp_path: Path) -> None:
    rows = rows_of("causal-lm", 5 * OPEN_BLOCKS, seed=3)
    data = encode(Splits("causal-lm", rows, rows, None, None, (), ()), tmp_path, max_length=16)
    expected = [[*TOKENIZER(text)["input_ids"], END] for text in rows.inputs["text"]]
    assert Counter(tuple(ids) for ids, _ in pieces(data)) == Counter(map(tuple, expected))
    for ids, targets in pieces(data):
        assert targets == [*ids[1:], IGNORED]
    lengths = data.train.lengths
    assert lengths.max() <= 16
    assert lengths.sum() == sum(map(len, expected))
    assert len(data.train) <= 1.12 * lengths.sum() / 16, "blocks are nearly full"
    assert TASK.row_weights(data.train, data).sum() == lengths.sum() - len(expected)
    for block in blocks(data):
        positions = block["position_ids"]
        assert positions[0] == 0
        assert all(later in (0, earlier + 1) for earlier, later in itertools.pairwise(positions))


def test_long_texts_are_cut_into_pieces(tmp_path: Path) -> None:
    data = encode(texts(" ".join(WORDS[:21]), "good film"), tmp_path, max_length=10)
    ids = [*TOKENIZER(" ".join(WORDS[:21]))["input_ids"], END]
    found = sorted(pieces(data), key=lambda piece: -len(piece[0]))
    short = [*TOKENIZER("good film")["input_ids"], END]
    assert [piece for piece, _ in found] == [ids[:10], ids[10:20], short, ids[20:]]
    assert all(targets[-1] == IGNORED for _, targets in found)


def test_a_single_token_has_nothing_to_be_predicted(tmp_path: Path) -> None:
    data = encode(texts(" ".join(WORDS[:12])), tmp_path, max_length=12)  # 13 tokens with the end of the text
    assert [len(ids) for ids, _ in pieces(data)] == [12]


def test_a_text_that_ends_already_is_not_ended_again(tmp_path: Path) -> None:
    data = encode(texts("good film [SEP]", "bad film"), tmp_path)
    assert sorted(len(ids) for ids, _ in pieces(data)) == [3, 3]


def test_padding_is_apart_from_all_texts(tmp_path: Path) -> None:
    data = encode(texts("good film", " ".join(WORDS[:14])), tmp_path, max_length=15)
    order = np.argsort(data.train.lengths)
    batch = collated(data, data.train, order.tolist())
    assert set(batch) == {"input_ids", "position_ids", "labels"}
    assert batch["input_ids"].shape == (2, 15)
    assert batch["input_ids"][0, 3:].eq(0).all()
    assert batch["position_ids"][0].tolist() == [0, 1, 2, *[0] * 12]
    assert batch["labels"][0, 2:].eq(IGNORED).all()


# ---- chats


def marked(messages: list[dict[str, str]]) -> list[tuple[str, bool]]:
    ids, answered = chat_tokens(messages, TOKENIZER)
    return list(zip(TOKENIZER.convert_ids_to_tokens(ids), answered, strict=True))


def test_only_answers_and_their_ends_are_answers() -> None:
    expected = [
        *[(token, False) for token in ("<|im_start|>", "user", "is", "it", "good", "<|im_end|>")],
        *[(token, False) for token in ("<|im_start|>", "assistant")],
        *[(token, True) for token in ("it", "is", "very", "good", "<|im_end|>")],
        *[(token, False) for token in ("<|im_start|>", "user", "the", "food", "<|im_end|>")],
        *[(token, False) for token in ("<|im_start|>", "assistant")],
        *[(token, True) for token in ("great", "<|im_end|>")],
    ]
    assert marked(CHAT) == expected
    system = [{"role": "system", "content": "very nice"}, *CHAT]
    assert marked(system) == [
        *[(token, False) for token in ("<|im_start|>", "system", "very", "nice", "<|im_end|>")],
        *expected,
    ]


def test_earlier_answers_that_the_template_shows_otherwise_do_not_count() -> None:
    tokenizer = tiny_lm_tokenizer()
    tokenizer.chat_template = (  # the last answer alone is shown as it is
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content if loop.last or m.role == 'user' else 'dull' }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    ids, answered = chat_tokens(CHAT, tokenizer)
    answers = tokenizer.convert_ids_to_tokens([token for token, one in zip(ids, answered, strict=True) if one])
    assert answers == ["great", "<|im_end|>"]


def test_the_loss_is_on_answers_only(tmp_path: Path) -> None:
    data = encode(chats(CHAT), tmp_path, max_length=64)
    ((ids, targets),) = pieces(data)
    words = [(*TOKENIZER.convert_ids_to_tokens([token]), target) for token, target in zip(ids, targets, strict=True)]
    trained = [(word, TOKENIZER.convert_ids_to_tokens(target)) for word, target in words if target != IGNORED]
    assert trained == [
        ("assistant", "it"),
        ("it", "is"),
        ("is", "very"),
        ("very", "good"),
        ("good", "<|im_end|>"),
        ("assistant", "great"),
        ("great", "<|im_end|>"),
    ]


def test_chats_are_packed_and_cut(tmp_path: Path) -> None:
    long = [ASK, answer(*["good"] * 20)]
    late = [{"role": "user", "content": "bad " * 20}, answer("good")]  # its answer lies behind max_length
    short = [ASK, answer("bad")]
    rows = chats(long, late, short, short)
    notes = encode_splits(rows, TASK, TOKENIZER, DataConfig(train="train", max_length=18), tmp_path)
    assert notes[0] == "train: 2 of 4 rows (50%) are cut to data.max_length 18"
    found = pieces(EncodedData.open(tmp_path))
    assert sorted(len(ids) for ids, _ in found) == [9, 9, 18]
    ids, targets = max(found, key=lambda piece: len(piece[0]))
    good = LM_VOCABULARY["good"]
    assert targets == [*[IGNORED] * 6, *[good] * 11, IGNORED], "what follows the last token is gone"
    assert ids == chat_tokens(long, TOKENIZER)[0][:18]


def test_nothing_to_be_predicted_is_told(tmp_path: Path) -> None:
    late = [{"role": "user", "content": "bad " * 20}, answer("good")]
    with pytest.raises(DataError) as caught:
        encode(chats(late), tmp_path)
    assert [str(fault) for fault in caught.value.faults] == [
        f"{split}: data.{split}: none of its 1 rows has a token to be predicted within data.max_length 16"
        for split in ("train", "validation")
    ]


def test_chats_need_a_template(tmp_path: Path) -> None:
    tokenizer = tiny_lm_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="must have a chat template to train on messages"):
        encode_splits(chats(CHAT), TASK, tokenizer, DataConfig(train="train"), tmp_path)


# ---- loss and scores


@pytest.fixture
def data(tmp_path: Path) -> EncodedData:
    return encode(splits_of("causal-lm"), tmp_path)


def logits_for(labels: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return torch.randn(*labels.shape, len(LM_VOCABULARY), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_over_predicted_tokens(data: EncodedData, smoothing: float) -> None:
    labels = collated(data, data.train, [0, 1, 2])["labels"]
    logits = logits_for(labels)
    summed = nn.CrossEntropyLoss(label_smoothing=smoothing, ignore_index=IGNORED, reduction="sum")
    expected = summed(logits.transpose(1, 2), labels)
    assert loss_of(data, logits, labels, label_smoothing=smoothing) == pytest.approx(float(expected), rel=1e-5)


def test_metrics_are_torchs(data: EncodedData) -> None:
    labels = collated(data, data.validation, list(range(len(data.validation))))["labels"]
    logits = logits_for(labels) + 3 * nn.functional.one_hot(labels.clamp(min=0), len(LM_VOCABULARY))
    found = TASK.outputs(logits, labels)
    assert found.shape == (len(data.validation), TASK.output_size(data))
    metrics = TASK.metrics(found.numpy(), data.validation, data)
    assert tuple(metrics) == TASK_RULES["causal-lm"].metrics
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    predicted = labels != IGNORED
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(float(loss.exp()), rel=1e-5)
    right = (logits.argmax(-1) == labels)[predicted].float().mean()
    assert metrics["token_accuracy"] == pytest.approx(float(right)) and 0.2 < right < 1
    assert TASK.confusion(found.numpy(), data.validation, data) is None


# ---- models


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("family", LM_FAMILIES)
def test_a_text_in_a_block_has_the_logits_of_the_text_alone(data: EncodedData, family: str, training: bool) -> None:
    model = tiny_model(family, task="causal-lm").eval()
    TASK.check_model(model)
    set_dropout(model.train(training), 0.0)
    batch = collated(data, data.train, list(range(6)))
    labels = batch.pop("labels")
    with torch.no_grad():
        packed = model(**batch).logits
        compared = 0
        for row, positions in enumerate(batch["position_ids"]):
            starts = [*torch.nonzero(positions == 0).flatten().tolist(), len(positions)]
            for start, end in itertools.pairwise(starts):
                if (labels[row, start:end] != IGNORED).any():
                    alone = model(input_ids=batch["input_ids"][row : row + 1, start:end]).logits[0]
                    torch.testing.assert_close(packed[row, start:end], alone, rtol=1e-4, atol=1e-5)
                    compared += 1
    assert compared > 6, "blocks of several texts"


def test_a_model_that_leaks_is_refused() -> None:
    config = OPTConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=32, word_embed_proj_dim=32
    )
    TASK.configure(config, (), None)
    leaky = OPTForCausalLM(config).eval()  # knows nothing of positions that start again
    with pytest.raises(ModelError, match="OPTForCausalLM lets a text see the one before it in its block"):
        TASK.check_model(leaky)
    caching = tiny_model("llama", task="causal-lm").eval()
    caching.config.use_cache = True
    with pytest.raises(ModelError, match="LlamaForCausalLM lets a text see"):
        TASK.check_model(caching)


def saved(folder: Path, family: str, tokenizer: PreTrainedTokenizerFast = TOKENIZER) -> str:
    model = tiny_model(family, task="causal-lm")
    model.config.use_cache = True
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_the_finished_model_caches_again(tmp_path: Path, data: EncodedData) -> None:
    model = load_model(saved(tmp_path / "base", "gpt2"), TASK, (), 0, seed=0)
    assert model.config.use_cache is False
    TASK.check_model(model)
    TASK.finish(model, data).save_pretrained(tmp_path / "exported")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "exported" / name).read_text()).get("use_cache", True) is True


def test_raw_rows_are_what_was_given() -> None:
    rows = splits_of("causal-lm", chat=True).train
    (name, column), *others = TASK.raw(rows).items()
    assert name == "messages" and others == []
    assert column.to_pylist() == rows.inputs["messages"]
