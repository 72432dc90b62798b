"""Program of the child process that decodes files which nobody has decoded before: a crash of a decoder ends it alone.

`process` starts it. It reads requests from standard input and writes answers to a pipe, one JSON value per line, and
ends when its input does. It imports neither torch nor fastclf, so that it starts in half a second.

A JPEG, PNG or simple WebP is decoded by DALI, as the loaders will do. Everything else, and every file of which DALI's
decoder complains, is decoded by Pillow; of that a lossless copy is written, which the loaders decode instead. Without
DALI, Pillow decodes in its place.

A request may ask for the pixels themselves. They are handed over group by group, in the order of the files, in shared
memory; a line ``{"free": i}`` gives buffer i back.

The program's arguments: where the packages of whoever asks are, and the handles of the pipe and of the buffers.
"""

# DALI makes most of its functions at run time, so its types are not known.
# mypy: disable-error-code="attr-defined, no-untyped-call"

from __future__ import annotations

import json
import mmap
import os
import queue
import re
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path += [place for place in sys.argv[1].split(os.pathsep) if place and place not in sys.path]

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, TiffImagePlugin

try:
    from nvidia.dali import Pipeline, fn, types

    _HAS_DALI = True
except ImportError:  # then Pillow decodes, here as in whoever asks
    _HAS_DALI = False

FILES_AT_ONCE = 64
PIXELS_AT_ONCE = 1 << 25

