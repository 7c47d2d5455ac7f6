"""The one way in which Kaggle's TIFFs are written, read without a general decoder.

A plain patch is a classic TIFF with one directory and one uncompressed strip of 96 × 96 × 3 bytes.
Whatever departs from that in the least, damaged files included, is left to Pillow, which is an
order of magnitude slower and knows what to say about it (TIFF 6.0, sections 2, 3 and 8).
"""

import struct

import numpy as np
from numpy.typing import NDArray

_SIDE_PX = 96
_STRIP_BYTES = _SIDE_PX * _SIDE_PX * 3

_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_ENTRY_BYTES = 12
_ASCII, _SHORT, _LONG = 2, 3, 4
_BYTES_OF_TYPE = {_ASCII: 1, _SHORT: 2, _LONG: 4}

_BITS, _STRIP_OFFSET, _SAMPLE_FORMAT = 258, 273, 339
_REQUIRED = {
    256: _SIDE_PX,  # width
    257: _SIDE_PX,  # height
    259: 1,  # no compression
    262: 2,  # RGB
    277: 3,  # samples a pixel
    279: _STRIP_BYTES,
}
_OPTIONAL = {254: 0, 278: _SIDE_PX, 284: 1}  # whole image, rows a strip, interleaved
_TEXTS = {270, 305, 306}  # description, software, date
_KNOWN = {*_REQUIRED, *_OPTIONAL, *_TEXTS, _BITS, _STRIP_OFFSET, _SAMPLE_FORMAT}

_Entry = tuple[int, int, int]  # type, count, and where its value stands


def read_plain(data: bytes) -> NDArray[np.uint8] | None:
    """The (96, 96, 3) pixels of a plain patch, read-only; None if the file is anything else."""
    order = _BYTE_ORDERS.get(data[:4])
    if order is None:
        return None
    try:
        entries = _read_directory(data, order)
        if entries is None or not _is_plain(data, order, entries):
            return None
        start = _number(data, order, entries[_STRIP_OFFSET])
    except struct.error:  # something lies past the end
        return None
    if start is None or start + _STRIP_BYTES > len(data):
        return None
    strip = np.frombuffer(data, np.uint8, _STRIP_BYTES, start)
    return strip.reshape(_SIDE_PX, _SIDE_PX, 3)


def _read_directory(data: bytes, order: str) -> dict[int, _Entry] | None:
    """The entries by tag, if it is the only directory and holds known tags in ascending order."""
    (at,) = struct.unpack_from(order + "I", data, 4)
    (n_entries,) = struct.unpack_from(order + "H", data, at)
    (following,) = struct.unpack_from(order + "I", data, at + 2 + n_entries * _ENTRY_BYTES)
    if following or n_entries > len(_KNOWN):
        return None
    entries: dict[int, _Entry] = {}
    last = 0
    for position in range(at + 2, at + 2 + n_entries * _ENTRY_BYTES, _ENTRY_BYTES):
        tag, kind, count = struct.unpack_from(order + "HHI", data, position)
        if tag <= last or tag not in _KNOWN or kind not in _BYTES_OF_TYPE:
            return None
        value_at = position + 8
        if count * _BYTES_OF_TYPE[kind] > 4:
            (value_at,) = struct.unpack_from(order + "I", data, value_at)
            if value_at + count * _BYTES_OF_TYPE[kind] > len(data):
                return None
        entries[tag] = (kind, count, value_at)
        last = tag
    return entries


def _is_plain(data: bytes, order: str, entries: dict[int, _Entry]) -> bool:
    numbers = {
        tag: _number(data, order, entry)
        for tag, entry in entries.items()
        if tag in _REQUIRED or tag in _OPTIONAL
    }
    return (
        numbers.items() >= _REQUIRED.items()
        and all(numbers.get(tag, value) == value for tag, value in _OPTIONAL.items())
        and all(entries[tag][0] == _ASCII for tag in _TEXTS & entries.keys())
        and _BITS in entries
        and _triple(data, order, entries[_BITS]) == (8, 8, 8)
        and _is_unsigned(data, order, entries.get(_SAMPLE_FORMAT))
        and _STRIP_OFFSET in entries
    )


def _is_unsigned(data: bytes, order: str, entry: _Entry | None) -> bool:
    if entry is None or _number(data, order, entry) == 1:
        return True
    return _triple(data, order, entry) == (1, 1, 1)


def _number(data: bytes, order: str, entry: _Entry) -> int | None:
    """The value of an entry that holds one whole number, else None."""
    kind, count, at = entry
    if count != 1 or kind not in (_SHORT, _LONG):
        return None
    (value,) = struct.unpack_from(order + ("H" if kind == _SHORT else "I"), data, at)
    return int(value)


def _triple(data: bytes, order: str, entry: _Entry) -> tuple[int, ...] | None:
    kind, count, at = entry
    return struct.unpack_from(order + "3H", data, at) if (kind, count) == (_SHORT, 3) else None
