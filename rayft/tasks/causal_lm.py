"""The next token of a text, or of the answers in a chat."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayft.config import Columns, DataConfig, Hyperparameters
from rayft.data.cells import LONE_SURROGATE, UNDECODABLE, BadRow, text_of
from rayft.data.check import Table, numeric_text_faults
from rayft.data.encoded import IGNORED, ROWS_PER_BATCH, EncodedData, EncodedSplit
from rayft.data.formats import READERS, Part, text_lines
from rayft.data.load import SplitName
from rayft.data.splits import Rows
from rayft.errors import Fault, ModelError
from rayft.tasks.base import Encoded, Preprocessor, Task

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

ASSISTANT = "assistant"
OPEN_BLOCKS = 32
"""Blocks that are filled at the same time: the more, the fuller they get."""
LEAK = 1e-3
"""How much a text may change the logits of the next one in its block, of the largest: what rounding gives."""


class Chat(str):
    """A chat as JSON, which no text is, whatever it looks like."""

    __slots__ = ()


class CausalLM(Task):
    """The next token of a text, or of a chat's answers.

    Short texts are packed into blocks of at most max_length tokens; none sees the others in its block. Longer ones are
    cut into several blocks.
    """

    name = "causal-lm"
    pipeline = "text-generation"
    auto_class = "AutoModelForCausalLM"
    model_types = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
    has_new_head = False
    tokens_per_batch: ClassVar[int] = 2048  # each has a logit for every word of the vocabulary

    def input_columns(self, columns: Columns) -> dict[str, str]:
        """See `Task.input_columns`."""
        if columns.messages is not None:
            return {"messages": columns.messages}
        return {"text": columns.text if isinstance(columns.text, str) else columns.text[0]}

    def label_columns(self, columns: Columns) -> tuple[str, ...]:
        """See `Task.label_columns`: none."""
        return ()

    def part_faults(self, part: Part, inputs: Sequence[str]) -> list[Fault]:
        """See `Task.part_faults`."""
        return numeric_text_faults(part, inputs)

    def read_inputs(self, cells: Sequence[Any], part: Part) -> tuple[Any, ...]:
        """See `Task.read_inputs`; a chat as JSON."""
        if isinstance(cells[0], str) or cells[0] is None:
            return (text_of(cells[0]),)
        return (Chat(json.dumps(_chat_of(cells[0]), ensure_ascii=False)),)

    def read_label(self, cells: Sequence[Any], inputs: tuple[Any, ...], columns: Columns) -> None:
        """See `Task.read_label`: none."""
        if columns.messages is not None and not isinstance(inputs[0], Chat):
            raise BadRow("a chat must be a list of {role, content}, but is a text", droppable=False)
        if columns.messages is None and isinstance(inputs[0], Chat):
            raise BadRow("text is a chat, whose column is data.columns.messages", droppable=False)

    def label_names(self, labels: Sequence[Any], columns: Columns) -> tuple[str, ...]:
        """See `Task.label_names`: none."""
        return ()

    def label_faults(self, tables: Mapping[SplitName, Table], columns: Columns) -> list[Fault]:
        """See `Task.label_faults`."""
        if isinstance(columns.text, str):
            return []
        return [Fault("data.columns", "task causal-lm reads one text column")]

    def label_ids(self, labels: Sequence[Any], names: Sequence[str]) -> None:
        """See `Task.label_ids`."""
        return

    def facts(self, preprocessor: Preprocessor, config: DataConfig, train: Rows) -> dict[str, Any]:
        """See `Task.facts`."""
        if "messages" in train.inputs and not preprocessor.chat_template:
            rule = "must have a chat template to train on messages, but its tokenizer has none"
            raise ModelError([Fault(preprocessor.name_or_path, rule, "model")])
        return {"chat": "messages" in train.inputs}

    def encode(
        self, rows: Rows, preprocessor: Preprocessor, config: DataConfig, facts: Mapping[str, Any]
    ) -> Iterator[Encoded]:
        """See `Task.encode`; a row is a block here."""
        packer = _Packer(config.max_length)
        pieces = _chat_pieces if facts["chat"] else _text_pieces
        truncated = 0
        for ids, targets, cut in pieces(rows, preprocessor, config.max_length):
            truncated += cut
            if ids:
                packer.add(ids, targets)
            while len(packer.full) >= ROWS_PER_BATCH:
                yield packer.take(ROWS_PER_BATCH)
        packer.flush()
        while packer.full:
            yield packer.take(ROWS_PER_BATCH, 0 if len(packer.full) > ROWS_PER_BATCH else truncated)

    def collate(
        self, split: EncodedSplit, rows: NDArray[np.int64], data: EncodedData, hp: Hyperparameters | None = None
    ) -> "dict[str, Tensor]":
        """See `Task.collate`.

        There is no attention mask: without one, positions that start again tell transformers where a text ends, and
        padding is a text of its own.
        """
        from rayft.data.batches import padded, real_tokens

        mask = real_tokens(split, rows)
        return {
            "input_ids": padded(split, "input_ids", rows, mask, data.pad_token_id),
            "position_ids": padded(split, "position_ids", rows, mask, 0),
            "labels": padded(split, "targets", rows, mask, IGNORED),
        }

    def configure(self, config: "PretrainedConfig", label_names: Sequence[str], pad_token_id: int | None) -> None:
        """See `Task.configure`; transformers keeps the texts of a block apart only where it caches no keys."""
        super().configure(config, label_names, pad_token_id)
        config.use_cache = False

    def finish(self, model: "PreTrainedModel", data: EncodedData) -> "PreTrainedModel":
        """See `Task.finish`: lets it generate with cached keys."""
        for config in (model.config, model.generation_config):
            if config is not None:
                config.use_cache = True
        return model

    def check_model(self, model: "PreTrainedModel") -> None:
        """See `Task.check_model`: refuses a model in which a text sees the one before it in its block."""
        import torch

        if model.device.type == "meta":  # where nothing has a value
            return
        ids = [token for token in range(1, 12) if token != model.config.pad_token_id][:8]
        both = torch.tensor([ids], device=model.device)
        positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]], device=model.device)
        with torch.no_grad():
            packed = model(input_ids=both, position_ids=positions).logits[:, 3:]
            alone = model(input_ids=both[:, 3:]).logits
        if not (packed - alone).abs().max() <= LEAK * alone.abs().max().clamp(min=1e-6):
            rule = f"{type(model).__name__} lets a text see the one before it in its block, so it can't be packed"
            raise ModelError([Fault(model.name_or_path, rule, "model")])

    def row_weights(self, split: EncodedSplit, data: EncodedData) -> NDArray[np.float64]:
        """See `Task.row_weights`: a block's predicted tokens."""
        return split.target_counts.astype(np.float64)

    def loss_sum(self, logits: "Tensor", labels: "Tensor", hp: Hyperparameters, data: EncodedData) -> "Tensor":
        """See `Task.loss_sum`: cross-entropy over tokens."""
        from torch.nn import functional

        predicted = labels != IGNORED
        return functional.cross_entropy(
            logits[predicted], labels[predicted], label_smoothing=hp.label_smoothing, reduction="sum"
        )

    def output_size(self, data: EncodedData) -> int:
        """See `Task.output_size`: the loss of a block, and how many of its tokens are right."""
        return 2

    def outputs(self, logits: "Tensor", labels: "Tensor | None") -> "Tensor":
        """See `Task.outputs`."""
        import torch
        from torch.nn import functional

        assert labels is not None
        loss = functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
        right = (logits.argmax(dim=-1) == labels).float()
        return torch.stack([loss.sum(dim=1), right.sum(dim=1)], dim=1)

    def metrics(self, outputs: NDArray[Any], split: EncodedSplit, data: EncodedData) -> dict[str, float]:
        """See `Task.metrics`."""
        loss, right = outputs.astype(np.float64).sum(axis=0) / split.target_counts.sum()
        return {"loss": float(loss), "perplexity": float(np.exp(loss)), "token_accuracy": float(right)}


