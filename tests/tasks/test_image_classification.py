import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import confusion_matrix, top_k_accuracy_score
from transformers import ConvNextImageProcessorPil, ViTImageProcessorPil
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil

from rayft.config import DataConfig, Hyperparameters
from rayft.config_tasks import TASK_RULES
from rayft.data.encode import encode_splits
from rayft.data.encoded import EncodedData
from rayft.data.splits import Rows, Splits
from rayft.errors import DataError, ModelError
from rayft.tasks import get_task
from rayft.tasks.image_classification import IMAGES_PER_BATCH, open_image
from tests.conftest import IMAGE_SIZE
from tests.examples import LABEL_NAMES, encode, image, png, preprocessor_of, rows_of, splits_of
from tests.tasks.conftest import Faults, Load, collated, loss_of

TASK = get_task("image-classification")
CLASSES = ("cat", "dog")
SIZE = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}


@pytest.fixture
def images(folder: Path) -> dict[str, bytes]:
    """`cat/0.png` to `dog/2.png` under `images/`, by their path there."""
    draw = random.Random(0)
    files = {f"{label}/{number}.png": image(index, draw) for index, label in enumerate(CLASSES) for number in range(3)}
    for path, content in files.items():
        (folder / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / path).write_bytes(content)
    return files


def contents(rows: Rows) -> list[bytes]:
    return [one.read_bytes() if isinstance(one, Path) else one for one in rows.inputs["image"]]


def assert_read(splits: Splits, images: dict[str, bytes]) -> None:
    assert contents(splits.train) == list(images.values())
    assert splits.label_names == CLASSES
    assert isinstance(splits.train.labels, np.ndarray) and splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1]


