"""Statistics of the packed patches, streamed: memory doesn't grow with the number of pixels.

:func:`survey_pixels` passes once over the pixels. Everything else is arithmetic on what it returns
and on the table of patches.
"""

import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

CHANNELS = ("red", "green", "blue")

# Kaggle's 220,025 training patches, on the scale 0 to 1
REFERENCE_MEAN = (0.7024, 0.5462, 0.6965)
REFERENCE_STD = (0.2389, 0.2821, 0.2163)
# A sample of 4,000 real patches is within 0.004; red and blue exchanged are 0.023 apart in std
REFERENCE_TOLERANCE = 0.01

# under this share of the median sharpness a patch counts as blurred or empty
BLURRED_SHARE_OF_MEDIAN = 0.02

_CHUNK_PATCHES = 256
_LUMINANCE = np.array([77, 150, 29], dtype=np.int32)  # Rec. 601 weights of 256

Advance = Callable[[int], None]


@dataclass(frozen=True)
class PixelSurvey:
    """What one pass over n patches of 96 × 96 px yields.

    Attributes
    ----------
    histogram : (2, 3, 256) int64, pixels by label, channel and value
    pixel_sum : (2, 96, 96, 3) int64, sum of the patches of each label
    n_patches : (2,) int64, patches of each label
    brightness : (n,) float64, mean luminance, 0 to 255
    sharpness : (n,) float64, variance of the Laplacian of the luminance; low where blurred
    """

    histogram: NDArray[np.int64]
    pixel_sum: NDArray[np.int64]
    n_patches: NDArray[np.int64]
    brightness: NDArray[np.float64]
    sharpness: NDArray[np.float64]


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and standard deviation over all pixels, (3,) each in RGB order, scale 0 to 1."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]


def survey_pixels(
    pixels: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    *,
    chunk_patches: int = _CHUNK_PATCHES,
    advance: Advance = lambda _: None,
) -> PixelSurvey:
    """Pass once over ``pixels`` (n, 96, 96, 3), n ≥ 1; ``labels`` is (n,), 0 or 1.

    Sums are of whole numbers, so the result doesn't depend on ``chunk_patches``.
    """
    n, side = pixels.shape[:2]
    histogram = np.zeros((2, 3, 256), dtype=np.int64)
    pixel_sum = np.zeros((2, side, side, 3), dtype=np.int64)
    brightness, sharpness = np.empty(n), np.empty(n)
    for part, chunk in _chunks(pixels, chunk_patches):
        for label in range(2):
            of_label = chunk[labels[part] == label]
            # 32 bits hold a chunk and are added up much faster than 64
            pixel_sum[label] += of_label.sum(axis=0, dtype=np.uint32)
            histogram[label] += channel_histogram(of_label)
        brightness[part], sharpness[part] = _brightness_and_sharpness(chunk)
        advance(len(chunk))
    return PixelSurvey(
        histogram=histogram,
        pixel_sum=pixel_sum,
        n_patches=np.bincount(labels, minlength=2).astype(np.int64),
        brightness=brightness,
        sharpness=sharpness,
    )


def survey_channels(
    pixels: NDArray[np.uint8],
    *,
    chunk_patches: int = _CHUNK_PATCHES,
    advance: Advance = lambda _: None,
) -> NDArray[np.int64]:
    """Pixels by channel and value, (3, 256), in one pass over unlabelled patches."""
    histogram = np.zeros((3, 256), dtype=np.int64)
    for _, chunk in _chunks(pixels, chunk_patches):
        histogram += channel_histogram(chunk)
        advance(len(chunk))
    return histogram


def _chunks(
    pixels: NDArray[np.uint8], chunk_patches: int
) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
    for start in range(0, len(pixels), chunk_patches):
        part = slice(start, start + chunk_patches)
        yield part, np.array(pixels[part])
        # pages once read count as this process's memory until they are given back
        if isinstance(pixels.base, mmap.mmap):
            pixels.base.madvise(mmap.MADV_DONTNEED)