@dataclass
class _Packer:
    """Fills blocks with pieces of at most `size` tokens, each into the fullest open block that has room."""

    size: int
    full: list[tuple[list[int], list[int], list[int]]] = field(default_factory=list)
    _open: list[tuple[list[int], list[int], list[int]]] = field(default_factory=list)

    def add(self, ids: list[int], targets: list[int]) -> None:
        """Takes a piece and its targets."""
        room = [block for block in self._open if len(block[0]) + len(ids) <= self.size]
        block = max(room, key=lambda block: len(block[0]), default=None)
        if block is None:
            if len(self._open) == OPEN_BLOCKS:
                fullest = max(range(OPEN_BLOCKS), key=lambda index: len(self._open[index][0]))
                self.full.append(self._open.pop(fullest))
            block = ([], [], [])
            self._open.append(block)
        block[0].extend(ids)
        block[1].extend(range(len(ids)))
        block[2].extend(targets)

    def flush(self) -> None:
        """Ends all open blocks."""
        self.full += self._open
        self._open = []

    def take(self, count: int, truncated: int = 0) -> Encoded:
        """The first full blocks, encoded."""
        taken, self.full = self.full[:count], self.full[count:]
        names = ("input_ids", "position_ids", "targets")
        arrays = (pa.array(column, pa.list_(pa.int32())) for column in zip(*taken, strict=True))
        return Encoded(dict(zip(names, arrays, strict=True)), truncated)


