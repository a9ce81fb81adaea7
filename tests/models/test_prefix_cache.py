import copy
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import nn
from transformers import (
    BioGptConfig,
    BioGptForSequenceClassification,
    DebertaV2ForSequenceClassification,
    FNetConfig,
    FNetForSequenceClassification,
    LongformerConfig,
    LongformerForSequenceClassification,
    PreTrainedModel,
)

from rayft.cache_folder import cache_folder
from rayft.config import TaskName
from rayft.data.encoded import EncodedData, EncodedSplit
from rayft.data.splits import Rows
from rayft.models import prefix_build
from rayft.models.layers import map_layers
from rayft.models.prefix_build import Costs, PrefixBuilder, check_pays
from rayft.models.prefix_cache import MIN_SPEEDUP, Fingerprints, PrefixCache
from rayft.models.prefix_files import NoCacheError, PrefixFeatures, PrefixWriter
from rayft.models.prefix_input import PrefixInput, block_output
from rayft.tasks import get_task
from tests.conftest import FAMILIES, NUM_BLOCKS, WORDS, tiny_layers, tiny_model, tiny_tokenizer
from tests.examples import base_model as example_model
from tests.examples import encode, splits_of
from tests.texts import encode_texts, text_rows, text_splits, token_inputs_of

CPU = torch.device("cpu")
PLENTY = 10**9
SPAWN = multiprocessing.get_context("spawn")


def rows(count: int, seed: int) -> Rows:
    draw = np.random.default_rng(seed)
    texts = [" ".join(draw.choice(WORDS, size=draw.integers(1, 12))) for _ in range(count)]
    return text_rows(texts, labels=np.arange(count) % 3)


SPLITS = text_splits(rows(40, 1), rows(20, 2), label_names=("a", "b", "c"))


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoded")
    encode_texts(SPLITS, tiny_tokenizer(), 32, folder)
    return folder


@pytest.fixture(scope="module")
def data(encoded: Path) -> EncodedData:
    return EncodedData.open(encoded)


@pytest.fixture
def split(data: EncodedData) -> EncodedSplit:
    return data.train


def base_model(family: str = "bert") -> PreTrainedModel:
    model = tiny_model(family).eval()
    model.config.pad_token_id = 0
    return model


def cache_of(folder: Path, model: PreTrainedModel | None = None, **changes: Any) -> PrefixCache:
    """A cache of the tiny BERT, or of another tiny model, that always pays."""
    model = base_model() if model is None else model
    settings = {"budget_bytes": PLENTY, "device": CPU, "min_speedup": 0.0, **changes}
    return PrefixCache(model, map_layers(model), token_inputs_of, folder, **settings)


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.exists() else []


def outputs(model: PreTrainedModel, split: EncodedSplit, depth: int) -> list[torch.Tensor]:
    """What the first blocks give for each row by itself."""
    inputs = [token_inputs_of(split, np.array([row])) for row in range(len(split))]
    with torch.no_grad():
        return [
            block_output(model, map_layers(model), depth, {k: v for k, v in batch.items() if k != "labels"})[0]
            for batch in inputs
        ]


