"""Stores of a few rows, and a reader of their format that shares no code with the library."""

import hashlib
import json
import struct
import zlib

import numpy as np

from fastclf.activations import segment
from fastclf.activations.segment import KEY, Kind, SegmentWriter
from fastclf.activations.store import Store, write_about


def keys_of(n, salt=""):
    return np.array([hashlib.sha256(f"{salt}{i}".encode()).digest() for i in range(n)], KEY)


def kind_of(width=3, dtype="float32", salt=0):
    about = {"schema": segment.SCHEMA, "width": width, "dtype": dtype, "arch": "tiny", "salt": salt, "transforms": {}}
    text = json.dumps(about, sort_keys=True, separators=(",", ":"))
    return Kind(hashlib.sha256(text.encode()).hexdigest(), width, dtype), about


KIND, ABOUT = kind_of()


def written(folder, keys, rows, block=5, kind=KIND, used=None):
    """Makes a segment; its folder."""
    with SegmentWriter(folder, kind) as writer:
        for first in range(0, len(keys), block):
            part = slice(first, first + block)
            writer.write(keys[part], rows[part], None if used is None else used[part])
        return writer.finish()


def described(folder, about=ABOUT):
    folder.mkdir(parents=True, exist_ok=True)
    write_about(folder, about)
    return folder


def opened(folder, keys, kind=KIND):
    """As another process would: without what this one knows."""
    segment._checked.clear()
    return Store([folder], kind).open(keys)


def read_by_the_readme(store):
    """Key -> row of a store's folder, by README.md alone."""
    about = json.loads((store / "store.json").read_text())
    canonical = json.dumps(about, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(canonical.encode()).hexdigest() == store.name
    size = about["width"] * {"float16": 2, "float32": 4}[about["dtype"]]
    found = {}
    for place in sorted(store.glob("segment*")):
        rows, keys, blocks = [(place / f"{name}.bin").read_bytes() for name in ("rows", "keys", "blocks")]
        for at in range(0, len(blocks) // 28 * 28, 28):
            first, n, of_keys, of_rows, of_record = struct.unpack("<QQIII", blocks[at : at + 28])
            if zlib.crc32(store.name.encode() + blocks[at : at + 24]) != of_record:
                continue
            part = keys[32 * first : 32 * (first + n)], rows[size * first : size * (first + n)]
            if (len(part[1]), *map(zlib.crc32, part)) == (size * n, of_keys, of_rows):
                for i in range(n):
                    row = np.frombuffer(part[1][size * i : size * (i + 1)], about["dtype"])
                    found[part[0][32 * i : 32 * (i + 1)]] = row
    return found
