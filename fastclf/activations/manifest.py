"""The manifest of an activation file: a line that describes the file, then a line per block of rows.

Each line is the CRC-32 of its text, in hex, and the text, which is JSON. Lines are appended as blocks are written, so a
manifest that was cut off anywhere still tells which blocks were finished; a line that was cut or changed ends it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_LONGEST = 1 << 22  # bytes of a line: a block of thousands of bad rows takes less
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Block:
    """Consecutive rows that were written at once.

    Attributes:
        first: row that it begins with.
        rows: how many.
        crc32: of their bytes.
        bad: row -> why it could not be computed; such rows are zeros.
    """

    first: int
    rows: int
    crc32: int
    bad: dict[int, str]


def header_line(header: Mapping[str, Any]) -> bytes:
    """Return the first line of a manifest."""
    return _line(header)


def block_line(block: Block) -> bytes:
    """Return the line of a block."""
    bad = [[row, why] for row, why in block.bad.items()]
    return _line({"first": block.first, "rows": block.rows, "crc32": block.crc32, "bad": bad})


def read_manifest(file: Path, header: Mapping[str, Any]) -> list[Block] | None:
    """Read the blocks of a manifest, which follow each other from row 0 on.

    Args:
        file: the manifest.
        header: what its first line must hold.

    Returns:
        The blocks before the first line that is cut, changed or out of order; None when the first line holds something
        else.

    Raises:
        OSError: it cannot be read.
    """
    with file.open("rb") as handle:
        lines = _contents(handle)
        if next(lines, None) != header:
            return None
        blocks: list[Block] = []
        done = 0
        for content in lines:
            block = _as_block(content, done, header["shape"][0])
            if block is None:
                break
            blocks.append(block)
            done += block.rows
    return blocks


def read_header(file: Path) -> Any:
    """Return the content of a manifest's first line; None when there is none to be read."""
    try:
        with file.open("rb") as handle:
            return next(_contents(handle), None)
    except OSError:
        return None


def crc32_of(file: IO[bytes], size: int) -> int | None:
    """CRC-32 of the next ``size`` bytes of ``file``; None when it ends before."""
    crc = 0
    while size:
        data = file.read(min(size, _CHUNK))
        if not data:
            return None
        crc = zlib.crc32(data, crc)
        size -= len(data)
    return crc


def _line(content: Mapping[str, Any]) -> bytes:
    text = json.dumps(content, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _contents(handle: IO[bytes]) -> Iterator[Any]:
    """Yield the contents of lines up to the first that is damaged."""
    while line := handle.readline(_LONGEST):
        text = line[9:-1]
        if line != b"%08x %s\n" % (zlib.crc32(text), text):
            return
        try:
            yield json.loads(text)
        except (ValueError, RecursionError):
            return


def _as_block(content: Any, first: int, rows: int) -> Block | None:
    """Return a line's content as the block that begins with row ``first`` of ``rows``; None when it is none."""
    try:
        bad = {int(row): str(why) for row, why in content["bad"]}
        block = Block(content["first"], content["rows"], content["crc32"], bad)
    except (TypeError, KeyError, ValueError, OverflowError):
        return None
    numbers = all(type(number) is int for number in (block.first, block.rows, block.crc32))
    if not numbers or block.first != first or not 1 <= block.rows <= rows - first:
        return None
    return block if all(first <= row < first + block.rows for row in bad) else None