def jpeg(pixels: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


# ---- rows


@pytest.mark.parametrize("name", ["images", "images/"])
def test_a_folder_of_class_folders(folder: Path, load: Load, images: dict[str, bytes], name: str) -> None:
    (folder / "images/cat/notes.txt").write_text("no image")
    (folder / "images/cat.png").write_bytes(b"in no class folder")
    assert_read(load("image-classification", name, validation=name), images)
    assert len(load("image-classification", name, validation=1 / 3).validation) == 2


def test_the_images_of_a_folder_are_unlabeled_rows(folder: Path, load: Load, images: dict[str, bytes]) -> None:
    splits = load("image-classification", "images", validation="images", unlabeled="images")
    assert splits.unlabeled is not None and splits.unlabeled.labels is None
    assert contents(splits.unlabeled) == list(images.values())


def test_a_folder_without_images(folder: Path, faults: Faults) -> None:
    (folder / "images/cat").mkdir(parents=True)
    (fault,) = faults("image-classification", "images")
    assert fault.startswith("images: data.train: must be a folder with a folder of images for each class (.bmp, ")


@pytest.mark.parametrize("working_directory", [".", "elsewhere"])
def test_paths_start_from_the_file_that_names_them(
    folder: Path, load: Load, images: dict[str, bytes], working_directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"{path},{path[:3]}\n" for path in images]
    lines[0] = f"{folder / 'images' / next(iter(images))},cat\n"  # an absolute one
    (folder / "images/rows.csv").write_text("file,label\n" + "".join(lines))
    (folder / working_directory).mkdir(exist_ok=True)
    monkeypatch.chdir(folder / working_directory)
    file = str(folder / "images/rows.csv")
    splits = load("image-classification", file, validation=file, columns={"image": "file"})
    assert_read(splits, images)


@pytest.mark.parametrize("kind", ["bytes", "struct of bytes", "struct of paths"])
def test_parquet(folder: Path, load: Load, images: dict[str, bytes], kind: str) -> None:
    cells: list[Any] = {
        "bytes": list(images.values()),
        "struct of bytes": [{"bytes": content, "path": path} for path, content in images.items()],
        "struct of paths": [{"bytes": None, "path": f"images/{path}"} for path in images],
    }[kind]
    pq.write_table(pa.table({"image": cells, "label": [path[:3] for path in images]}), folder / "rows.parquet")
    assert_read(load("image-classification", "rows.parquet", validation="rows.parquet"), images)


def test_a_corrupt_image_is_named(folder: Path, load: Load, faults: Faults, images: dict[str, bytes]) -> None:
    (folder / "images/cat/1.png").write_bytes(images["cat/1.png"][:200])
    (folder / "images/dog/0.png").write_bytes(b"")
    (fault,) = faults("image-classification", "images")
    assert "2 of 6 rows are bad: images/cat/1.png (unreadable image " in fault
    assert f"{folder / 'images/cat/1.png'})" in fault and f"{folder / 'images/dog/0.png'})" in fault
    splits = load("image-classification", "images", validation="images", on_bad_row="drop")
    assert len(splits.train) == 4
    assert splits.notes[0] == "train: left out 2 of 6 rows (2 unreadable image)"


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("cat/9.png", "no such file images/cat/9.png"),
        ("", "no image"),
        ("cat", "no such file images/cat"),
        ("x" * 5000, "no such file images/xxx"),
        ("rows.csv", "unreadable image images/rows.csv"),
    ],
)
def test_bad_paths(folder: Path, faults: Faults, images: dict[str, bytes], cell: str, reason: str) -> None:
    lines = "".join(f"{path},{path[:3]}\n" for path in images)
    (folder / "images/rows.csv").write_text(f"image,label\n{lines}{cell},cat\n")
    (fault,) = faults("image-classification", "images/rows.csv")
    assert f"1 of 7 rows are bad: images/rows.csv:8 ({reason}" in fault
    assert len(fault) < 600


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (b"no image", "bad: rows.parquet row 3 (unreadable image)"),
        (None, "bad: rows.parquet row 3 (no image)"),
        (png(np.zeros((4, 4, 3), np.uint8))[:40], "bad: rows.parquet row 3 (unreadable image)"),
    ],
)
def test_bad_bytes(folder: Path, faults: Faults, cell: bytes | None, reason: str) -> None:
    good = png(np.zeros((4, 4, 3), np.uint8))
    pq.write_table(pa.table({"image": [good, good, cell], "label": ["cat", "dog", "dog"]}), folder / "rows.parquet")
    assert reason in faults("image-classification", "rows.parquet")[0]


def test_cells_that_are_no_images_are_never_dropped(folder: Path, faults: Faults) -> None:
    (folder / "rows.jsonl").write_text('{"image": [[0, 1]], "label": "cat"}\n{"image": 3, "label": "dog"}\n')
    (fault,) = faults("image-classification", "rows.jsonl", on_bad_row="drop", validation="rows.jsonl")[:1]
    assert "an image must be a path or bytes, but is list" in fault and "but is int" in fault