def channel_histogram(patches: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pixels by channel and value: (n, h, w, 3) → (3, 256)."""
    return np.stack(
        [np.bincount(patches[..., channel].ravel(), minlength=256) for channel in range(3)]
    ).astype(np.int64)


def channel_statistics(histogram: NDArray[np.int64]) -> ChannelStatistics:
    """Mean and standard deviation of each channel from its (3, 256) histogram, exactly."""
    value = np.arange(256) / 255.0
    n = histogram.sum(axis=1)
    if (n == 0).any():
        raise ValueError("channel statistics of no pixels are undefined")
    mean = histogram @ value / n
    variance = (histogram * (value[None] - mean[:, None]) ** 2).sum(axis=1) / n
    return ChannelStatistics(mean=mean, std=np.sqrt(variance))


def within_reference(statistics: ChannelStatistics) -> list[bool]:
    """For each channel, whether mean and std are within the tolerance of Kaggle's training set."""
    mean_off = np.abs(statistics.mean - np.array(REFERENCE_MEAN))
    std_off = np.abs(statistics.std - np.array(REFERENCE_STD))
    return [bool(off <= REFERENCE_TOLERANCE) for off in np.maximum(mean_off, std_off)]


def mean_patch(survey: PixelSurvey, label: int) -> NDArray[np.float64]:
    """The mean patch of one label, (96, 96, 3), 0 to 255."""
    if survey.n_patches[label] == 0:
        raise ValueError(f"the mean patch of no patches (label {label}) is undefined")
    return np.asarray(survey.pixel_sum[label] / survey.n_patches[label], dtype=np.float64)


def _brightness_and_sharpness(
    patches: NDArray[np.uint8],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    luminance = np.zeros(patches.shape[:3], dtype=np.int32)
    for channel, weight in enumerate(_LUMINANCE):
        luminance += weight * patches[..., channel]
    luminance >>= 8
    inner = luminance[:, 1:-1, 1:-1]
    laplacian = luminance[:, :-2, 1:-1] + luminance[:, 2:, 1:-1]
    laplacian += luminance[:, 1:-1, :-2] + luminance[:, 1:-1, 2:]
    laplacian -= 4 * inner
    brightness = luminance.mean(axis=(1, 2))
    flat = laplacian.reshape(len(patches), -1).astype(np.float32)
    return brightness, flat.var(axis=1, dtype=np.float64)


def share_explained(values: NDArray[np.float64], groups: pd.Series) -> float:
    """Share of the variance of ``values`` (n,) that lies between ``groups`` (n,): eta squared."""
    frame = pd.DataFrame({"value": values, "group": groups.to_numpy(dtype=object)})
    total = float(((frame["value"] - frame["value"].mean()) ** 2).sum())
    if total == 0:
        return 0.0
    group_mean = frame.groupby("group")["value"].transform("mean")
    return float(((group_mean - frame["value"].mean()) ** 2).sum() / total)


def duplicate_sets(patches: pd.DataFrame) -> list[pd.DataFrame]:
    """Sets of two or more rows with identical pixels (column sha256), each sorted by id.

    Rows without a digest (images that couldn't be read) are nobody's duplicate.
    """
    read = patches[patches["sha256"].fillna("") != ""]
    repeated = read[read["sha256"].duplicated(keep=False)].sort_values("id")
    sets = [rows for _, rows in repeated.groupby("sha256", sort=False)]
    return sorted(sets, key=lambda rows: str(rows["id"].iloc[0]))


def near_duplicates(patches: pd.DataFrame) -> list[pd.DataFrame]:
    """Sets of near-duplicates that aren't all identical, each sorted by id without repeats."""
    from src.data.near_duplicates import near_duplicate_sets

    keys = near_duplicate_sets(patches)
    members = patches[keys.notna()].sort_values("id").drop_duplicates("sha256")
    sets = [rows for _, rows in members.groupby(keys.loc[members.index], sort=False)]
    return sorted((s for s in sets if len(s) > 1), key=lambda rows: str(rows["id"].iloc[0]))


def ranked_above(values: NDArray[np.float64], labels: NDArray[np.uint8]) -> float:
    """Share of (tumour, normal) pairs in which the tumour patch has the larger value: the AUROC.

    Ties count one half. Both labels must occur.
    """
    from scipy.stats import rankdata

    n_tumour = int(labels.sum())
    n_normal = len(labels) - n_tumour
    if n_tumour == 0 or n_normal == 0:
        raise ValueError("the AUROC of one class is undefined")
    rank_sum = float(rankdata(values)[labels == 1].sum())
    return (rank_sum - n_tumour * (n_tumour + 1) / 2) / (n_tumour * n_normal)


def is_blurred(sharpness: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where ``sharpness`` (n,) is under ``BLURRED_SHARE_OF_MEDIAN`` of its median."""
    return np.asarray(sharpness < BLURRED_SHARE_OF_MEDIAN * np.median(sharpness))


def has_flag(flags: pd.Series, flag: str) -> NDArray[np.bool_]:
    """Where one of the comma-joined ``flags`` begins with ``flag``: (n,) bool."""
    return flags.map(lambda joined: any(f.startswith(flag) for f in joined.split(","))).to_numpy(
        dtype=bool
    )


def percentiles(values: NDArray[np.float64]) -> dict[str, float]:
    """5th, 50th and 95th percentile of ``values`` (n,)."""
    low, median, high = np.percentile(values, [5, 50, 95])
    return {"p05": float(low), "median": float(median), "p95": float(high)}
