"""How well a model foresees texts, or the answers in chats, and how it would go on."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from rayft.data.cells import BadRow
from rayft.data.encoded import IGNORED
from rayft.errors import Fault, UserError
from rayft.predict.base import Answer, Predictor, Row, rounded
from rayft.tasks.causal_lm import ASSISTANT, CausalLM, chat_tokens

LARGEST_EXPONENT = 700.0
"""exp of more is no number; such a perplexity is told as that of this."""


@dataclass(frozen=True)
class _Piece:
    """Tokens that are read at once.

    Attributes:
        row: Of which row of the batch.
        ids: The tokens.
        targets: What is to be predicted at each of them, `IGNORED` for nothing.
    """

    row: int
    ids: list[int]
    targets: list[int]


class NextTokens(Predictor):
    """The mean loss of a row's tokens, its perplexity, and a continuation if one is asked for."""

    def __init__(self, pipe: Any, is_chat: bool, generate: int | None) -> None:
        """Takes a text-generation pipeline.

        Args:
            pipe: The pipeline.
            is_chat: Whether rows are chats, whose answers are predicted.
            generate: How many tokens rows are continued by, if they are.

        Raises:
            UserError: That is as much as the model reads, or more.
        """
        self._pipe, self._is_chat, self._generate = pipe, is_chat, generate
        self._tokenizer = pipe.tokenizer
        self._tokenizer.padding_side = "left"  # what is generated goes on where the row ends
        self._limit = self._tokenizer.model_max_length
        if generate is not None and generate >= self._limit:
            rule = f"must be less than the {self._limit} tokens that the model reads, but got {generate}"
            raise UserError([Fault("--generate", rule)])
        self.columns = {"loss": pa.float64(), "perplexity": pa.float64()}
        if generate is not None:
            self.columns["continuation"] = pa.string()

    def size(self, row: Row) -> int:
        """See `Predictor.size`."""
        return len(row[0])

    def answers(self, rows: Sequence[Row]) -> list[Answer | BadRow]:
        """See `Predictor.answers`."""
        pieces = [piece for row, cells in enumerate(rows) for piece in self._pieces(row, cells[0])]
        sums, counts = [0.0] * len(rows), [0] * len(rows)
        for batch in _batches(sorted(pieces, key=lambda piece: len(piece.ids)), len(rows)):
            for piece, loss in zip(batch, self._losses(batch), strict=True):
                sums[piece.row] += loss
                counts[piece.row] += sum(target != IGNORED for target in piece.targets)
        continuations = self._continuations([row[0] for row in rows])
        found: list[Answer | BadRow] = []
        for total, count, continuation in zip(sums, counts, continuations, strict=True):
            loss = total / max(count, 1)
            figures = (rounded(loss), rounded(math.exp(min(loss, LARGEST_EXPONENT))), *continuation)
            found.append(figures if count else BadRow("no token to predict"))
        return found

    def _pieces(self, row: int, text: str) -> Iterator[_Piece]:
        """A row as it was trained on: texts cut into as many pieces as it takes, chats cut off."""
        if self._is_chat:
            ids, answered = chat_tokens(json.loads(text), self._tokenizer)
            starts = range(1)
        else:
            ids, end = self._tokenizer(text, verbose=False)["input_ids"], self._tokenizer.eos_token_id
            ids = [*ids, end] if end is not None and ids[-1:] != [end] else ids
            answered, starts = [True] * len(ids), range(0, len(ids), self._limit)
        for start in starts:
            own = slice(start, start + self._limit)
            follows = zip(ids[own][1:], answered[own][1:], strict=True)
            targets = [*(token if counts else IGNORED for token, counts in follows), IGNORED]
            if any(target != IGNORED for target in targets):
                yield _Piece(row, ids[own], targets)

    def _losses(self, batch: Sequence[_Piece]) -> list[float]:
        """The summed loss of each piece."""
        import torch
        from torch.nn import functional

        longest, device = max(len(piece.ids) for piece in batch), self._pipe.device
        short = [longest - len(piece.ids) for piece in batch]
        pairs = list(zip(batch, short, strict=True))
        ids = torch.tensor([piece.ids + [0] * missing for piece, missing in pairs], device=device)
        targets = torch.tensor([piece.targets + [IGNORED] * missing for piece, missing in pairs], device=device)
        mask = torch.tensor([[1] * len(piece.ids) + [0] * missing for piece, missing in pairs], device=device)
        with torch.inference_mode():
            logits = self._pipe.model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
            losses = functional.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
            found: list[float] = losses.double().sum(dim=1).tolist()
        return found

    def _continuations(self, texts: Sequence[str]) -> list[tuple[str, ...]]:
        """What each row is continued by, most likely token after most likely token; none if it isn't asked for."""
        if self._generate is None:
            return [()] * len(texts)
        given = [_question(json.loads(text)) for text in texts] if self._is_chat else list(texts)
        found = self._pipe(
            given,
            max_new_tokens=self._generate,
            do_sample=False,
            return_full_text=False,
            handle_long_generation="hole",  # reads the end of a row that is too long
            batch_size=len(given),
        )
        return [(entries[0]["generated_text"],) for entries in found]


def _question(chat: list[dict[str, str]]) -> list[dict[str, str]]:
    """A chat up to its last answer, which the model is to give."""
    last = max(index for index, message in enumerate(chat) if message["role"] == ASSISTANT)
    return chat[:last] or chat


def _batches(pieces: Sequence[_Piece], size: int) -> Iterator[Sequence[_Piece]]:
    """Pieces in order of length, in batches of at most so many and so many tokens: each has a logit for every word."""
    start = 0
    for end, piece in enumerate(pieces):
        if end - start == size or (end > start and (end - start + 1) * len(piece.ids) > CausalLM.tokens_per_batch):
            yield pieces[start:end]
            start = end
    if start < len(pieces):
        yield pieces[start:]