def test_what_claims_too_many_pixels_is_bad() -> None:
    file = io.BytesIO()
    PIL.Image.new("RGB", (4, 4)).save(file, "BMP")
    claiming = bytearray(file.getvalue())
    claiming[18:26] = (200_000).to_bytes(4, "little") * 2  # width and height
    with pytest.raises(ValueError, match="pixels"):
        open_image(bytes(claiming))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_damage_of_any_kind_is_an_error_of_a_bad_row(kind: str) -> None:
    file, draw = io.BytesIO(), random.Random(0)
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(file, kind)
    opened = 0
    for _ in range(150):
        damaged = bytearray(file.getvalue())
        damaged = damaged[: draw.randrange(1, len(damaged))] if draw.random() < 0.3 else damaged
        for _ in range(draw.randint(0, 4)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        try:
            open_image(bytes(damaged))
            opened += 1
        except (OSError, ValueError, SyntaxError, ArithmeticError, LookupError):
            pass
    assert opened < 150


def test_label_faults(folder: Path, faults: Faults, images: dict[str, bytes]) -> None:
    (folder / "test/bird").mkdir(parents=True)
    (folder / "test/bird/0.png").write_bytes(images["cat/0.png"])
    (fault,) = faults("image-classification", "images", test="test")
    assert fault.startswith("test/bird/0.png: data.test: train lacks the label 'bird' (1 row in test)")
    (fault, *_) = faults("image-classification", "test")
    assert "must have at least 2 classes, but all 1 rows have the label 'bird'" in fault


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_images_of_any_mode_become_rgb(mode: str) -> None:
    file = io.BytesIO()
    picture = PIL.Image.new(mode, (3, 2))
    picture.save(file, "TIFF" if mode == "CMYK" else "PNG")
    opened = open_image(file.getvalue())
    assert (opened.mode, opened.size) == ("RGB", (3, 2))


def test_images_are_turned_as_the_camera_says() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    turned = np.asarray(open_image(jpeg(pixels, exif=exif)))
    assert turned.shape == (16, 8, 3)
    assert turned[:6].min() > 200 and turned[10:].max() < 50


# ---- what the model reads


@pytest.fixture
def data(tmp_path: Path) -> EncodedData:
    return encode(splits_of("image-classification"), tmp_path)


PROCESSORS = [
    ViTImageProcessorPil(size=SIZE),
    ViTImageProcessorPil(size=SIZE, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4]),
    ViTImageProcessorPil(size=SIZE, do_normalize=False),
    ViTImageProcessorPil(size=SIZE, do_rescale=False, do_normalize=False),
    ConvNextImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_pct=0.875),
    EfficientNetImageProcessorPil(size=SIZE),
    EfficientNetImageProcessorPil(size=SIZE, rescale_offset=True, include_top=False),
]


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda one: type(one).__name__)
def test_a_batch_is_what_the_processor_gives(tmp_path: Path, processor: Any) -> None:
    rows = rows_of("image-classification", 5, seed=1)
    splits = Splits("image-classification", rows, rows, None, None, LABEL_NAMES["image-classification"], ())
    encode_splits(splits, TASK, processor, DataConfig(train="train"), tmp_path)
    data = EncodedData.open(tmp_path)
    batch = collated(data, data.train, [4, 0, 2])
    expected = processor([open_image(rows.inputs["image"][row]) for row in (4, 0, 2)], return_tensors="pt")
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["pixel_values"].shape == (3, 3, IMAGE_SIZE, IMAGE_SIZE)
    torch.testing.assert_close(batch["pixel_values"], expected["pixel_values"].float(), rtol=1e-4, atol=1e-4)
    assert batch["labels"].tolist() == [1, 0, 2]


def test_rows_of_several_record_batches(tmp_path: Path) -> None:
    splits = splits_of("image-classification", train=IMAGES_PER_BATCH + 5)
    data = encode(splits, tmp_path)
    processor = preprocessor_of("image-classification")
    rows = [IMAGES_PER_BATCH - 1, IMAGES_PER_BATCH, IMAGES_PER_BATCH + 4]
    expected = processor([open_image(splits.train.inputs["image"][row]) for row in rows], return_tensors="pt")
    torch.testing.assert_close(collated(data, data.train, rows)["pixel_values"], expected["pixel_values"])


def test_a_processor_that_does_more_is_refused(tmp_path: Path) -> None:
    class Inverting(ViTImageProcessorPil):  # type: ignore[misc]
        def normalize(self, image: np.ndarray, *args: Any, **kwargs: Any) -> np.ndarray:
            inverted: np.ndarray = -super().normalize(image, *args, **kwargs)
            return inverted

    with pytest.raises(ModelError, match="must only resize, cut, scale and shift"):
        TASK.facts(Inverting(size=SIZE), DataConfig(train="train"), splits_of("image-classification").train)


