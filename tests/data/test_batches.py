from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from rayft.data.batches import eval_batches, shard, token_inputs, train_batches
from rayft.data.encoded import EncodedData
from tests.texts import TEXTS, encode_texts, text_rows, text_splits

LENGTHS = np.random.default_rng(0).integers(3, 129, size=2003)


def every(batches: list[NDArray[np.int64]]) -> list[int]:
    return sorted(np.concatenate(batches).tolist())


def padded_tokens(batches: list[NDArray[np.int64]]) -> int:
    return sum(len(batch) * int(LENGTHS[batch].max()) for batch in batches)


@pytest.mark.parametrize(("rows", "batch_size"), [(2003, 16), (2003, 1), (2000, 16), (7, 16), (1, 1)])
def test_every_row_once_and_only_the_last_batch_smaller(rows: int, batch_size: int) -> None:
    batches = train_batches(LENGTHS[:rows], batch_size, seed=0, epoch=1)
    assert every(batches) == list(range(rows))
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}
    assert len(batches) == -(-rows // batch_size)


def test_a_pure_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        np.random.random()  # the global state must not matter
        return np.concatenate(train_batches(LENGTHS, 16, seed, epoch)).tolist()

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6


def test_batches_hold_rows_of_similar_length_in_no_order() -> None:
    batches = train_batches(LENGTHS, 16, seed=0, epoch=1)
    assert padded_tokens(batches) < 1.12 * LENGTHS.sum()
    longest = np.array([LENGTHS[batch].max() for batch in batches])
    assert abs(np.corrcoef(longest[:-1], longest[1:])[0, 1]) < 0.3


def test_many_batches_have_little_padding_and_few_are_mixed_well() -> None:
    lengths = np.random.default_rng(1).integers(3, 129, size=16 * 600)
    many = train_batches(lengths, 16, seed=0, epoch=1)
    assert sum(len(batch) * int(lengths[batch].max()) for batch in many) < 1.03 * lengths.sum()
    few = train_batches(LENGTHS[: 16 * 41], 16, seed=0, epoch=1)
    spread = np.mean([LENGTHS[batch].std() for batch in few])
    assert spread > 0.15 * LENGTHS.std(), "a batch is not of one length only"
    assert all(LENGTHS[batch].std() > 0 for batch in train_batches(LENGTHS[:64], 16, seed=0, epoch=1))


def test_the_smaller_last_batch_is_not_always_the_longest_rows() -> None:
    lasts = np.concatenate([train_batches(LENGTHS, 16, seed=0, epoch=epoch)[-1] for epoch in range(200)])
    assert LENGTHS[lasts].mean() == pytest.approx(LENGTHS.mean(), rel=0.1)


def test_eval_batches_hold_every_row_within_the_budget_longest_first() -> None:
    batches = eval_batches(LENGTHS, 1024)
    assert every(batches) == list(range(len(LENGTHS)))
    assert all(len(batch) * LENGTHS[batch].max() <= 1024 for batch in batches)
    assert padded_tokens(batches) < 1.06 * LENGTHS.sum()
    assert LENGTHS[batches[0][0]] == LENGTHS.max()
    assert len(batches) < 1.15 * LENGTHS.sum() / 1024


def test_eval_rows_longer_than_the_budget_go_alone() -> None:
    batches = eval_batches(np.array([4, 9, 2, 8]), 6)
    assert [batch.tolist() for batch in batches] == [[1], [3], [0], [2]]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_shards_are_a_partition_and_even(world_size: int) -> None:
    indices = np.arange(100, 105)
    shards = [shard(indices, rank, world_size) for rank in range(world_size)]
    assert every(shards) == indices.tolist()
    sizes = [len(part) for part in shards]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("rows", [100, 96, 7])
def test_stratified_batches_have_their_share_of_every_class(rows: int) -> None:
    classes = np.random.default_rng(0).permutation(np.array([0] * (rows - rows // 8) + [1] * (rows // 8)))
    lengths = np.arange(1, rows + 1)
    batches = train_batches(lengths, 16, seed=0, epoch=1, classes=classes)
    assert every(batches) == list(range(rows))
    assert [len(batch) for batch in batches[:-1]] == [16] * (len(batches) - 1)
    share = 16 * (rows // 8) / rows
    assert all(abs(classes[batch].sum() - share) <= 1 for batch in batches if len(batch) == 16)
    again, other = (train_batches(lengths, 16, seed=0, epoch=epoch, classes=classes) for epoch in (1, 2))
    assert all(np.array_equal(one, two) for one, two in zip(batches, again, strict=True))
    assert not all(np.array_equal(one, two) for one, two in zip(batches, other, strict=True))


@pytest.fixture
def encoded(tmp_path: Path, bare_tokenizer: PreTrainedTokenizerBase) -> EncodedData:
    rows = text_rows(["one", "two three four", "five one"], None, np.array([1, 0, 1]))
    encode_texts(text_splits(rows, rows, unlabeled=text_rows(["one"])), bare_tokenizer, 8, tmp_path)
    return EncodedData.open(tmp_path)


def test_collate_pads_on_the_right_to_the_longest(encoded: EncodedData) -> None:
    batch = TEXTS.collate(encoded.train, np.array([2, 1]), replace(encoded, pad_token_id=9))
    assert batch["input_ids"].tolist() == [[5, 1, 9], [2, 3, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["labels"].tolist() == [1, 0]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert token_inputs(encoded.train, np.array([0]), 9)["input_ids"].tolist() == [[1]]


def test_collate_without_labels(encoded: EncodedData) -> None:
    assert encoded.unlabeled is not None
    assert set(TEXTS.collate(encoded.unlabeled, np.array([0]), encoded)) == {"input_ids", "attention_mask"}


def test_collate_equals_the_tokenizers_own_padding(tmp_path: Path, bert_tokenizer: PreTrainedTokenizerBase) -> None:
    texts, pairs = ["a text", "another, longer text", "x"], ["pair", "p", "the longest of all of the pairs here"]
    rows = text_rows(texts, pairs, np.array([0, 1, 0]))
    encode_texts(text_splits(rows, rows), bert_tokenizer, 32, tmp_path)
    assert isinstance(bert_tokenizer.pad_token_id, int)
    data = EncodedData.open(tmp_path)
    batch = TEXTS.collate(data.train, np.array([0, 1, 2]), data)
    expected = bert_tokenizer(texts, pairs, padding=True, return_tensors="pt")
    assert set(batch) == {*expected, "labels"}
    for name, tensor in expected.items():
        assert torch.equal(batch[name], tensor)
