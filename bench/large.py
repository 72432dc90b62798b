"""Start-up with a million images: ``python -m bench.large FOLDER [ROWS]`` prints time and memory of every step.

The images are hard links to some hundred small files, named as by 5,000 classes; so are the rows of a table, the
samples of tar archives and the rows of parquet files. Each source is opened in processes of its own: CPU seconds, and
the growth of the resident memory, at its peak during a step and after it.
"""

import gc
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

CLASSES, FILES, SHARDS = 5000, 300, 100


def class_of(row):
    """The name of a row's class."""
    return f"n{row % CLASSES:08d}"


def name_of(row):
    """The file of a row, below its class."""
    return f"{class_of(row)}/{class_of(row)}_{row // CLASSES:05d}.JPEG"


def contents():
    """Small encoded images, of different bytes and sizes."""
    from PIL import Image

    rng, found = np.random.default_rng(0), []
    for i in range(FILES):
        held = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8 + i % 7, 8 + i % 5, 3), np.uint8)).save(held, "JPEG")
        found.append(held.getvalue())
    return found


def make(folder, n):
    """Write all sources, once."""
    if (folder / "made").exists():
        return
    images = contents()
    for i, image in enumerate(images):
        (folder / "base").mkdir(parents=True, exist_ok=True)
        (folder / "base" / f"{i}.JPEG").write_bytes(image)
    for row in range(n):
        target = folder / "images" / "train" / name_of(row)
        if row < CLASSES:
            target.parent.mkdir(parents=True, exist_ok=True)
        os.link(folder / "base" / f"{row % FILES}.JPEG", target)
    lines = (f"{name_of(row)},{class_of(row)}\n" for row in range(n))
    (folder / "images" / "labels.csv").write_text("file,label\n" + "".join(lines))
    for k in range(SHARDS):
        write_shard(folder / "shards" / f"{k:03d}.tar", images, range(k, n, SHARDS))
    write_parquet(folder / "tables", images, n)
    (folder / "made").touch()


def write_shard(file, images, rows):
    """Write an archive by hand: tarfile takes some times as long."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as out:
        for row in rows:
            for ending, content in (("jpg", images[row % FILES]), ("cls", class_of(row).encode())):
                info = tarfile.TarInfo(f"{row:08d}.{ending}")
                info.size = len(content)
                out.write(info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512))
        out.write(bytes(1024))


def write_parquet(folder, images, n):
    """Write ten files of row groups of 1,000 rows."""
    import pyarrow as pa
    from pyarrow import parquet

    folder.mkdir()
    for k in range(10):
        rows = range(k, n, 10)
        table = pa.table({"image": [images[row % FILES] for row in rows], "label": [class_of(row) for row in rows]})
        parquet.write_table(table, folder / f"{k}.parquet", row_group_size=1000)


def memory(field):
    """A field of this process's memory, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


@contextmanager
def step(name):
    """Measure a step, and print it as JSON."""
    gc.collect()
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    start = time.process_time()
    yield
    seconds, peak = time.process_time() - start, memory("VmHWM")
    gc.collect()
    print(json.dumps([name, seconds, peak - before, memory("VmRSS") - before]), flush=True)


def known(data):
    """Write a record of every image, as a scan would that has decoded all."""
    from fastclf.data.validation.scan_cache import scan_cache
    from fastclf.data.validation.verdicts import Verdict

    for ds in (data.trn_ds, data.val_ds):
        cache = scan_cache(ds.source.root)
        for row in range(len(ds)):
            name = ds.source.name(row)  # a digest of its own: these shall be a million different images
            digest = hashlib.blake2b(name.encode(), digest_size=32).hexdigest()
            cache.put(name, Verdict(*ds.source.stat(row), 10, 10, 3, 0, 1, "", digest))
    cache.save()


def opened(kind, folder):
    """Data of one kind of source."""
    import fastclf as fc

    tfms = fc.tfms_from_model(fc.resnet34, 32)
    images = folder / "images"
    make_data = fc.ImageClassifierData
    return {
        "from_paths": lambda: make_data.from_paths(images, tfms=tfms),
        "from_csv": lambda: make_data.from_csv(images, "train", "labels.csv", tfms=tfms),
        "from_shards": lambda: make_data.from_shards(folder / "shards" / "{000..099}.tar", tfms=tfms),
        "from_parquet": lambda: make_data.from_parquet(folder / "tables" / "*.parquet", tfms=tfms),
    }[kind]()


def worker(kind, folder, steps):
    """Measure the steps of one source."""
    import pyarrow.parquet  # noqa: F401  # imports are no part of what is measured

    import fastclf.data.decode.renderer
    import fastclf.data.image_loader  # noqa: F401

    with step(kind):
        data = opened(kind, folder)
    if steps == "open":
        return
    with step("repr"):
        repr(data)
    with step("order of an epoch, batches, targets of one"):
        len(data.trn_dl), data.trn_dl.chunks(0), data.trn_dl._targets(data.trn_dl.order(1)[:64])
    if steps == "known":
        known(data)
        return
    with step("scan, all images known"):
        data.scan()
    with step("64 images more are scanned, and kept"):
        from fastclf.data.validation.scan_cache import scan_cache

        cache = scan_cache(data.trn_ds.source.root)
        for row in range(64):
            verdict = cache.get(data.trn_ds.source.name(row))
            cache.put(data.trn_ds.source.name(row), verdict._replace(height=11))
        cache.save()
    with step("which of 100 batches of 64 are bad"):
        for rows in data.trn_dl.chunks(0)[:100]:
            assert not data.trn_dl.images.bad(rows)
    with step("check"):
        data.check()


def run(kind, folder, steps):
    """Run a worker: its lines of the table."""
    env = os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "FASTCLF_QUIET": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "bench.large", str(folder), kind, steps]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


def main(folder, n):
    """Print the table."""
    make(folder, n)
    print("| step | CPU seconds | peak MB | MB after |\n| --- | --- | --- | --- |")

    def show(lines):
        for name, *values in lines:
            print(f"| {name} | {' | '.join(f'{value:,.1f}' for value in values)} |", flush=True)

    for kind in ("from_csv", "from_shards", "from_parquet"):
        for turn in ("first", "later")[: 2 if kind == "from_shards" else 1]:
            show([f"{name}, {turn} time", *rest] for name, *rest in run(kind, folder, "open"))
    if not (folder / "known").exists():
        run("from_paths", folder, "known")
        (folder / "known").touch()
    show(run("from_paths", folder, "check"))


if __name__ == "__main__":
    if len(sys.argv) > 3:
        worker(sys.argv[2], Path(sys.argv[1]), sys.argv[3])
    else:
        main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000)