Piece = tuple[list[int], list[int], bool]
"""Token ids, the target at each of them, and whether something of the row was cut off."""


def _text_pieces(rows: Rows, tokenizer: Preprocessor, max_length: int) -> Iterator[Piece]:
    """Each text with an end-of-text token, cut where it is too long."""
    texts, end = rows.inputs["text"], tokenizer.eos_token_id
    for start in range(0, len(texts), ROWS_PER_BATCH):
        for ids in tokenizer(texts[start : start + ROWS_PER_BATCH], return_attention_mask=False)["input_ids"]:
            whole = [*ids, end] if end is not None and ids[-1:] != [end] else ids
            for first in range(0, len(whole), max_length):
                piece = whole[first : first + max_length]
                if len(piece) > 1:  # a single token has nothing to be predicted
                    yield piece, [*piece[1:], IGNORED], False


def _chat_pieces(rows: Rows, tokenizer: Preprocessor, max_length: int) -> Iterator[Piece]:
    """Each chat, of which only answers have targets; chats without an answer within `max_length` are left out."""
    for chat in rows.inputs["messages"]:
        ids, answered = chat_tokens(json.loads(chat), tokenizer)
        targets = [token if answer else IGNORED for token, answer in zip(ids[1:], answered[1:], strict=True)]
        piece = ids[:max_length]
        targets = [*targets, IGNORED][: len(piece)]
        if len(ids) > max_length:
            targets[-1] = IGNORED  # what follows it is gone
        if any(target != IGNORED for target in targets):
            yield piece, targets, len(ids) > max_length
        elif len(ids) > max_length:
            yield [], [], True


def chat_tokens(messages: list[dict[str, str]], tokenizer: Preprocessor) -> tuple[list[int], list[bool]]:
    """A chat's tokens by the model's own template, and which of them an answer is made of.

    An answer is what the template adds to a chat for it, after the words that ask for one. Where the template shows
    earlier answers otherwise than the last one, as some do that drop its reasoning, only the last one counts.
    """

    def shown(count: int, asking: bool) -> str:
        text = tokenizer.apply_chat_template(messages[:count], tokenize=False, add_generation_prompt=asking)
        assert isinstance(text, str)
        return text

    whole = shown(len(messages), asking=False)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] == ASSISTANT:
            before, after = shown(index, asking=True), shown(index + 1, asking=False)
            if whole.startswith(after) and after.startswith(before):
                spans.append((len(before), len(after)))
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False)
    answered = [
        any(first <= begin and end <= last for first, last in spans) and begin < end
        for begin, end in encoded["offset_mapping"]
    ]
    return encoded["input_ids"], answered


def _chat_of(cell: Any) -> list[dict[str, str]]:
    if not isinstance(cell, list) or not all(isinstance(message, dict) for message in cell):
        raise BadRow(f"a chat must be a list of {{role, content}}, but is {str(cell)[:40]!r}", droppable=False)
    messages = [{"role": message.get("role"), "content": message.get("content")} for message in cell]
    if not all(isinstance(value, str) for message in messages for value in message.values()):
        raise BadRow("a message without a role or a content")
    if any(LONE_SURROGATE.search(value) for message in messages for value in message.values()):
        raise BadRow(UNDECODABLE)
    if not any(message["role"] == ASSISTANT for message in messages):
        raise BadRow("a chat without an answer of the assistant")
    return messages


def _read_documents(path: Path, name: str, wanted: Sequence[str]) -> Part:
    """A plain text file: texts with blank lines between them."""
    texts: list[list[str]] = []
    numbers: list[int] = []
    goes_on = False
    for number, line in enumerate(text_lines(path, name), start=1):
        if line.strip():
            if not goes_on:
                texts.append([])
                numbers.append(number)
            texts[-1].append(line)
        goes_on = bool(line.strip())
    return Part(name, tuple(wanted), {wanted[0]: ["\n".join(lines) for lines in texts]}, numbers, by_line=True)


CausalLM.readers = {**READERS, ".txt": _read_documents, ".md": _read_documents}