def assert_holds(features: PrefixFeatures | None, expected: list[torch.Tensor]) -> None:
    assert features is not None
    found = features.batch(np.arange(len(expected)), max(map(len, expected)))
    torch.testing.assert_close(found, nn.utils.rnn.pad_sequence(expected, batch_first=True), rtol=1e-5, atol=2e-6)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was logged, since last asked."""
    caplog.set_level(logging.INFO, "rayft.models.prefix_cache")

    def messages() -> list[str]:
        found = [record.getMessage() for record in caplog.records if record.name.startswith("rayft")]
        caplog.clear()
        return found

    return messages


@pytest.mark.parametrize("depth", range(1, NUM_BLOCKS + 1))
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_without_the_cache(tmp_path: Path, data: EncodedData, family: str, depth: int) -> None:
    model = base_model(family)
    cache = cache_of(tmp_path, model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    prefix = PrefixInput(model, tiny_layers(family), depth)
    for split in (data.train, data.validation):
        features = cache.features(split, depth, wait=True)
        assert features is not None
        picked = np.array([7, 3, 12])
        inputs = token_inputs_of(split, picked)
        with torch.no_grad():
            expected = model(**inputs).logits
            with prefix.feeding(features.batch(picked, inputs["input_ids"].shape[1])):
                torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(torch.get_rng_state(), generator), "later draws are those without the cache"
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_nothing_is_frozen_at_depth_0(tmp_path: Path, split: EncodedSplit) -> None:
    assert cache_of(tmp_path).features(split, 0, wait=True) is None
    assert entries(tmp_path) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_deeper_starts_from_shallower(
    tmp_path: Path, split: EncodedSplit, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sources = base_model(family), []
    build = PrefixBuilder.build

    def noting(self: PrefixBuilder, split: EncodedSplit, depth: int, source: PrefixFeatures | None, *rest: Any) -> None:
        sources.append(source and source.depth)
        build(self, split, depth, source, *rest)

    monkeypatch.setattr(PrefixBuilder, "build", noting)
    for depth in (1, 3, 2):
        assert_holds(cache_of(tmp_path, model).features(split, depth, wait=True), outputs(model, split, depth))
    assert sources == [None, 1, 1]


def test_a_file_is_computed_once_and_opened_once(
    tmp_path: Path, split: EncodedSplit, log: Callable[[], list[str]]
) -> None:
    cache = cache_of(tmp_path)
    features = cache.features(split, 2, wait=False)
    assert [message.partition(":")[0] for message in log()] == ["Cached train behind 2 frozen blocks"]
    assert cache.features(split, 2, wait=False) is features
    assert_holds(cache_of(tmp_path).features(split, 2, wait=False), outputs(base_model(), split, 2))
    assert log() == [] and len(entries(tmp_path)) == 1


def test_small_batches_after_lack_of_memory(
    tmp_path: Path, split: EncodedSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def short_of_memory(model: Any, layers: Any, depth: int, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 10:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
        return block_output(model, layers, depth, inputs)

    monkeypatch.setattr(prefix_build, "block_output", short_of_memory)
    assert_holds(cache_of(tmp_path).features(split, 1, wait=True), outputs(base_model(), split, 1))
    assert sizes[-7:] == [40, 20, 10, 10, 20, 10, 10]


def test_an_error_that_stays_is_logged_once(
    tmp_path: Path, split: EncodedSplit, log: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fail(self: PrefixWriter, *_: Any) -> None:
        calls.append(1)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PrefixWriter, "write", fail)
    cache = cache_of(tmp_path)
    assert [cache.features(split, 1, wait=True) for _ in range(3)] == [None] * 3
    expected = "No cache of train behind 1 frozen blocks: OSError: [Errno 28] No space left on device"
    assert (log(), len(calls), entries(tmp_path)) == ([expected], 1, [])


def test_a_folder_that_can_not_be_made(tmp_path: Path, split: EncodedSplit, log: Callable[[], list[str]]) -> None:
    (tmp_path / "file").touch()
    assert cache_of(tmp_path / "file" / "cache").features(split, 1, wait=True) is None
    assert "NotADirectoryError" in log()[0]


def test_more_than_the_budget(tmp_path: Path, split: EncodedSplit, log: Callable[[], list[str]]) -> None:
    needed = int(split.lengths.sum()) * 32 * 4
    assert cache_of(tmp_path, budget_bytes=needed - 1).features(split, 1, wait=True) is None
    assert "and the budget is 0.00 GB" in log()[0] and entries(tmp_path) == []
    assert cache_of(tmp_path, budget_bytes=needed).features(split, 1, wait=True) is not None


def test_a_truncated_file_is_computed_again(tmp_path: Path, split: EncodedSplit) -> None:
    assert cache_of(tmp_path).features(split, 1, wait=True) is not None
    os.truncate(next(tmp_path.glob("*/values.bin")), 100)
    assert_holds(cache_of(tmp_path).features(split, 1, wait=True), outputs(base_model(), split, 1))


@pytest.mark.parametrize("family", FAMILIES)
def test_autocast_is_that_of_training(tmp_path: Path, split: EncodedSplit, family: str) -> None:
    model = base_model(family)
    features = cache_of(tmp_path, model, autocast=torch.bfloat16).features(split, 2, wait=True)
    assert features is not None
    inputs = token_inputs_of(split, np.arange(8))
    real = inputs["attention_mask"].bool()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = block_output(model, tiny_layers(family), 2, inputs)
        logits = model(**inputs).logits
        found = features.batch(np.arange(8), real.shape[1])
        with PrefixInput(model, tiny_layers(family), 2).feeding(found):
            fed_logits = model(**inputs).logits
    assert found.dtype == expected.dtype == features.shape.dtype
    torch.testing.assert_close(found[real], expected[real], rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(fed_logits, logits, rtol=2e-2, atol=2e-2)


def test_half_precision_is_stored_as_such(tmp_path: Path, split: EncodedSplit) -> None:
    model = base_model().to(torch.bfloat16)
    features = cache_of(tmp_path, model, budget_bytes=int(split.lengths.sum()) * 32 * 2).features(split, 1, wait=True)
    assert features is not None, "it fits"
    assert features.batch(np.array([0]), 32).dtype == torch.bfloat16


# What pays.


def test_what_does_not_pay_leaves_nothing(tmp_path: Path, split: EncodedSplit, log: Callable[[], list[str]]) -> None:
    cache = cache_of(tmp_path, min_speedup=1e9)
    assert [cache.features(split, 1, wait=True) for _ in range(2)] == [None] * 2
    (message,) = log()
    assert "it doesn't pay" in message and "to compute" in message and "to read" in message
    assert entries(tmp_path) == []


def test_the_fastest_passes_decide() -> None:
    costs = [Costs(forward=9.0, read=1.0), Costs(forward=1.6, read=3.0)]
    check_pays(costs, MIN_SPEEDUP)
    with pytest.raises(NoCacheError, match="doesn't pay"):
        check_pays([*costs, Costs(forward=1.4, read=5.0)], MIN_SPEEDUP)


# Architectures whose frozen blocks don't always give the same.

TINY = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}


def mixing_padding() -> PreTrainedModel:
    return FNetForSequenceClassification(FNetConfig(**TINY))


def with_another_length() -> PreTrainedModel:
    return LongformerForSequenceClassification(LongformerConfig(**TINY, num_attention_heads=2, attention_window=16))


def with_dropout_between_blocks() -> PreTrainedModel:
    config = FAMILIES["deberta-v2"]()
    config.conv_kernel_size, config.conv_act = 3, "gelu"
    return DebertaV2ForSequenceClassification(config)


def with_dropout_that_is_no_module() -> PreTrainedModel:
    return BioGptForSequenceClassification(BioGptConfig(**TINY, num_attention_heads=2))


def with_batch_norm() -> PreTrainedModel:
    model = tiny_model("bert")
    model.bert.encoder.layer[0].output.LayerNorm = Rotated(nn.BatchNorm1d(32))
    return model


class Rotated(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.norm(hidden.transpose(1, 2)).transpose(1, 2)


REFUSALS = {
    mixing_padding: "doesn't give the same logits",
    with_another_length: "must give one vector per token",
    with_dropout_between_blocks: "drops out in training",
    with_dropout_that_is_no_module: "drops out in training",
}


@pytest.mark.parametrize("build", REFUSALS, ids=lambda build: build.__name__)
def test_an_architecture_that_does_not_fit(
    build: Callable[[], PreTrainedModel], tmp_path: Path, split: EncodedSplit, log: Callable[[], list[str]]
) -> None:
    torch.manual_seed(0)
    model = build().eval()
    for parameter in model.parameters():  # as far from 0 as trained ones are
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    model.config.pad_token_id = 0
    assert cache_of(tmp_path, model).features(split, 2, wait=True) is None
    assert REFUSALS[build] in log()[0] and entries(tmp_path) == []
    assert not any(module.training for module in model.modules())


def test_frozen_batch_norm_keeps_its_statistics(tmp_path: Path, split: EncodedSplit) -> None:
    model = with_batch_norm().eval()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert cache_of(tmp_path, model).features(split, 2, wait=True) is not None
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_dropout_after_the_frozen_blocks_does_no_harm(tmp_path: Path, split: EncodedSplit) -> None:
    assert cache_of(tmp_path, with_dropout_between_blocks().eval()).features(split, 1, wait=True) is not None


# Fingerprints.


def fingerprint(
    split: EncodedSplit, depth: int = 2, change: Callable[[PreTrainedModel], object] | None = None, **context: Any
) -> str:
    model = base_model()
    if change:
        change(model)
    settings = {"device": CPU, "autocast": None, **context}
    return Fingerprints(model, tiny_layers("bert"), **settings).of(split, depth)


def add_one(name: str) -> Callable[[PreTrainedModel], object]:
    return lambda model: model.get_parameter(name).data.view(-1)[-1].add_(1.0)


UPPER = "bert.encoder.layer.2.output.dense.weight"


@pytest.mark.parametrize(
    "change",
    [
        add_one(UPPER),
        add_one("classifier.weight"),
        lambda model: model.config.id2label.update({0: "other"}),
        lambda model: setattr(model.config, "_name_or_path", "elsewhere"),
        lambda model: None,
    ],
)
def test_what_is_not_of_the_prefix_does_not_count(
    encoded: Path, split: EncodedSplit, change: Callable[[PreTrainedModel], object]
) -> None:
    assert fingerprint(EncodedData.open(encoded).train, change=change) == fingerprint(split)


def test_all_that_is_of_the_prefix_counts(data: EncodedData, tmp_path: Path) -> None:
    split, other_split = data.train, data.validation
    tokenizer = tiny_tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    encode_texts(SPLITS, tokenizer, 32, tmp_path)
    with_types = EncodedData.open(tmp_path).train
    assert "token_type_ids" in with_types.columns and "token_type_ids" not in split.columns
    found = [
        fingerprint(split),
        fingerprint(split, depth=1),
        fingerprint(split, depth=3),
        fingerprint(split, depth=3, change=add_one(UPPER)),
        fingerprint(other_split),
        fingerprint(with_types),
        fingerprint(split, autocast=torch.bfloat16),
        fingerprint(split, device=torch.device("cuda")),
        fingerprint(split, change=add_one("bert.encoder.layer.1.output.dense.weight")),
        fingerprint(split, change=add_one("bert.embeddings.word_embeddings.weight")),
        fingerprint(split, change=lambda model: model.bert.embeddings.position_ids.add_(1)),
        fingerprint(split, change=lambda model: setattr(model.config, "layer_norm_eps", 1e-3)),
        fingerprint(split, change=lambda model: setattr(model.config, "_attn_implementation", "eager")),
        fingerprint(split, change=lambda model: model.to(torch.bfloat16)),
    ]
    assert len(set(found)) == len(found)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAYFT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder("prefix") == Path("/home/someone/.cache/rayft/prefix")
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch")
    assert cache_folder("prefix") == Path("/scratch/rayft/prefix")
    monkeypatch.setenv("RAYFT_CACHE", "/fast")
    assert cache_folder("prefix") == Path("/fast/prefix")


# Several processes.


def test_one_that_does_not_wait_goes_on_without(
    tmp_path: Path, split: EncodedSplit, log: Callable[[], list[str]]
) -> None:
    cache = cache_of(tmp_path)
    name = Fingerprints(base_model(), tiny_layers("bert"), CPU, None).of(split, 1)
    with FileLock(tmp_path / f"{name}.lock"):
        assert [cache.features(split, 1, wait=False) for _ in range(2)] == [None] * 2
    assert log() == ["Another process computes the cache of train behind 1 frozen blocks"]
    assert cache.features(split, 1, wait=False) is not None


def build_together(encoded: Path, folder: Path, meeting: Any, written: Any) -> torch.Tensor:
    """What this process reads; adds the rows that it wrote itself to `written`."""
    cache, split, write = cache_of(folder), EncodedData.open(encoded).train, PrefixWriter.write

    def counting(self: PrefixWriter, rows: np.ndarray, hidden: torch.Tensor) -> None:
        with written.get_lock():
            written.value += len(rows)
        write(self, rows, hidden)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PrefixWriter, "write", counting)
        meeting.wait(timeout=300)
        features = cache.features(split, 2, wait=True)
    assert features is not None
    return features.batch(np.arange(len(split)), 32)


def test_two_processes_at_once_compute_once(tmp_path: Path, encoded: Path, split: EncodedSplit) -> None:
    meeting, written = SPAWN.Barrier(2), SPAWN.Value("i", 0)
    process = SPAWN.Process(target=build_together, args=(encoded, tmp_path, meeting, written), daemon=True)
    process.start()
    found = build_together(encoded, tmp_path, meeting, written)
    process.join()
    assert (process.exitcode, written.value, len(entries(tmp_path))) == (0, len(split), 1)
    torch.testing.assert_close(found, cache_of(tmp_path).features(split, 2, wait=True).batch(np.arange(40), 32))


def hang_after_one_batch(encoded: Path, folder: Path) -> None:
    write = PrefixWriter.write

    def hanging(self: PrefixWriter, rows: np.ndarray, hidden: torch.Tensor) -> None:
        write(self, rows, hidden)
        (folder / "written").touch()
        time.sleep(600)

    PrefixWriter.write = hanging
    cache_of(folder).features(EncodedData.open(encoded).train, 1, wait=True)


def test_nothing_of_a_killed_process_counts(tmp_path: Path, encoded: Path, split: EncodedSplit) -> None:
    process = SPAWN.Process(target=hang_after_one_batch, args=(encoded, tmp_path))
    process.start()
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "written").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert cache_of(tmp_path).features(split, 1, wait=False) is None
        assert [path.name for path in tmp_path.glob("*/*")] == ["values.tmp"]
    finally:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    other = cache_of(tmp_path).features(split, 2, wait=True)
    assert other is not None and len(entries(tmp_path)) == 1
    assert_holds(cache_of(tmp_path).features(split, 1, wait=False), outputs(base_model(), split, 1))


def test_the_base_model_can_be_copied_while_features_are_open(tmp_path: Path, split: EncodedSplit) -> None:
    model = base_model()
    assert cache_of(tmp_path, model).features(split, 1, wait=True) is not None
    copy.deepcopy(model)


def test_a_process_gives_up_what_its_last_trial_read(tmp_path: Path, split: EncodedSplit) -> None:
    """Else a process that has trained other trials would have no cache where a new one has."""
    cache = cache_of(tmp_path, budget_bytes=int(split.lengths.sum()) * 32 * 4)
    for depth in (1, 2, 1):
        assert_holds(cache.features(split, depth, wait=True), outputs(base_model(), split, depth))
        assert len(entries(tmp_path)) == 1


def test_a_lack_of_room_is_not_for_good(tmp_path: Path, split: EncodedSplit) -> None:
    budget = int(split.lengths.sum()) * 32 * 4
    other = cache_of(tmp_path, budget_bytes=budget).features(split, 1, wait=True)
    cache = cache_of(tmp_path, budget_bytes=budget)
    assert other is not None and cache.features(split, 2, wait=True) is None
    del other
    assert cache.features(split, 2, wait=True) is not None


OTHERS: list[tuple[TaskName, str]] = [
    ("image-classification", "resnet"),
    ("image-classification", "vit"),
    ("image-classification", "efficientnet"),
    ("image-classification", "mobilenet-v2"),
    ("token-classification", "bert"),
    ("causal-lm", "gpt2"),
    ("causal-lm", "llama"),
]


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(("task", "family"), OTHERS)
def test_other_tasks_have_the_logits_without_the_cache(
    tmp_path: Path, task: TaskName, family: str, depth: int, log: Callable[[], list[str]]
) -> None:
    data = encode(splits_of(task), tmp_path / "encoded")
    model, chosen = example_model(data, family), get_task(task)
    layers = map_layers(model)

    def collate(split: EncodedSplit, rows: np.ndarray) -> dict[str, torch.Tensor]:
        return chosen.collate(split, rows, data)

    cache = PrefixCache(model, layers, collate, tmp_path / "cache", PLENTY, CPU, min_speedup=0.0)
    features = cache.features(data.train, depth, wait=True)
    assert features is not None, log()
    rows = np.array([7, 3, 12])
    inputs = {name: tensor for name, tensor in collate(data.train, rows).items() if name != "labels"}
    length = int(data.train.lengths[rows].max())
    prefix, hidden = PrefixInput(model, layers, depth), features.batch(rows, length)
    with torch.no_grad():
        expected = model(**inputs).logits
        again = block_output(model, layers, depth, inputs)
        with prefix.feeding(hidden):
            found = model(**inputs).logits
    if task == "image-classification":
        torch.testing.assert_close(hidden, again, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        return
    real = torch.from_numpy(np.arange(length) < data.train.lengths[rows][:, None])  # padding isn't kept
    torch.testing.assert_close(hidden[real], again[real], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[real], expected[real], rtol=1e-5, atol=1e-5)


def test_images_are_not_computed_again_from_their_pixels(tmp_path: Path) -> None:
    data = encode(splits_of("image-classification"), tmp_path / "encoded")
    model = example_model(data, "resnet")
    layers = map_layers(model)
    stem = []
    model.get_submodule("resnet.embedder.embedder.convolution").register_forward_hook(lambda *_: stem.append(1))
    collate = get_task("image-classification").collate
    cache = PrefixCache(
        model, layers, lambda split, rows: collate(split, rows, data), tmp_path, PLENTY, CPU, min_speedup=0.0
    )
    features = cache.features(data.train, 2, wait=True)
    assert features is not None and features.shape.row == (16, 2, 2)
    prefix, computed = PrefixInput(model, layers, 2), len(stem)
    rows = np.arange(4)
    with torch.no_grad(), prefix.feeding(features.batch(rows, 1)):
        model(pixel_values=collate(data.train, rows, data)["pixel_values"])
    assert len(stem) == computed, "not even the convolution before the first block"


def test_labels_and_targets_make_no_other_cache(tmp_path: Path) -> None:
    splits = splits_of("token-classification")
    first = encode(splits, tmp_path / "first")
    assert isinstance(splits.train.labels, list)
    splits.train.labels[0] = [0] * len(splits.train.labels[0])
    second = encode(splits, tmp_path / "second")
    model = example_model(first)
    names = Fingerprints(model, map_layers(model), CPU, None)
    assert names.of(first.train, 1) == names.of(second.train, 1) != names.of(first.validation, 1)
