"""One class for each image."""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayft.config import Columns, DataConfig, Hyperparameters
from rayft.data.cells import BadRow, is_missing
from rayft.data.encoded import EncodedData, EncodedSplit
from rayft.data.formats import Part
from rayft.data.load import SplitName
from rayft.data.splits import Rows
from rayft.errors import DataError, Fault, ModelError
from rayft.tasks.base import Encoded, Preprocessor, batches
from rayft.tasks.classes import ClassTask

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

IMAGES_PER_BATCH = 256
"""That are read together and become one record batch."""
PATCH = 16 * 16
"""Pixels that count as one token where work is measured out."""
TOP = 5
LONGEST_SHOWN = 200
"""Characters of a path, which may be anything but one."""
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class ImageClassification(ClassTask):
    """One class for each image.

    Images go through the model's own image processor once, up to its last step: what it resizes and cuts is kept as
    bytes, and scaled to what the model reads when a batch is made.
    """

    name = "image-classification"
    pipeline = "image-classification"
    auto_class = "AutoModelForImageClassification"
    model_types = "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES"
    preprocessor = "image processor"

    def input_columns(self, columns: Columns) -> dict[str, str]:
        """See `Task.input_columns`."""
        return {"image": columns.image}

    def label_columns(self, columns: Columns) -> tuple[str, ...]:
        """See `Task.label_columns`."""
        return (columns.label,) if isinstance(columns.label, str) else columns.label[:1]

    def read_folder(self, folder: Path, name: str, wanted: Sequence[str], split: SplitName) -> Part:
        """See `Task.read_folder`: a folder of class folders, or of images alone for unlabeled rows."""
        labelled = len(wanted) > 1
        pattern = "*/*" if labelled else "**/*"
        files = sorted(path for path in folder.glob(pattern) if path.suffix.lower() in SUFFIXES and path.is_file())
        if not files:
            kind = "a folder with a folder of images for each class" if labelled else "a folder of images"
            rule = f"must be {kind} ({', '.join(SUFFIXES)}), but has none"
            raise DataError([Fault(name, rule, f"data.{split}")])
        cells: dict[str, list[Any]] = {wanted[0]: [str(path.absolute()) for path in files]}
        if labelled:
            cells[wanted[1]] = [path.parent.name for path in files]
        places = [f"{name.rstrip('/')}/{path.relative_to(folder)}" for path in files]
        return Part(name, tuple(cells), cells, range(1, len(files) + 1), by_line=False, folder=folder, places=places)

    def read_inputs(self, cells: Sequence[Any], part: Part) -> tuple[Any, ...]:
        """See `Task.read_inputs`; the image's path, or its bytes."""
        cell = cells[0]
        if isinstance(cell, dict):  # as data sets of the hub have it
            cell = cell.get("bytes") or cell.get("path")
        if is_missing(cell):
            raise BadRow("no image")
        if not isinstance(cell, str | bytes):
            raise BadRow(f"an image must be a path or bytes, but is {type(cell).__name__}", droppable=False)
        image: Path | bytes = cell if isinstance(cell, bytes) else (part.folder or Path()) / cell
        name = f"{image}" if isinstance(image, Path) else ""
        if isinstance(image, Path) and not _is_file(image):
            raise BadRow("no such file", name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}...")
        try:
            open_image(image)
        except (OSError, ValueError, SyntaxError, ArithmeticError, LookupError) as error:
            raise BadRow("unreadable image", name) from error
        return (image,)

    def facts(self, preprocessor: Preprocessor, config: DataConfig, train: Rows) -> dict[str, Any]:
        """See `Task.facts`: the images' shape, and how bytes become what the model reads.

        Raises:
            ModelError: The image processor does more than resize, cut, scale and shift.
        """
        image = open_image(train.inputs["image"][0])
        whole = np.asarray(preprocessor(image, return_tensors="np")["pixel_values"][0], dtype=np.float64)
        before = _cut(preprocessor, [image])[0].astype(np.float64)
        scale, shift = _scale_and_shift(preprocessor, whole.shape[0])
        found = before * scale[:, None, None] + shift[:, None, None]
        if found.shape != whole.shape or not np.allclose(found, whole, atol=1e-4):
            rule = "its image processor must only resize, cut, scale and shift, but does more to an image"
            raise ModelError([Fault(getattr(preprocessor, "name_or_path", "") or "the model", rule, "model")])
        return {"shape": list(whole.shape), "scale": scale.tolist(), "shift": shift.tolist()}

    def encode(
        self, rows: Rows, preprocessor: Preprocessor, config: DataConfig, facts: Mapping[str, Any]
    ) -> Iterator[Encoded]:
        """See `Task.encode`."""
        for start, part in batches(rows, IMAGES_PER_BATCH):
            images = [open_image(image) for image in part.inputs["image"]]
            pixels = _cut(preprocessor, images)
            wrong = [start + row for row, one in enumerate(pixels) if list(one.shape) != facts["shape"]]
            if wrong:
                image = rows.inputs["image"][wrong[0]]
                shapes = f"{list(pixels[wrong[0] - start].shape)}, and the first {facts['shape']}"
                rule = f"the image processor must make all images alike, but this one is {shapes}"
                raise DataError([Fault(str(image) if isinstance(image, Path) else f"row {wrong[0] + 1}", rule)])
            size = int(np.prod(facts["shape"]))
            columns = {"pixels": pa.array([one.tobytes() for one in pixels], pa.binary(size))}
            if part.labels is not None:
                assert isinstance(part.labels, np.ndarray)
                columns["label"] = self.label_array(part.labels)
            yield Encoded(columns)

    def raw(self, rows: Rows) -> dict[str, pa.Array]:
        """See `Task.raw`: the images' files."""
        images = [image.read_bytes() if isinstance(image, Path) else image for image in rows.inputs["image"]]
        return {"image": pa.array(images, pa.large_binary()), "label": pa.array(rows.labels)}

    def collate(
        self, split: EncodedSplit, rows: NDArray[np.int64], data: EncodedData, hp: Hyperparameters | None = None
    ) -> "dict[str, Tensor]":
        """See `Task.collate`."""
        import torch

        pixels = split.binary("pixels", rows).reshape(-1, *data.facts["shape"])
        if hp is not None and self.augments(hp):
            from rayft.data.augment import augmented

            pixels = augmented(pixels, hp)
        scale, shift = (torch.tensor(data.facts[name])[:, None, None] for name in ("scale", "shift"))
        batch = {"pixel_values": torch.from_numpy(pixels) * scale + shift}
        if split.labels is not None:
            batch["labels"] = torch.from_numpy(split.labels[rows])
        return batch

    def augments(self, hp: Hyperparameters) -> bool:
        """See `Task.augments`."""
        return hp.flip or hp.crop > 0 or hp.randaugment > 0

    def row_tokens(self, data: EncodedData) -> int:
        """See `Task.row_tokens`."""
        _, height, width = data.facts["shape"]
        return max(1, int(height * width) // PATCH)

    def metrics(self, outputs: NDArray[Any], split: EncodedSplit, data: EncodedData) -> dict[str, float]:
        """See `Task.metrics`; a class counts as right in `top5_accuracy` if fewer than 5 have a higher score."""
        assert split.labels is not None
        found = super().metrics(outputs, split, data)
        higher = (outputs > outputs[np.arange(len(outputs)), split.labels][:, None]).sum(axis=1)
        found["top5_accuracy"] = float((higher < TOP).mean())
        return found


def open_image(image: Path | bytes) -> "Image":
    """An image as transformers' pipelines open it: turned as its camera says, in RGB.

    Raises:
        OSError, ValueError, SyntaxError: It isn't one, is damaged, or of so many pixels that it must be.
    """
    import PIL.Image
    import PIL.ImageOps

    try:
        with PIL.Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            return PIL.ImageOps.exif_transpose(opened).convert("RGB")
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # its name is too long
        return False


def _cut(preprocessor: Preprocessor, images: "Sequence[Image]") -> list[NDArray[np.uint8]]:
    """Images as the processor has them before it scales their values, each uint8 of [channels, height, width]."""
    off: dict[str, Any] = {"do_rescale": False, "do_normalize": False, "return_tensors": None}
    if hasattr(preprocessor, "include_top"):  # EfficientNet's second normalisation
        off["include_top"] = False
    cut = preprocessor(list(images), **off)["pixel_values"]
    return [np.asarray(one).astype(np.uint8) for one in cut]


def _scale_and_shift(preprocessor: Preprocessor, channels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What the processor multiplies each channel's bytes by, and then adds."""
    scale, shift = np.ones(channels), np.zeros(channels)
    if preprocessor.do_rescale:
        scale = scale * preprocessor.rescale_factor
        shift = shift - float(getattr(preprocessor, "rescale_offset", False))
    if preprocessor.do_normalize:
        mean, deviation = (np.resize(values, channels) for values in (preprocessor.image_mean, preprocessor.image_std))
        scale, shift = scale / deviation, (shift - mean) / deviation
    if getattr(preprocessor, "include_top", False):
        deviation = np.resize(preprocessor.image_std, channels)
        scale, shift = scale / deviation, shift / deviation
    return scale, shift
