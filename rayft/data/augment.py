"""Random changes to training images, drawn from Python's generator."""

import math
import random
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from rayft.config import Hyperparameters

OPERATIONS = 2
"""Of RandAugment per image, the paper's N; its M is the hyperparameter."""
HIGHEST = 30
"""Magnitude of the strongest change."""
GREY = (128, 128, 128)

Change = Callable[[Image.Image, float], Image.Image]


def augmented(pixels: NDArray[np.uint8], hp: Hyperparameters) -> NDArray[np.uint8]:
    """Images changed as the hyperparameters ask for.

    Args:
        pixels: Of shape [rows, channels, height, width].
        hp: For `flip`, `crop` and `randaugment`.

    Returns:
        Of the same shape.
    """
    changed = pixels.copy()
    for row, image in enumerate(pixels):
        if hp.crop > 0:
            image = _cropped(image, 1 - hp.crop)
        if hp.flip and random.random() < 0.5:
            image = image[:, :, ::-1]
        if hp.randaugment:
            image = _randaugmented(image, hp.randaugment)
        changed[row] = image
    return changed


def _cropped(image: NDArray[np.uint8], least_area: float) -> NDArray[np.uint8]:
    """A part of random size and place and of the image's own shape, resized to the whole."""
    height, width = image.shape[1:]
    share = math.sqrt(random.uniform(least_area, 1.0))
    tall, wide = max(1, round(height * share)), max(1, round(width * share))
    top, left = random.randint(0, height - tall), random.randint(0, width - wide)
    part = _image(image[:, top : top + tall, left : left + wide])
    return _pixels(part.resize((width, height), Image.Resampling.BILINEAR), image.shape[0])


def _randaugmented(image: NDArray[np.uint8], magnitude: int) -> NDArray[np.uint8]:
    """RandAugment (Cubuk et al. 2020, section 3.1): operations drawn uniformly, all at one magnitude."""
    picture = _image(image).convert("RGB")
    for change in random.choices(CHANGES, k=OPERATIONS):
        picture = change(picture, magnitude / HIGHEST)
    return _pixels(picture, image.shape[0])


def _image(pixels: NDArray[np.uint8]) -> Image.Image:
    moved = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    return Image.fromarray(moved[:, :, 0] if moved.shape[2] == 1 else moved)


def _pixels(image: Image.Image, channels: int) -> NDArray[np.uint8]:
    array = np.asarray(image.convert("L" if channels == 1 else "RGB"), dtype=np.uint8)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _either(value: float) -> float:
    return value if random.random() < 0.5 else -value


def _enhanced(enhance: Callable[[Image.Image], ImageEnhance._Enhance]) -> Change:
    return lambda image, strength: enhance(image).enhance(1 + _either(0.9 * strength))


def _moved(x: float, y: float, shear: bool) -> Change:
    def move(image: Image.Image, strength: float) -> Image.Image:
        amount = _either(strength * (0.3 if shear else 0.45 * (image.width if x else image.height)))
        matrix = (1, x * amount, 0, y * amount, 1, 0) if shear else (1, 0, x * amount, 0, 1, y * amount)
        return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=GREY)

    return move


CHANGES: list[Change] = [
    lambda image, strength: image,
    lambda image, strength: ImageOps.autocontrast(image),
    lambda image, strength: ImageOps.equalize(image),
    lambda image, strength: image.rotate(_either(30 * strength), Image.Resampling.BILINEAR, fillcolor=GREY),
    lambda image, strength: ImageOps.solarize(image, int(256 * (1 - strength))),
    lambda image, strength: ImageOps.posterize(image, 8 - round(4 * strength)),
    _enhanced(ImageEnhance.Color),
    _enhanced(ImageEnhance.Contrast),
    _enhanced(ImageEnhance.Brightness),
    _enhanced(ImageEnhance.Sharpness),
    _moved(1, 0, shear=True),
    _moved(0, 1, shear=True),
    _moved(1, 0, shear=False),
    _moved(0, 1, shear=False),
]
"""Each changes an image at a strength from 0 to 1; the ranges are those of AutoAugment (Cubuk et al. 2019)."""
