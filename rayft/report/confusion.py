"""A confusion matrix as a picture."""

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

CELL, MARGIN = 44, 120
"""Pixels of a cell's side, and of the room for names."""
LONGEST_NAME = 16
DARK, LIGHT, INK = (31, 78, 121), (255, 255, 255), (34, 34, 34)


def confusion_png(counts: Sequence[Sequence[int]], names: Sequence[str]) -> bytes:
    """A PNG: a row for each true class, a column for each predicted one, darker for a larger share of the row.

    Args:
        counts: Rows by true class (first axis) and predicted one.
        names: The classes.
    """
    side = MARGIN + CELL * len(names) + 24
    image = Image.new("RGB", (side, side), LIGHT)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(12)
    draw.text((6, 6), "true \\ predicted", fill=INK, font=font)
    for index, name in enumerate(names):
        place = MARGIN + CELL * index + CELL // 2
        draw.text((MARGIN - 8, place), _cut(name), fill=INK, font=font, anchor="rm")
        image.paste(_upright(_cut(name), font), (place - 8, 24))
    for row, counted in enumerate(counts):
        for column, count in enumerate(counted):
            share = count / max(1, sum(counted))
            left, top = MARGIN + CELL * column, MARGIN + CELL * row
            shade = tuple(round(light + share * (dark - light)) for light, dark in zip(LIGHT, DARK, strict=True))
            draw.rectangle((left, top, left + CELL - 2, top + CELL - 2), fill=shade)
            middle = (left + CELL // 2 - 1, top + CELL // 2 - 1)
            draw.text(middle, str(count), fill=LIGHT if share > 0.5 else INK, font=font, anchor="mm")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _upright(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> Image.Image:
    """A name that is read from the bottom up."""
    image = Image.new("RGB", (MARGIN - 28, 16), LIGHT)
    ImageDraw.Draw(image).text((0, 8), text, fill=INK, font=font, anchor="lm")
    return image.rotate(90, expand=True)
