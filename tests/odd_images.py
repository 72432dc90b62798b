"""Bytes of image files that cannot be decoded, and of odd ones that can."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

NOISE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


def encoded(image=None, form="JPEG", **options):
    buffer = io.BytesIO()
    (Image.fromarray(NOISE) if image is None else image).save(buffer, form, **options)
    return buffer.getvalue()


def png(height, width, bits, colour_type, packed):
    """A PNG with these words in its header, and compressed rows that need not fit them."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def enormous(side=60_000):
    """A 1-bit PNG that claims side x side pixels in few bytes; its pixels would take ten gigabytes."""
    return png(side, side, 1, 0, zlib.compress(bytes(1000)))


def bad_files():
    """Name -> (bytes, what the reason must say)."""
    return {
        "zero.jpg": (b"", "empty file"),
        "html.jpg": (b"<html>404 not found</html>", "text or web page"),
        "text.png": (b"no image at all", "no known image format"),
        "half.jpg": (encoded()[:700], "damaged or truncated JPEG"),
        "tail.jpg": (encoded()[:-20], "damaged or truncated JPEG"),
        "head.jpg": (encoded()[:12], "damaged or truncated JPEG"),
        "half.png": (encoded(form="PNG")[:1500], "damaged or truncated PNG"),
        "half.webp": (encoded(form="WEBP")[:200], "damaged or truncated WebP"),
        "half.gif": (encoded(form="GIF")[:300], "damaged or truncated GIF"),
        "half.tif": (encoded(form="TIFF")[:2000], "damaged or truncated TIFF"),
        "half.jp2": (encoded(form="JPEG2000")[:200], "damaged or truncated JPEG 2000"),
        "half.bmp": (encoded(form="BMP")[:700], "damaged or truncated BMP"),
        "phone.heic": (b"\0\0\0\x18ftypheic" + bytes(50), "HEIC"),
        "new.avif": (b"\0\0\0\x18ftypavif" + bytes(50), "AVIF"),
        "new.jxl": (b"\xff\x0a" + bytes(50), "unsupported format JPEG XL"),
        "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported format SVG"),
        "bomb.png": (enormous(), "too large: 60,000 x 60,000 pixels"),
        "fork.jpg": (b"\0\5\x16\7" * 30, "no known image format"),
    }


def odd_files():
    """Name -> bytes of images that can be decoded."""
    im = Image.fromarray(NOISE)
    grey16 = Image.fromarray(np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16))
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    palette = im.convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "png as.jpg": encoded(form="PNG"),
        "jpeg as.gif": encoded(),
        "grey.jpg": encoded(im.convert("L")),
        "16 bit.png": encoded(grey16, "PNG"),
        "cmyk.jpg": encoded(im.convert("CMYK")),
        "la.png": encoded(im.convert("LA"), "PNG"),
        "palette.png": encoded(palette, "PNG", transparency=bytes([0] + [255] * 15)),
        "rgba.png": encoded(Image.new("RGBA", (10, 10), (255, 0, 0, 0)), "PNG"),
        "1 bit.png": encoded(Image.new("1", (10, 10), 1), "PNG"),
        "anim.webp": encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True),
        "anim.png": encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        "anim.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "gif.jpg": encoded(form="GIF"),
        "turned.jpg": encoded(exif=exif),
        "icc.jpg": encoded(icc_profile=b"junk" * 30),
        "one.png": encoded(Image.new("RGB", (1, 1)), "PNG"),
        "wide.png": encoded(Image.new("RGB", (5000, 1)), "PNG"),
        "tall.png": encoded(Image.new("RGB", (1, 5000)), "PNG"),
        "UPPER.JPEG": encoded(),
        "ünïçødé 图像 sp ace 🐱.jpg": encoded(),
        "=1+1.jpg": encoded(),
    }
    middle = bytearray(encoded())  # overwritten pixels cannot be told from others without a checksum
    middle[len(middle) // 2 : len(middle) // 2 + 30] = bytes(30)
    return files | {"middle.jpg": bytes(middle)}
