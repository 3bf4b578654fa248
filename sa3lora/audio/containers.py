"""Compare the size that a container states with the size of its file."""

from __future__ import annotations

import os
import struct
from typing import BinaryIO, Final

_STREAMED: Final = (0, 0xFFFFFFFF)  # sizes that a program writing into a pipe leaves in a WAV
_LAST_PAGES: Final = 1 << 17  # bytes; two Ogg pages of the largest size fit
_END_OF_STREAM: Final = 4

MEND: Final = "Repair or replace the file."


def ends_early(path: str | os.PathLike[str]) -> bool:
    """Tell whether a WAV, AIFF or Ogg file was cut.

    Formats without a size that could be compared give False.

    Args:
        path: A file that is not empty.

    Returns:
        True if bytes that its headers count are missing.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        magic = file.read(12)
        if magic[:4] == b"RIFF" and magic[8:] == b"WAVE":
            return _chunk_ends_after(file, wanted=b"data", size=size, order="<")
        if magic[:4] == b"FORM" and magic[8:11] == b"AIF":
            return _chunk_ends_after(file, wanted=b"SSND", size=size, order=">")
        if magic[:4] == b"OggS":
            return _last_page_is_cut(file, size=size)
    return False


def _chunk_ends_after(file: BinaryIO, *, wanted: bytes, size: int, order: str) -> bool:
    position = 12
    while position + 8 <= size:
        file.seek(position)
        name, length = struct.unpack(f"{order}4sI", file.read(8))
        if name == wanted:
            return length not in _STREAMED and position + 8 + length > size
        position += 8 + length + length % 2
    return False


def _last_page_is_cut(file: BinaryIO, *, size: int) -> bool:
    offset = max(0, size - _LAST_PAGES)
    file.seek(offset)
    tail = file.read()
    start = tail.rfind(b"OggS")
    if start < 0:
        return True
    header = tail[start : start + 27]
    if len(header) < 27:
        return True
    num_segments = header[26]
    lacing = tail[start + 27 : start + 27 + num_segments]
    end = start + 27 + num_segments + sum(lacing)
    if len(lacing) < num_segments or end > len(tail):
        return True
    # Less than a header may follow when the cut fell into the next one; after the last page of a
    # stream anything may follow, such as tags of another program.
    return end < len(tail) and not header[5] & _END_OF_STREAM
