import random

import numpy as np
import pytest
from PIL import Image

from rayft.config import Hyperparameters
from rayft.data.augment import CHANGES, augmented

OFF = Hyperparameters()
ALL = Hyperparameters(flip=True, crop=0.5, randaugment=15)
SETTINGS = {
    "flip": Hyperparameters(flip=True),
    "crop": Hyperparameters(crop=0.6),
    "randaugment": Hyperparameters(randaugment=20),
    "all": ALL,
}


def images(rows: int = 8, channels: int = 3, height: int = 24, width: int = 32) -> np.ndarray:
    """Dull colours that rise to the right and downwards, with stripes, so that every change of them shows."""
    down, right = np.mgrid[:height, :width]
    risen = 40 + 2 * right + down + 15 * (right // 4 % 2)
    one = np.stack([risen + 20 * channel for channel in range(channels)]).astype(np.uint8)
    return np.stack([one] * rows)


def changed(hp: Hyperparameters, seed: int = 0, **shape: int) -> np.ndarray:
    random.seed(seed)
    return augmented(images(**shape), hp)


def test_off_by_default() -> None:
    assert not (OFF.flip or OFF.crop or OFF.randaugment)
    random.seed(3)
    before = random.getstate()
    assert np.array_equal(augmented(images(), OFF), images())
    assert random.getstate() == before, "nothing is drawn"


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("channels", [1, 3])
def test_shape_and_kind_stay_and_the_seed_decides(setting: str, channels: int) -> None:
    hp, given = SETTINGS[setting], images(channels=channels)
    once = changed(hp, channels=channels)
    assert once.shape == given.shape and once.dtype == np.uint8
    assert not np.array_equal(once, given)
    assert np.array_equal(once, changed(hp, channels=channels))
    assert not np.array_equal(once, changed(hp, seed=1, channels=channels))
    assert np.array_equal(given, images(channels=channels)), "what is given stays as it is"


def test_half_of_the_images_are_mirrored() -> None:
    given, found = images(rows=200), changed(SETTINGS["flip"], rows=200)
    mirrored = [np.array_equal(one, own[:, :, ::-1]) for one, own in zip(found, given, strict=True)]
    same = [np.array_equal(one, own) for one, own in zip(found, given, strict=True)]
    assert all(one != other for one, other in zip(mirrored, same, strict=True))
    assert 70 < sum(mirrored) < 130


def test_a_crop_shows_a_part_of_the_image() -> None:
    found = changed(Hyperparameters(crop=0.75), rows=100).astype(int)
    spans = found[:, 0].max(axis=(1, 2)) - found[:, 0].min(axis=(1, 2))
    whole = int(images()[0, 0].max()) - int(images()[0, 0].min())
    # At least a quarter of the area is half of each side, whose colours rise by at least half of the whole.
    assert spans.max() <= whole and 0.4 * whole < spans.min() < 0.7 * whole
    assert len(set(spans.tolist())) > 10


@pytest.mark.parametrize("change", range(len(CHANGES)))
def test_each_operation_but_the_first_does_something(change: int) -> None:
    picture = Image.fromarray(images()[0].transpose(1, 2, 0))
    random.seed(0)
    once = CHANGES[change](picture, 1.0)
    assert once.size == picture.size and once.mode == picture.mode
    assert np.array_equal(np.asarray(once), np.asarray(picture)) == (change == 0)
    weak = CHANGES[change](picture, 1 / 30)
    assert weak.size == picture.size


def test_stronger_magnitudes_change_more() -> None:
    def distance(magnitude: int) -> float:
        found = changed(Hyperparameters(randaugment=magnitude), rows=200).astype(float)
        return float(np.abs(found - images(rows=200)).mean())

    assert distance(1) < distance(10) < distance(30)