def test_images_of_unlike_shapes_are_refused(tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = Rows({"image": [image(0, draw), image(1, draw, (24, 20))]}, np.array([0, 1]))
    splits = Splits("image-classification", rows, rows, None, None, LABEL_NAMES["image-classification"], ())
    processor = ViTImageProcessorPil(do_resize=False)
    with pytest.raises(DataError, match=r"row 2: the image processor must make all images alike"):
        encode_splits(splits, TASK, processor, DataConfig(train="train"), tmp_path)


def test_a_row_counts_as_a_token_for_each_patch(data: EncodedData) -> None:
    assert TASK.row_tokens(data) == 1
    assert data.train.lengths.tolist() == [1] * len(data.train)
    data.facts["shape"] = [3, 224, 224]
    assert TASK.row_tokens(data) == 196


def test_raw_rows_are_the_files(tmp_path: Path, images: dict[str, bytes]) -> None:
    paths = [tmp_path / "images" / path for path in images]
    raw = TASK.raw(Rows({"image": [*paths, b"bytes"]}, np.zeros(7, dtype=np.int64)))
    assert raw["image"].to_pylist() == [*images.values(), b"bytes"]


# ---- loss and scores


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_cross_entropy(data: EncodedData, smoothing: float) -> None:
    logits, labels = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 2, 1, 0])
    expected = torch.nn.CrossEntropyLoss(label_smoothing=smoothing, reduction="sum")(logits, labels)
    assert loss_of(data, logits, labels, label_smoothing=smoothing) == pytest.approx(float(expected))


def test_balanced_classes(tmp_path: Path) -> None:
    rows = rows_of("image-classification", 12, seed=0).taken(np.array([0, 3, 6, 9, 1, 4, 2]))
    splits = Splits("image-classification", rows, rows, None, None, LABEL_NAMES["image-classification"], ())
    data = encode(splits, tmp_path, class_weights="balanced")
    weights = data.facts["class_weights"]
    assert weights == pytest.approx([7 / 12, 7 / 6, 7 / 3])
    assert TASK.row_weights(data.train, data) == pytest.approx([weights[label] for label in (0, 0, 0, 0, 1, 1, 2)])
    logits, labels = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 0, 0, 1, 1, 2])
    mean = torch.nn.CrossEntropyLoss(weight=torch.tensor(weights))(logits, labels)
    found = loss_of(data, logits, labels) / TASK.row_weights(data.train, data).sum()
    assert found == pytest.approx(float(mean))


@pytest.mark.parametrize("classes", [3, 6, 12])
def test_metrics_are_scikit_learns(data: EncodedData, classes: int) -> None:
    generator = np.random.default_rng(classes)
    split = data.validation
    split.labels = generator.integers(0, classes, 60)
    outputs = generator.normal(size=(60, classes)).astype(np.float32)
    metrics = TASK.metrics(outputs, split, data)
    assert set(metrics) == set(TASK_RULES["image-classification"].metrics)
    every = np.arange(classes)
    expected = top_k_accuracy_score(split.labels, outputs, k=5, labels=every) if classes > 5 else 1.0
    assert metrics["top5_accuracy"] == pytest.approx(expected)
    assert classes <= 5 or 0.2 < expected < 1
    counts = confusion_matrix(split.labels, outputs.argmax(axis=1), labels=every)
    assert TASK.confusion(outputs, split, data).tolist() == counts.tolist()  # type: ignore[union-attr]


def test_augmentation_is_off_unless_asked_for(data: EncodedData) -> None:
    assert not TASK.augments(Hyperparameters())
    rows = np.arange(4)
    plain = TASK.collate(data.train, rows, data)["pixel_values"]
    assert torch.equal(TASK.collate(data.train, rows, data, Hyperparameters())["pixel_values"], plain)
    for hp in (Hyperparameters(flip=True), Hyperparameters(crop=0.5), Hyperparameters(randaugment=9)):
        random.seed(0)
        assert TASK.augments(hp)
        changed = TASK.collate(data.train, rows, data, hp)["pixel_values"]
        assert changed.shape == plain.shape and not torch.equal(changed, plain)
        assert torch.equal(TASK.collate(data.train, rows, data)["pixel_values"], plain), "the file is as it was"
