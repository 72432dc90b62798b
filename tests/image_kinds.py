"""Bytes of images of every format and kind that Pillow writes, and their pixels as Pillow has them."""

import io
import struct
import zlib
from functools import cache

import numpy as np
from odd_images import png
from PIL import Image, ImageCms, ImageOps

_RNG = np.random.default_rng(0)
_BLOCKS = np.kron(_RNG.integers(0, 256, (5, 7, 3)), np.ones((9, 9, 1)))
PIXELS = np.clip(_BLOCKS + _RNG.normal(0, 8, _BLOCKS.shape), 0, 255).astype(np.uint8)
"""`[45, 63, 3]`"""
GREY16 = np.linspace(0, 65535, 45 * 63).reshape(45, 63).astype(np.uint16)


def saved(image, form, **options):
    buffer = io.BytesIO()
    others = [other.copy() for other in options.pop("append_images", ())]  # an image keeps how it was saved
    image.copy().save(buffer, form, **options, **({"append_images": others} if others else {}))
    return buffer.getvalue()


def png16(values, colour_type):
    """A PNG of 16 bits per value `[H, W, C]`: Pillow writes only grey ones."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(height, width, 16, colour_type, zlib.compress(rows))


def planar_tiff(values):
    """A TIFF of one plane per colour, `[H, W, 3]` of 8 or 16 bits: Pillow does not write them."""
    height, width = values.shape[:2]
    planes = [values[:, :, i].tobytes() for i in range(3)]
    sizes, bits = [len(plane) for plane in planes], [8 * values.itemsize] * 3
    after = 8 + 2 + 12 * 10 + 4
    start = after + 6 + 12 + 12
    offsets = [start + sum(sizes[:i]) for i in range(3)]
    tags = [(256, "I", [width]), (257, "I", [height]), (258, "H", bits), (259, "H", [1]), (262, "H", [2])]
    tags += [(273, "I", offsets), (277, "H", [3]), (278, "I", [height]), (279, "I", sizes), (284, "H", [2])]
    entries = extra = b""
    for tag, kind, numbers in tags:
        packed = struct.pack(f"<{len(numbers)}{kind}", *numbers)
        if len(packed) > 4:
            packed, extra = struct.pack("<I", after + len(extra)), extra + packed
        entries += struct.pack("<HHI", tag, {"H": 3, "I": 4}[kind], len(numbers)) + packed.ljust(4, b"\0")
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + extra + b"".join(planes)


def exif(orientation):
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


@cache
def kinds():
    """Name -> bytes."""
    rgb = Image.fromarray(PIXELS)
    alpha = Image.fromarray(np.tile(np.arange(63, dtype=np.uint8) * 4, (45, 1)))
    rgba, grey, cmyk = rgb.copy(), rgb.convert("L"), rgb.convert("CMYK")
    rgba.putalpha(alpha)
    palette = rgb.convert("P", palette=Image.Palette.ADAPTIVE, colors=200)
    few = rgb.convert("P", palette=Image.Palette.ADAPTIVE, colors=14)
    bits, grey16 = rgb.convert("1"), Image.fromarray(GREY16)
    more = {"save_all": True, "append_images": [rgb.rotate(90)]}
    clear = bytes([0] * 5 + [255] * 195)
    lab = ImageCms.profileToProfile(
        rgb, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    found = {
        "baseline.jpg": saved(rgb, "JPEG"),
        "444.jpg": saved(rgb, "JPEG", subsampling=0, quality=95),
        "422.jpg": saved(rgb, "JPEG", subsampling=1),
        "progressive.jpg": saved(rgb, "JPEG", progressive=True),
        "restarts.jpg": saved(rgb, "JPEG", restart_marker_rows=1),
        "rgb.jpg": saved(rgb, "JPEG", keep_rgb=True),
        "grey.jpg": saved(grey, "JPEG"),
        "cmyk.jpg": saved(cmyk, "JPEG"),
        "progressive cmyk.jpg": saved(cmyk, "JPEG", progressive=True),
        "two.mpo": saved(rgb, "MPO", **more),
        "rgb.png": saved(rgb, "PNG"),
        "rgba.png": saved(rgba, "PNG"),
        "grey.png": saved(grey, "PNG"),
        "grey alpha.png": saved(rgba.convert("LA"), "PNG"),
        "palette.png": saved(palette, "PNG"),
        "clear palette.png": saved(palette, "PNG", transparency=clear),
        "4 bits.png": saved(few, "PNG", bits=4),
        "1 bit.png": saved(bits, "PNG"),
        "16 bits.png": saved(grey16, "PNG"),
        "16 bit rgb.png": png16(PIXELS.astype(np.uint16) * 257, 2),
        "16 bit rgba.png": png16(np.asarray(rgba).astype(np.uint16) * 257, 6),
        "clear colour.png": saved(rgb, "PNG", transparency=(255, 0, 0)),
        "animated.png": saved(rgb, "PNG", **more),
        "lossy.webp": saved(rgb, "WEBP"),
        "lossless.webp": saved(rgb, "WEBP", lossless=True),
        "alpha.webp": saved(rgba, "WEBP"),
        "lossless alpha.webp": saved(rgba, "WEBP", lossless=True),
        "animated.webp": saved(rgb, "WEBP", **more),
        "metadata.webp": saved(rgb, "WEBP", exif=exif(1), icc_profile=b"junk" * 30),
        "palette.gif": saved(palette, "GIF"),
        "grey.gif": saved(grey, "GIF"),
        "animated.gif": saved(palette, "GIF", **more),
        "interlaced.gif": saved(palette, "GIF", interlace=1),
        "rgb.bmp": saved(rgb, "BMP"),
        "rgba.bmp": saved(rgba, "BMP"),
        "grey.bmp": saved(grey, "BMP"),
        "palette.bmp": saved(palette, "BMP"),
        "1 bit.bmp": saved(bits, "BMP"),
        "rgb.dib": saved(rgb, "DIB"),
        "rgb.jp2": saved(rgb, "JPEG2000"),
        "lossy.jp2": saved(rgb, "JPEG2000", irreversible=True, quality_layers=[20]),
        "tiled.jp2": saved(rgb, "JPEG2000", tile_size=(32, 32)),
        "rgba.jp2": saved(rgba, "JPEG2000"),
        "16 bits.jp2": saved(grey16, "JPEG2000"),
        "raw.j2k": saved(rgb, "JPEG2000", no_jp2=True),
        "rgb.avif": saved(rgb, "AVIF"),
        "rgba.avif": saved(rgba, "AVIF"),
        "rgb.ppm": saved(rgb, "PPM"),
        "grey.pgm": saved(grey, "PPM"),
        "1 bit.pbm": saved(bits, "PPM"),
        "16 bits.pgm": saved(grey16, "PPM"),
        "rgb.tga": saved(rgb, "TGA"),
        "packed.tga": saved(rgba, "TGA", compression="tga_rle"),
        "rgb.pcx": saved(rgb, "PCX"),
        "rgba.ico": saved(rgba.resize((64, 64)), "ICO", sizes=[(64, 64)]),
        "planar.tif": planar_tiff(PIXELS),
        "big.tif": saved(rgb, "TIFF", big_tiff=True),
        "rgb.tif": saved(rgb, "TIFF"),
        "16 bits.tif": saved(grey16, "TIFF"),
        "16 bit lzw.tif": saved(grey16, "TIFF", compression="tiff_lzw"),
        "float.tif": saved(Image.fromarray(GREY16.astype(np.float32) / 65535), "TIFF"),
        "32 bits.tif": saved(Image.fromarray(GREY16.astype(np.int32)), "TIFF"),
        "cmyk.tif": saved(cmyk, "TIFF"),
        "lab.tif": saved(lab, "TIFF"),
        "ycbcr.tif": saved(rgb.convert("YCbCr"), "TIFF"),
        "rgba.tif": saved(rgba, "TIFF"),
        "grey alpha.tif": saved(rgba.convert("LA"), "TIFF"),
        "palette.tif": saved(palette, "TIFF"),
        "pages.tif": saved(rgb, "TIFF", **more),
    }
    for packed in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "lzma", "zstd", "jpeg"):
        found[f"{packed}.tif"] = saved(rgb, "TIFF", compression=packed)
    for packed in ("group3", "group4", "tiff_ccitt"):
        found[f"{packed}.tif"] = saved(bits, "TIFF", compression=packed)
    for n in range(1, 9):
        found[f"turned {n}.jpg"] = saved(rgb, "JPEG", exif=exif(n))
        found[f"turned {n}.png"] = saved(rgb, "PNG", exif=exif(n))
        found[f"turned {n}.tif"] = saved(rgb, "TIFF", exif=exif(n))
        found[f"turned {n}.webp"] = saved(rgb, "WEBP", exif=b"Exif\0\0" + exif(n))
        found[f"turned {n}.avif"] = saved(rgb, "AVIF", exif=exif(n))
    return found


def expected(file):
    """What Pillow decodes: `[H, W, 3] float64` of 0..255, upright, alpha dropped; None where it refuses."""
    try:
        with Image.open(file) as image:
            image.load()
            image = ImageOps.exif_transpose(image)
            if image.mode == "F" or image.mode.startswith("I"):
                values = np.asarray(image).astype(np.float64)
                white = 1 if image.mode == "F" else 65535
                return np.rint(np.repeat(values[:, :, None] / white * 255, 3, axis=2))
            if image.mode == "LAB":
                return np.asarray(PIXELS, np.float64)
            if "A" in image.mode or image.mode == "P":
                image = image.convert("RGBA")
                return np.asarray(image)[:, :, :3].astype(np.float64)
            return np.asarray(image.convert("RGB")).astype(np.float64)
    except Exception:
        return None
