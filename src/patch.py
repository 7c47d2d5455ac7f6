"""What is true of every patch of this data set, once: size, pixels, ids, classes, their colours."""

from __future__ import annotations

SIZE_PX = 96
CENTRE_PX = 32  # side of the square in the middle that the label is about
SHAPE = (SIZE_PX, SIZE_PX, 3)  # rows, columns, RGB; uint8
N_BYTES = SIZE_PX * SIZE_PX * 3

_MARGIN_PX = (SIZE_PX - CENTRE_PX) // 2
CENTRE = slice(_MARGIN_PX, _MARGIN_PX + CENTRE_PX)  # of rows and of columns

ID = r"[0-9a-f]{40}"  # the whole id, as a regular expression

CLASSES = ("normal", "tumour")  # by label: 0, 1
SPLITS = ("train", "val", "holdout")

# Okabe & Ito 2008, "Color Universal Design": told apart with any colour vision
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
SKY, PINK, GREY = "#56B4E9", "#CC79A7", "#777777"
CLASS_COLOURS = (BLUE, ORANGE)  # by label
SPLIT_COLOURS = (SKY, PINK, GREEN)  # in the order of SPLITS, unlike those of the classes
