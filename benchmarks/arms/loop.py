"""A plain, well-written fine-tuning loop for BERT classifiers, which the arms without rayft and Trainer share.

Rows are tokenised once and batched by length, frozen blocks run without a graph and without dropout, the optimiser is
fused, and validation runs in large batches.
"""

import csv
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoTokenizer, BertForSequenceClassification
from transformers.masking_utils import create_bidirectional_mask
from transformers.utils import logging

from benchmarks.arms.job import MAX_GRAD_NORM, WARMUP_RATIO, Config, Job

EVAL_TOKENS = 8192
BATCHES_PER_BUCKET, BUCKETS_PER_EPOCH = 50, 10


@dataclass(frozen=True)
class Rows:
    """A tokenised split without padding: all rows one after another."""

    name: str
    tokens: Tensor
    starts: Tensor
    lengths: Tensor
    labels: Tensor

    def positions(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Where the rows' tokens lie, [rows, longest], and which of them are padding's opposite."""
        lengths = self.lengths[rows]
        steps = torch.arange(int(lengths.max()))
        mask = steps < lengths[:, None]
        return torch.where(mask, self.starts[rows][:, None] + steps, 0), mask

    def input_ids(self, positions: Tensor, mask: Tensor) -> Tensor:
        """Token ids, padded with 0, which is BERT's padding."""
        return self.tokens[positions] * mask


def autocast_of(job: Job) -> torch.dtype | None:
    """The dtype of the job's matrix products, None for float32; `precision: auto` is what rayft would take here."""
    if job.options.get("precision") != "auto":
        return None
    from rayft.training.acceleration import choose_autocast
    from rayft.training.workers import Workers

    return choose_autocast("auto", Workers(0, 1, torch.device("cpu")))


def read_csv(path: str) -> tuple[list[str], list[str]]:
    """Texts and labels of a file with the header text,label."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["label"] for row in rows]


def read_splits(job: Job) -> tuple[dict[str, Rows], list[str]]:
    """All splits of a job, tokenised, and the labels' names."""
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    names = sorted(set(read_csv(job.train)[1]))
    splits = {}
    for name in ("train", "validation", "test"):
        if (path := getattr(job, name)) is None:
            continue
        texts, labels = read_csv(path)
        ids = tokenizer(texts, truncation=True, max_length=job.max_length)["input_ids"]
        lengths = torch.tensor([len(row) for row in ids])
        tokens = torch.tensor([token for row in ids for token in row])
        labels_of = torch.tensor([names.index(label) for label in labels])
        splits[name] = Rows(name, tokens, lengths.cumsum(0) - lengths, lengths, labels_of)
    return splits, names


def load_model(job: Job, labels: int) -> BertForSequenceClassification:
    """The pretrained model with a head that the seed draws."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(job.seed)
    return BertForSequenceClassification.from_pretrained(job.model, num_labels=labels, dtype=torch.float32)


def train_batches(lengths: Tensor, batch_size: int, seed: int) -> list[Tensor]:
    """Every row once, rows of similar length together, in random order."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(lengths))
    full = len(order) - len(order) % batch_size
    batches = []
    per_bucket = batch_size * min(BATCHES_PER_BUCKET, max(1, full // batch_size // BUCKETS_PER_EPOCH))
    for start in range(0, full, per_bucket):
        bucket = order[start : min(start + per_bucket, full)]
        bucket = bucket[np.argsort(lengths.numpy()[bucket], kind="stable")]
        batches += list(bucket.reshape(-1, batch_size))
    shuffled = [batches[index] for index in generator.permutation(len(batches))]
    return [torch.from_numpy(rows) for rows in (*shuffled, order[full:]) if len(rows)]


def eval_batches(lengths: Tensor, tokens: int = EVAL_TOKENS) -> Iterator[Tensor]:
    """Rows sorted by length, the longest first, as many per batch as fit."""
    order = lengths.argsort(descending=True, stable=True)
    start = 0
    while start < len(order):
        size = max(1, tokens // int(lengths[order[start]]))
        yield order[start : start + size]
        start += size


class Prefix(Protocol):
    """Gives the hidden states that enter the first trained block."""

    def __call__(self, rows: Rows, batch: Tensor, depth: int) -> tuple[Tensor, Tensor | None]:
        """Hidden states of some rows after `depth` blocks, and the attention mask for the blocks above."""
        ...


class LivePrefix:
    """Computes embeddings and frozen blocks anew for every batch."""

    def __init__(self, model: BertForSequenceClassification) -> None:
        self._bert = model.bert

    def __call__(self, rows: Rows, batch: Tensor, depth: int) -> tuple[Tensor, Tensor | None]:
        """See `Prefix`."""
        positions, mask = rows.positions(batch)
        with torch.set_grad_enabled(torch.is_grad_enabled() and depth == 0):
            hidden = self._bert.embeddings(input_ids=rows.input_ids(positions, mask))
            attention = attention_mask(self._bert, hidden, mask)
            for block in self._bert.encoder.layer[:depth]:
                hidden = block(hidden, attention)
        return hidden, attention


def attention_mask(bert: nn.Module, hidden: Tensor, mask: Tensor) -> Tensor | None:
    """The mask as the blocks want it; None where there is no padding."""
    built: Tensor | None = create_bidirectional_mask(config=bert.config, inputs_embeds=hidden, attention_mask=mask)
    return built


class Tuner:
    """One process's model and data: trains one configuration after another, each from the pretrained weights.

    Attributes:
        model: The classifier.
        splits: The tokenised splits by name.
        prefix: Where hidden states come from.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.splits, names = read_splits(job)
        self.model = load_model(job, len(names))
        if job.options.get("onednn"):
            from rayft.models.linear import use_onednn

            use_onednn(self.model)
        self._autocast = autocast_of(job)
        self.prefix: Prefix = LivePrefix(self.model)
        self._pretrained = {name: value.clone() for name, value in self.model.state_dict().items()}

    def train(
        self,
        config: Config,
        on_epoch: Callable[[int, float], None] = lambda epoch, accuracy: None,
        epochs: int | None = None,
        deadline: float | None = None,
    ) -> list[float]:
        """Trains one configuration.

        Args:
            config: What to train.
            on_epoch: Called after each epoch with its number and the validation accuracy.
            epochs: How many of the schedule's epochs; all if None.
            deadline: Training is cut off there, in mid-epoch.

        Returns:
            Validation accuracy after each finished epoch.
        """
        self.model.load_state_dict(self._pretrained)
        depth, rows = config["freeze_depth"], self.splits["train"]
        trained = self._freeze(depth)
        optimizer = AdamW(_groups(trained, config["weight_decay"]), lr=config["learning_rate"], fused=True)
        steps = self.job.epochs * -(-len(rows.labels) // config["batch_size"])
        schedule = LambdaLR(optimizer, _factor(steps))
        parameters = [parameter for _, parameter in trained]
        accuracies: list[float] = []
        torch.manual_seed(self.job.seed)
        for epoch in range(1, (epochs or self.job.epochs) + 1):
            self._train_mode(depth)
            for batch in train_batches(rows.lengths, config["batch_size"], self.job.seed * 1000 + epoch):
                if deadline is not None and time.time() > deadline:
                    return accuracies
                loss = nn.functional.cross_entropy(self._logits(rows, batch, depth), rows.labels[batch])
                torch.autograd.backward(loss)
                nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            accuracies.append(self.accuracy("validation", depth))
            on_epoch(epoch, accuracies[-1])
        return accuracies

    @torch.inference_mode()
    def accuracy(self, split: str, depth: int) -> float:
        """The share of a split's rows that the model as it is now gets right."""
        self.model.eval()
        rows, right = self.splits[split], 0
        for batch in eval_batches(rows.lengths):
            predicted = self._logits(rows, batch, depth).argmax(dim=-1)
            right += int((predicted == rows.labels[batch]).sum())
        return right / len(rows.labels)

    def _logits(self, rows: Rows, batch: Tensor, depth: int) -> Tensor:
        with torch.autocast("cpu", self._autocast, enabled=self._autocast is not None):
            hidden, attention = self.prefix(rows, batch, depth)
            for block in self.model.bert.encoder.layer[depth:]:
                hidden = block(hidden, attention)
            logits: Tensor = self.model.classifier(self.model.dropout(self.model.bert.pooler(hidden)))
        return logits.float()

    def _frozen(self, depth: int) -> list[nn.Module]:
        bert = self.model.bert
        return [bert.embeddings, *bert.encoder.layer[:depth]] if depth else []

    def _freeze(self, depth: int) -> list[tuple[str, nn.Parameter]]:
        self.model.requires_grad_(True)
        for module in self._frozen(depth):
            module.requires_grad_(False)
        self.model.zero_grad()
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    def _train_mode(self, depth: int) -> None:
        self.model.train()
        for module in self._frozen(depth):
            module.eval()


def _groups(trained: list[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, object]]:
    decayed = [p for name, p in trained if p.ndim > 1 and not name.endswith("bias")]
    others = [p for name, p in trained if p.ndim <= 1 or name.endswith("bias")]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _factor(steps: int) -> Callable[[int], float]:
    warmup = round(WARMUP_RATIO * steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return max(0, steps - step) / max(1, steps - warmup)

    return factor