_NOT_OPENED = {"EPS"}  # Pillow would run Ghostscript on it
_NAMES = {"MPO": "JPEG", "WEBP": "WebP", "JPEG2000": "JPEG 2000", "HEIF": "HEIC"}
_MAGIC = (
    (b"GIF8", "damaged or truncated GIF"),
    (b"<svg", "unsupported format SVG"),
    (b"<?xml", "unsupported format SVG or XML"),
    (b"\xff\x0a", "unsupported format JPEG XL"),
    (b"\0\0\0\x0cJXL ", "unsupported format JPEG XL"),
    (b"<", "not an image but a text or web page"),
    (b"\xff\xd8", "damaged or truncated JPEG"),
    (b"\x89PNG", "damaged or truncated PNG"),
    (b"RIFF", "damaged or truncated WebP"),
    (b"II*\0", "damaged or truncated TIFF"),
    (b"MM\0*", "damaged or truncated TIFF"),
    (b"BM", "damaged or truncated BMP"),
    (b"\0\0\0\x0cjP", "damaged or truncated JPEG 2000"),
    (b"\xff\x4f\xff\x51", "damaged or truncated JPEG 2000"),
    (b"%!PS", "unsupported format EPS"),
)
_HEIC = "unsupported format HEIC, which pip install pillow-heif adds"
_ISO_MEDIA = {b"heic": _HEIC, b"heix": _HEIC, b"mif1": _HEIC, b"avif": "unsupported format AVIF"}
_HARMLESS = re.compile(rb"libpng warning: [^\n]*(iCCP|sRGB|gAMA|cHRM|tIME|eXIf)[^\n]*\n?")
_JPEG = {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"}
_EXTENSIONS = {
    "JPEG": _JPEG,
    "MPO": _JPEG,
    "PNG": {".png", ".apng"},
    "WEBP": {".webp"},
    "GIF": {".gif"},
    "TIFF": {".tif", ".tiff"},
    "BMP": {".bmp", ".dib"},
    "DIB": {".bmp", ".dib"},
    "PPM": {".pnm", ".ppm", ".pgm", ".pbm", ".pfm"},
    "JPEG2000": {".jp2", ".j2k", ".jpx", ".jpf", ".jpc"},
    "AVIF": {".avif", ".avifs"},
    "HEIF": {".heic", ".heif", ".hif"},
}
_ORIENTATION, _BITS, _PLANAR = 274, 258, 284  # tags of TIFF and EXIF
_METADATA = {"exif", "xmp", "Raw profile type exif", "XML:com.adobe.xmp"}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadFileError(Exception):
    """A file that cannot be decoded; the text says why."""


class CopyError(Exception):
    """A copy that cannot be written; the text says why."""


@dataclass
class _File:
    """One file of a request.

    Attributes:
        row: its place in the request.
        path: as the file system has it.
        copy: where a copy goes.
        shape: height and width, orientation applied; as the header says, later as decoded.
        channels: that the file holds; 3 for a palette.
        renamed: whether its extension names another format.
        direct: whether DALI is right for this kind of file.
    """

    row: int
    path: bytes
    copy: str
    shape: tuple[int, int] = (0, 0)
    channels: int = 3
    renamed: bool = False
    direct: bool = False


class _Graph:
    """DALI's decoder for a group of files; the only graph of this process. An error ends its life."""

    def __init__(self, num_threads: int) -> None:
        self._pipe = Pipeline(FILES_AT_ONCE, num_threads, None, prefetch_queue_depth=1, exec_dynamic=True)
        with self._pipe:
            encoded = fn.io.file.read(fn.external_source(name="path", ndim=1, dtype=types.UINT8, device="cpu"))
            self._pipe.set_outputs(fn.decoders.image(encoded, device="cpu", output_type=types.RGB))
        self._pipe.build()

    def run(self, group: Sequence[_File]) -> None:
        self._pipe.feed_input("path", [np.frombuffer(file.path, np.uint8) for file in group])
        self._pipe.schedule_run()

    def images(self) -> Sequence[npt.NDArray[np.uint8]]:
        (output,) = self._pipe.share_outputs()
        self._pipe.release_outputs()  # of the queue only: the output keeps its memory
        return [np.asarray(output[i]) for i in range(len(output))]


class _PillowGraph:
    """Pillow in the place of DALI's decoder; after an error it can go on."""

    def __init__(self, num_threads: int) -> None:
        self._threads = num_threads
        self._group: Sequence[_File] = ()

    def run(self, group: Sequence[_File]) -> None:
        self._group = group

    def images(self) -> Sequence[npt.NDArray[np.uint8]]:
        try:
            with ThreadPoolExecutor(self._threads) as pool:
                return list(pool.map(decoded, [file.path for file in self._group]))
        except BadFileError as error:
            raise RuntimeError(str(error)) from error


class _Buffers:
    """Shared memory for the pixels of groups; each buffer is as large as the largest group that was in it."""

    def __init__(self, handles: Sequence[int]) -> None:
        self.free: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._handles = handles
        self._maps: dict[int, mmap.mmap] = {}
        for i in range(len(handles)):
            self.free.put(i)

    def fill(self, images: Sequence[npt.NDArray[np.uint8]]) -> int:
        """Wait for a free buffer, put images into it one after another, and return which it is."""
        i, size = self.free.get(), sum(image.nbytes for image in images)
        if i not in self._maps or len(self._maps[i]) < size:
            os.ftruncate(self._handles[i], size)
            self._maps[i] = mmap.mmap(self._handles[i], size)
        memory, start = np.frombuffer(self._maps[i], np.uint8), 0
        for image in images:
            memory[start : start + image.nbytes].reshape(image.shape)[:] = image
            start += image.nbytes
        return i


class _Worker:
    """Answers requests."""

    def __init__(self, answers: Any, buffers: _Buffers) -> None:
        self._answers, self._buffers = answers, buffers
        self._threads = 0
        self._hands_over = False  # pixels, in the request that is being answered
        self._graph: _Graph | _PillowGraph | None = None
        self._in_flight: list[_File] = []  # while DALI decodes a group, the headers of the next files are read

    def answer(self, request: dict[str, Any]) -> None:
        """Decode the files of a request; answers what came of each."""
        if request["threads"] != self._threads:
            self._graph, self._threads = None, request["threads"]
        self._hands_over = request["pixels"]
        files = [_File(i, os.fsencode(path), copy) for i, (path, copy) in enumerate(request["files"])]
        for start in range(0, len(files), FILES_AT_ONCE):
            block = files[start : start + FILES_AT_ONCE]
            self._write(hand=[file.row for file in block], dali=_HAS_DALI)
            sound = [file for file in block if self._has_header(file, request)]
            for group in _groups(sound):
                self._report_and_start(group)
        self._report_and_start([])
        self._write(end=True)

    def _write(self, **answer: Any) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()

    def _has_header(self, file: _File, request: dict[str, Any]) -> bool:
        try:
            _read_header(file)
        except BadFileError as error:
            self._write(row=file.row, why=str(error))
            return False
        if file.shape[0] * file.shape[1] > request["max_pixels"]:
            self._write(row=file.row, shape=[*file.shape, file.channels, int(file.renamed)], copied=None)
            return False
        file.direct = file.direct and not request["pillow"]
        return True

    def _report_and_start(self, group: list[_File]) -> None:
        """Finish the group in flight, start the next one, and answer what came of the finished one meanwhile."""
        finished, self._in_flight = self._in_flight, group
        by_dali = self._taken([file for file in finished if file.direct])
        rest = [file for file in finished if file.row not in by_dali]
        by_pillow = self._by_pillow(rest)
        direct = [file for file in group if file.direct]
        if direct:
            self._start(direct)
        if self._hands_over:
            self._hand_over(finished, {**by_dali, **by_pillow})
        else:
            for file in finished:
                if file.row in by_dali or file.row in by_pillow:
                    shape = [*file.shape, file.channels, int(file.renamed)]
                    self._write(row=file.row, shape=shape, copied=file.row in by_pillow)

    def _start(self, group: list[_File]) -> None:
        self._graph = self._graph or (_Graph if _HAS_DALI else _PillowGraph)(self._threads)
        _complaints()
        self._graph.run(group)

    def _taken(self, group: list[_File]) -> dict[int, npt.NDArray[np.uint8]]:
        """Wait for DALI, and return what it decodes as it should. A group that fails is halved down to the culprit."""
        if not group:
            return {}
        assert self._graph is not None
        try:
            images = self._graph.images()
            sound = not _complaints()
        except RuntimeError:
            self._graph, sound = None, False
        if sound:
            found = zip(group, images, strict=True)
            return {file.row: image for file, image in found if file.shape == image.shape[:2]}
        if len(group) == 1:
            return {}
        taken: dict[int, npt.NDArray[np.uint8]] = {}
        for half in (group[: len(group) // 2], group[len(group) // 2 :]):
            self._start(half)
            taken |= self._taken(half)
        return taken

    def _by_pillow(self, group: list[_File]) -> dict[int, npt.NDArray[np.uint8]]:
        """Let Pillow decode files, and write copies unless pixels are handed over; answers which are bad."""
        done: dict[int, npt.NDArray[np.uint8]] = {}
        if not group:
            return done
        with ThreadPoolExecutor(self._threads) as pool:
            tasks = [(file, pool.submit(_pixels if self._hands_over else _write_copy, file)) for file in group]
        for file, task in tasks:
            try:
                done[file.row] = task.result()
            except BadFileError as error:
                self._write(row=file.row, why=str(error))
            except CopyError as error:
                self._write(row=file.row, unkept=str(error))
        return done

    def _hand_over(self, group: list[_File], pixels: dict[int, npt.NDArray[np.uint8]]) -> None:
        files = [file for file in group if file.row in pixels]
        if files:
            shapes = [[*file.shape, file.channels, int(file.renamed)] for file in files]
            buffer = self._buffers.fill([pixels[file.row] for file in files])
            self._write(rows=[file.row for file in files], shapes=shapes, buffer=buffer)


def _groups(files: list[_File]) -> Iterator[list[_File]]:
    """Split files so that what is decoded at once fits into memory."""
    group: list[_File] = []
    pixels = 0
    for file in files:
        pixels += file.shape[0] * file.shape[1]
        if group and pixels > PIXELS_AT_ONCE:
            yield group
            group, pixels = [], file.shape[0] * file.shape[1]
        group.append(file)
    if group:
        yield group


def _complaints() -> bytes:
    """What decoders have written to standard error, which is a file, since the last call; harmless lines aside."""
    size = os.fstat(2).st_size
    if not size:
        return b""
    text = os.pread(2, size, 0)
    os.ftruncate(2, 0)
    os.lseek(2, 0, os.SEEK_SET)
    return _HARMLESS.sub(b"", text).strip()


@cache
def _formats() -> list[str]:
    """What Pillow may open, the most usual first: it tries one after the other."""
    Image.init()
    return ["JPEG", "PNG", *(name for name in Image.ID if name not in {"JPEG", "PNG", *_NOT_OPENED})]


def _opened(path: bytes) -> Image.Image:
    try:
        return Image.open(path, formats=_formats())
    except OSError as error:
        if error.errno is not None:
            raise BadFileError(error.strerror) from error
        raise BadFileError(_why(path)) from error
    except Exception as error:  # whatever a parser of a damaged file stumbles over
        raise BadFileError(_why(path)) from error


def _why(path: bytes) -> str:
    """Return what a file is that has no header which Pillow knows."""
    head = _first_bytes(path)
    if not head:
        return "empty file"
    if head[4:8] == b"ftyp" and head[8:12] in _ISO_MEDIA:
        return _ISO_MEDIA[head[8:12]]
    return next((why for magic, why in _MAGIC if head.startswith(magic)), "damaged, or no known image format")


def _first_bytes(path: bytes) -> bytes:
    handle = os.open(path, os.O_RDONLY)
    try:
        return os.read(handle, 16)
    finally:
        os.close(handle)


def _read_header(file: _File) -> None:
    with _opened(file.path) as image:
        orientation = _orientation(image)
        width, height = image.size
        file.shape = (width, height) if orientation > 4 else (height, width)
        bands = image.getbands()
        file.channels = 3 if bands[0] == "P" else len(bands)
        extension = Path(os.fsdecode(file.path)).suffix.lower()
        file.renamed = bool(extension) and extension not in _EXTENSIONS.get(image.format or "", {extension})
        file.direct = _is_direct(image, file.path)


def _is_direct(image: Image.Image, path: bytes) -> bool:
    """Tell whether DALI decodes this kind of file to the same pixels as Pillow."""
    if image.format in ("JPEG", "MPO"):
        # Of four channels, or RGB, DALI and Pillow may see the Adobe marker differently.
        return image.mode == "L" or (image.mode == "RGB" and image.info.get("adobe_transform") != 0)
    if image.format == "PNG":
        return not getattr(image, "is_animated", False)
    if image.format == "WEBP" and image.mode == "RGB":
        return _first_bytes(path)[12:] in (b"VP8 ", b"VP8L")  # without metadata, alpha, or frames
    return False


def _orientation(image: Image.Image) -> int:
    if image.format in ("JPEG", "PNG") and not _METADATA.intersection(image.info):
        return 1  # as Pillow would find out, in a tenth of the time of a header
    with suppress(Exception):  # of broken metadata, which says nothing
        value = image.getexif().get(_ORIENTATION, 1)
        return value if value in _TURNS else 1
    return 1


def _pixels(file: _File) -> npt.NDArray[np.uint8]:
    pixels = decoded(file.path)
    file.shape = pixels.shape[:2]
    return pixels


def _write_copy(file: _File) -> npt.NDArray[np.uint8]:
    pixels = _pixels(file)
    try:
        Image.fromarray(pixels).save(file.copy, "PNG", compress_level=1)
    except OSError as error:
        raise CopyError(error.strerror or str(error)) from error
    return pixels


def decoded(path: bytes) -> npt.NDArray[np.uint8]:
    """Decode a file by Pillow: `[H, W, 3]`, orientation applied."""
    with _opened(path) as image:
        name = _NAMES.get(image.format or "", image.format)
        try:
            _refuse_what_pillow_gets_wrong(image)
            return upright_rgb(image)
        except BadFileError:
            raise
        except MemoryError as error:
            raise BadFileError("not enough memory to decode it") from error
        except Exception as error:
            raise BadFileError(f"damaged or truncated {name}{_details(name, error)}") from error


def _details(name: str | None, error: Exception) -> str:
    """What Pillow says, of a format with many kinds, some of which it does not know."""
    text = " ".join(str(error).split())[:100]
    return f", or of an unknown kind: {text}" if text and name not in ("JPEG", "PNG", "GIF", "WebP") else ""


def _refuse_what_pillow_gets_wrong(image: Image.Image) -> None:
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        if tags.get(_PLANAR) == 2 and max(tags.get(_BITS, (1,))) > 8:
            raise BadFileError("TIFF with 16-bit planes, one per colour: store the colours of a pixel together")


def upright_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return the pixels of an image `[H, W, 3]`, its orientation applied.

    Raises:
        BadFileError: it is grey of a range that nobody knows.
    """
    image.load()
    turn = _TURNS.get(_orientation(image))
    return _as_rgb(image if turn is None else image.transpose(turn))


def _as_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return np.repeat(_scaled(image)[:, :, None], 3, axis=2)
    if image.mode == "LAB":
        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
        assert converted is not None
        image = converted
    if image.mode in ("P", "PA", "LA", "La", "RGBa"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.mode == "LA":
        image = image.convert("RGBA")
    if image.mode != "RGBA":  # whose conversion to RGB would be the same
        image = image.convert("RGB")
    return np.ascontiguousarray(np.asarray(image)[:, :, :3])


def _scaled(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Scale grey of more than 8 bits to 8: white is 65,535, or what holds all values where the kind does not say."""
    values = np.asarray(image).astype(np.float64)
    if not (np.isfinite(values).all() and values.min() >= 0):
        raise BadFileError("grey values below 0 or not finite")
    white = 65535.0
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        whites = ([1.0] if image.mode == "F" else []) + [255.0, 65535.0, 4294967295.0]
        white = next((white for white in whites if values.max() <= white), 0.0)
    if white:
        grey = np.rint(values * (255 / white)).astype(np.uint8)
        if grey.any() or not values.any():
            return grey
    raise BadFileError("grey values of an unknown range")


def _read_requests(requests: queue.SimpleQueue[dict[str, Any]], buffers: _Buffers) -> None:
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if "free" in request:
            buffers.free.put(request["free"])
        else:
            requests.put(request)
    os._exit(0)  # whoever asked is gone; a decoder may be busy for ever


def main() -> None:
    """Answer requests until standard input ends."""
    warnings.simplefilter("ignore")
    answers, *handles = map(int, sys.argv[2:])
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    buffers = _Buffers(handles)
    threading.Thread(target=_read_requests, args=(requests, buffers), daemon=True).start()
    Image.MAX_IMAGE_PIXELS = None  # `max_pixels` is the bound
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    worker = _Worker(os.fdopen(answers, "w", encoding="ascii"), buffers)
    while True:
        worker.answer(requests.get())


if __name__ == "__main__":
    main()
