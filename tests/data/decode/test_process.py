"""The child process that decodes what nobody has decoded: every kind of file, and whatever befalls the process."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TFMS
from image_kinds import PIXELS, expected, kinds, planar_tiff, saved
from PIL import Image
from processes import PATIENCE, has_ended

from fastclf.activations import cached_copies
from fastclf.data.bad_images import MAX_PIXELS
from fastclf.data.classifier_data import ImageClassifierData
from fastclf.data.decode import graphs
from fastclf.data.decode import process as decode_process
from fastclf.data.decode.process import CRASHED, HUNG, Child, Task, decode
from fastclf.data.decode.worker import PIXELS_AT_ONCE, _File, _groups
from fastclf.data.image import open_image
from fastclf.data.validation.scan_cache import scan_cache
from fastclf.errors import BackendError, BadImageError


@pytest.mark.parametrize("name", kinds())
def test_every_kind_has_pillows_pixels(tmp_path, name):
    file = tmp_path / name
    file.write_bytes(kinds()[name])
    want, got = expected(file), np.rint(open_image(file) * 255)
    assert got.shape == want.shape
    if name == "lab.tif":  # of 8 bits, which are coarse
        assert np.abs(got - want).mean() < 2
    else:
        assert np.abs(got - want).max() <= 1


@pytest.mark.parametrize("name", ["cut.tif", "cut.jp2", "cut.gif", "cut.bmp", "cut.avif", "cut.webp", "cut.tga"])
def test_what_is_cut_is_named(tmp_path, name):
    form = {".tif": "TIFF", ".jp2": "JPEG2000"}.get(Path(name).suffix, name[4:].upper())
    content = saved(Image.fromarray(PIXELS), form)
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(BadImageError, match=r"cut\.\w+ cannot be decoded: "):
        open_image(tmp_path / name)


def test_content_decides_not_the_name(tmp_path):
    (tmp_path / "x.jpg").write_bytes(kinds()["tiff_lzw.tif"])
    np.testing.assert_array_equal(np.rint(open_image(tmp_path / "x.jpg") * 255), PIXELS)


def test_grey_of_more_bits_is_scaled_and_never_clipped(tmp_path):
    for name, top in (("x.tif", 65535), ("y.tif", 255)):
        values = np.linspace(0, top, 600).reshape(20, 30).astype(np.int32)
        Image.fromarray(values).save(tmp_path / name)
        np.testing.assert_array_equal(np.rint(open_image(tmp_path / name)[:, :, 0] * 255), np.rint(values * 255 / top))
    for name, values in (("negative.tif", [[-1.0, 0.5]]), ("nan.tif", [[np.nan, 0.5]])):
        Image.fromarray(np.array(values, np.float32)).save(tmp_path / name)
        with pytest.raises(BadImageError, match="grey values below 0 or not finite"):
            open_image(tmp_path / name)
    Image.fromarray(np.array([[0, 70_000]], np.int32)).save(tmp_path / "z.tif")  # of 32 bits it would all be black
    with pytest.raises(BadImageError, match="grey values of an unknown range"):
        open_image(tmp_path / "z.tif")


def test_a_map_of_floats_is_scaled_as_any_float_image(tmp_path):
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    (tmp_path / "x.pfm").write_bytes(b"Pf\n4 3\n-1.0\n" + values[::-1].tobytes())  # rows from the last to the first
    np.testing.assert_allclose(open_image(tmp_path / "x.pfm")[:, :, 0], values, atol=0.5 / 255 + 1e-6)


def test_what_is_no_file_is_never_opened(folders):
    os.mkfifo(folders / "pipe.jpg")
    with pytest.raises(BadImageError, match="a pipe, socket or device"):
        open_image(folders / "pipe.jpg")


def test_a_tiff_that_pillow_reads_wrongly_is_refused(tmp_path):
    (tmp_path / "x.tif").write_bytes(planar_tiff(PIXELS.astype("<u2") * 257))
    with pytest.raises(BadImageError, match="TIFF with 16-bit planes"):
        open_image(tmp_path / "x.tif")


def test_groups_fit_into_memory():
    sides = [(1000, 1000)] * 3 + [(8000, 8000)] + [(5000, 5000)] * 2 + [(1, 1)]
    groups = list(_groups([_File(i, b"", "", side) for i, side in enumerate(sides)]))
    assert [file.row for group in groups for file in group] == list(range(7))
    for group in groups:
        assert len(group) == 1 or sum(file.shape[0] * file.shape[1] for file in group) <= PIXELS_AT_ONCE
    assert [len(group) for group in groups] == [3, 1, 1, 2]


def written(folder, names):
    """Files of these names: with 'bad' in it half a JPEG, else an image of the extension's format."""
    folder.mkdir(exist_ok=True)
    files = []
    for i, name in enumerate(names):
        pixels = Image.fromarray(np.roll(PIXELS, i, axis=1))
        content = saved(pixels, {".jpg": "JPEG", ".tif": "TIFF", ".png": "PNG"}[Path(name).suffix])
        (folder / name).write_bytes(content[: 400 if "bad" in name else None])
        files.append((str(folder / name), str(folder / f"{name}.copy")))
    return files


def outcome(files, **options):
    found = {}
    decode(Task(files, MAX_PIXELS, 2, **options), found.__setitem__)
    assert found.keys() == set(range(len(files)))
    return [found[i] for i in range(len(files))]


NAMES = [f"{i}.{'tif' if i % 5 == 0 else 'jpg'}" for i in range(150)] + ["bad.jpg"]


def check_same(found, want):
    """The same outcome; what was not a copy may have become one, and no more than one file for each of four kills."""
    became = [i for i, (one, other) in enumerate(zip(found, want, strict=True)) if one.copied and not other.copied]
    assert len(became) <= 4
    assert [one._replace(copied=False) if i in became else one for i, one in enumerate(found)] == want


def test_a_process_that_is_killed_is_started_again(tmp_path):
    """At any moment: the outcome is the same. A file that it had in hand is Pillow's from then on, as a copy."""
    files = written(tmp_path / "x", NAMES)
    want = outcome(files)
    assert [known.copied for known in want[:6]] == [True, False, False, False, False, True]
    assert want[-1].why == "damaged or truncated JPEG"
    for after in (0.05, 0.4, 0.7, 1.0):
        decode_process._stop()
        killer = threading.Timer(
            after, lambda: decode_process._shared.process and decode_process._shared.process._child.kill()
        )
        killer.start()
        check_same(outcome(files), want)
        killer.join()
    at, found = [1, 2, 70, 150], {}

    def note(row, decoded):
        found[row] = decoded
        if len(found) in at:
            decode_process._shared.process._child.kill()

    decode(Task(files, MAX_PIXELS, 2), note)
    check_same([found[i] for i in range(len(files))], want)


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Lets the child run the worker after some other lines."""

    def replaced(*lines):
        decode_process._stop()
        file = tmp_path / "program.py"
        folder = Path(decode_process.__file__).parent
        start = [
            "import os, signal, sys, time",
            f"sys.path.insert(0, {str(folder)!r})",
            "import worker",
        ]
        file.write_text("\n".join([*start, *lines, "worker.main()"]))
        monkeypatch.setattr(decode_process, "_PROGRAM", file)

    yield replaced
    monkeypatch.undo()
    decode_process._stop()


CRASH = textwrap.dedent(
    """
    kept = worker.decoded, worker._Graph.run
    def decoded(path):
        if b"fatal" in path: os.kill(os.getpid(), signal.SIGSEGV)
        if b"hang" in path: time.sleep(1000)
        return kept[0](path)
    def run(self, group):
        if any(b"dali" in file.path for file in group): os.abort()
        kept[1](self, group)
    worker.decoded, worker._Graph.run = decoded, run
    """
)


def handed_over(child, files, after_group=lambda n: None):
    """Decode by Child.pixels: rows in the order in which they came, and copies of what came."""
    found = {}
    for n, group in enumerate(child.pixels(Task(files, MAX_PIXELS, 2))):
        for row, decoded in group:
            found[row] = decoded._replace(pixels=None if decoded.pixels is None else decoded.pixels.copy())
        after_group(n)
    return found


def test_pixels_come_in_order_and_are_those_of_pillow_or_dali(tmp_path):
    files = written(tmp_path / "x", NAMES)
    found = handed_over(Child(), files)
    assert [row for row, decoded in found.items() if not decoded.why] == [*range(150)]
    assert found[150].why == "damaged or truncated JPEG"
    for row, (name, _) in enumerate(files[:150]):
        want = graphs.decode(np.frombuffer(os.fsencode(name), np.uint8), by_path=True) if row % 5 else None
        np.testing.assert_array_equal(found[row].pixels, np.asarray(Image.open(name)) if want is None else want)
    assert not any(Path(copy).exists() for _, copy in files)


def test_a_child_that_is_killed_while_it_hands_over_costs_no_image(tmp_path):
    files = written(tmp_path / "x", NAMES)
    child = Child()
    want = handed_over(child, files)
    for kill_after in (0, 1):
        found = handed_over(child, files, lambda n, at=kill_after: child.process._child.kill() if n == at else None)
        assert found.keys() == want.keys()
        for row, decoded in want.items():
            assert found[row].why == decoded.why
            np.testing.assert_array_equal(found[row].pixels, decoded.pixels)


def test_what_is_left_early_leaves_a_child_that_answers(tmp_path):
    files = written(tmp_path / "x", NAMES)
    child = Child()
    with closing(child.pixels(Task(files, MAX_PIXELS, 2))) as groups:
        next(groups)
    assert child.process is None
    assert handed_over(child, files[:3]).keys() == {0, 1, 2}


def test_a_file_that_crashes_while_it_is_handed_over_is_named(tmp_path, program):
    program(CRASH)
    found = handed_over(Child(), written(tmp_path / "x", ["0.jpg", "fatal.tif", "1.tif", "dali.jpg", "2.png"]))
    assert [found[i].why for i in range(5)] == ["", CRASHED, "", "", ""]
    assert found[3].pixels is not None


def test_a_file_that_crashes_its_decoder_is_named_and_no_other(tmp_path, program):
    program(CRASH)
    names = ["0.jpg", "fatal.tif", "1.tif", "dali.jpg", "2.png"]
    found = outcome(written(tmp_path / "x", names))
    assert [known.why for known in found] == ["", CRASHED, "", "", ""]
    assert [known.copied for known in found] == [False, None, True, True, False]  # Pillow decodes dali.jpg


def test_a_file_on_which_a_decoder_does_not_end_is_named(tmp_path, program, monkeypatch):
    program(CRASH)
    monkeypatch.setattr(decode_process, "_HANGS", 8.0)
    found = outcome(written(tmp_path / "x", ["0.jpg", "1.tif", "hang.tif", "2.tif"]))
    assert [known.why for known in found] == ["", "", HUNG, ""]


def test_a_process_that_cannot_start_is_no_loop(tmp_path, program):
    program("print('there is no decoder', file=sys.stderr)", "sys.exit(3)")
    with pytest.raises(BackendError, match="ends at once: there is no decoder"):
        outcome(written(tmp_path / "x", ["0.jpg"]))


def test_no_room_for_a_copy_is_an_error(tmp_path):
    (file, _), *_ = written(tmp_path / "x", ["0.tif"])
    with pytest.raises(OSError, match=r"the copy of .*0.tif cannot be written .*No such file.* set XDG_CACHE_HOME"):
        outcome([(file, str(tmp_path / "nowhere" / "copy"))])
    assert outcome(written(tmp_path / "x", ["0.tif"]))[0].copied


def test_an_interrupt_leaves_a_process_that_answers(tmp_path):
    files = written(tmp_path / "x", NAMES)

    def interrupt(row, decoded):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode(Task(files, MAX_PIXELS, 2), interrupt)
    assert outcome(files[:2])[1].height == 45


def test_a_forked_process_starts_its_own(tmp_path):
    files = written(tmp_path / "x", ["0.jpg", "1.tif"])
    want = outcome(files)
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if outcome(files) == want else 1)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    assert outcome(files) == want


def test_nothing_is_left_when_the_parent_is_killed(tmp_path):
    (file, copy), *_ = written(tmp_path / "x", ["0.jpg"])
    lines = [
        "import time",
        "from fastclf.data.decode import process as p",
        f"p.decode(p.Task([({file!r}, {copy!r})], 10**6, 1), lambda *found: None)",
        "print(p._shared.process._child.pid, flush=True)",
        "time.sleep(100)",
    ]
    with subprocess.Popen([sys.executable, "-c", "\n".join(lines)], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    assert has_ended(child)


def test_native_decoders_say_nothing_on_the_terminal(tmp_path, capfd):
    (tmp_path / "x.tif").write_bytes(kinds()["jpeg.tif"][:-700])
    (tmp_path / "x.jpg").write_bytes(kinds()["baseline.jpg"][:-300])
    capfd.readouterr()
    for name in ("x.tif", "x.jpg"):
        with pytest.raises(BadImageError):
            open_image(tmp_path / name)
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def odd_data(tmp_path):
    """Images of which Pillow makes copies."""
    for part in ("train", "valid"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for kind in ("animated.gif", "tiff_lzw.tif", "16 bits.tif", "rgb.bmp", "turned 6.webp"):
                (tmp_path / part / name / kind).write_bytes(kinds()[kind])
    return ImageClassifierData.from_paths(tmp_path, 4, TFMS, device="cpu")


def test_lost_copies_are_made_again(odd_data):
    want = torch.cat([x for x, _ in odd_data.fix_dl])
    for folder in Path(os.environ["XDG_CACHE_HOME"]).rglob("scans"):
        shutil.rmtree(folder)
    assert torch.equal(torch.cat([x for x, _ in odd_data.fix_dl]), want)
    for folder in Path(os.environ["XDG_CACHE_HOME"]).rglob("scans"):
        shutil.rmtree(folder)
    odd_data.scan()
    assert torch.equal(torch.cat([x for x, _ in odd_data.val_dl]), want)


def test_removed_copies_are_made_again_and_no_others(odd_data):
    """Of what DALI decodes, in a batch with an image whose copy is gone, no copy is made."""
    (odd_data.path / "train/a/baseline.jpg").write_bytes(kinds()["baseline.jpg"])
    data = ImageClassifierData.from_paths(odd_data.path, 16, TFMS, device="cpu")
    for _ in range(2):
        for one in cached_copies():
            one.path.unlink()
        assert sum(len(x) for dl in (data.fix_dl, data.val_dl) for x, _ in dl) == 21
        assert len(cached_copies()) == 20


def test_a_copy_goes_with_the_version_of_its_file(odd_data):
    odd_data.scan()
    folder = scan_cache(odd_data.path).folder
    copies = {file.name for file in folder.glob("*.png")}
    assert len(copies) == 20
    changed = odd_data.path / "train/a/rgb.bmp"
    changed.write_bytes(kinds()["grey.bmp"])
    odd_data.scan()
    now = {file.name for file in folder.glob("*.png")}
    assert len(now) == 20
    assert len(now & copies) == 19


def test_a_cache_folder_that_cannot_be_written(odd_data, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("fastclf.report._logged", set())
    assert odd_data.scan().decoded == 20
    assert len(list(odd_data.fix_dl)) == 3
    assert capsys.readouterr().out.count("cannot be written") == 1


def test_an_interpreter_whose_path_may_not_be_searched(tmp_path, monkeypatch, program):
    """After a change of user: the one that runs is started again."""
    program()
    monkeypatch.setattr(decode_process.os, "access", lambda *_: False)
    assert [known.why for known in outcome(written(tmp_path / "x", ["0.jpg", "1.tif"]))] == ["", ""]
    assert decode_process._shared.process._child.args[0] == sys.executable


@pytest.mark.parametrize("host", ["", "uwsgi", "not/there"])
def test_a_program_that_embeds_python(tmp_path, monkeypatch, program, host):
    """Its name is in sys.executable, or nothing is; Python lies where its library does."""
    program()
    (tmp_path / "uwsgi").write_text("#!/bin/sh\necho started\n")
    (tmp_path / "uwsgi").chmod(0o755)
    monkeypatch.setattr(sys, "executable", host and str(tmp_path / host))
    assert outcome(written(tmp_path / "x", ["0.jpg"]))[0].why == ""


def test_a_program_that_embeds_python_without_an_interpreter(tmp_path, monkeypatch, program):
    program()
    (tmp_path / "host").touch(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "host"))
    monkeypatch.setattr(decode_process, "_PREFIXES", [str(tmp_path)])
    real = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda file: "/opt/host" if file == "/proc/self/exe" else real(file))
    with pytest.raises(BackendError, match=r"sys.executable is '.*/host'.* Set sys.executable to the path"):
        outcome(written(tmp_path / "x", ["0.jpg"]))


def test_what_is_printed_where_python_starts(tmp_path, monkeypatch, program):
    """By a sitecustomize, a .pth file or a module of the worker; and PYTHONOPTIMIZE=2 does not reach it."""
    program("print('decoder loaded', flush=True)", "os.write(1, bytes(range(256)))")
    ran = tmp_path / "ran"
    code = f"import pathlib\npathlib.Path({str(ran)!r}).touch()\nprint('{{}}\\nactivated', flush=True)\n"
    (tmp_path / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONOPTIMIZE", "2")
    jpg, tif = outcome(written(tmp_path / "x", ["0.jpg", "1.tif"]))
    assert (jpg.why, jpg.copied, tif.why) == ("", False, "")  # False: by DALI
    assert ran.exists()


def test_packages_that_the_program_alone_has_on_its_path(tmp_path, monkeypatch):
    """As where it adds a folder to sys.path; the worker looks there last."""
    decode_process._stop()
    (tmp_path / "own").mkdir()
    registered = tmp_path / "registered"
    code = f"from pathlib import Path\ndef register_heif_opener(): Path({str(registered)!r}).touch()\n"
    (tmp_path / "own" / "pillow_heif.py").write_text(code)
    (tmp_path / "own" / "json.py").write_text("raise SystemExit('the wrong module')")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "own")])
    if find_spec("pillow_heif").origin != str(tmp_path / "own" / "pillow_heif.py"):
        pytest.skip("pillow_heif is installed")
    try:
        assert outcome(written(tmp_path / "x", ["0.jpg"]))[0].why == ""
    finally:
        decode_process._stop()
    assert registered.exists()


def test_handles_beyond_those_of_select(tmp_path, program):
    program()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip("needs more handles")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryFile() as file:
        held = [os.dup(file.fileno()) for _ in range(1100)]
    try:
        assert outcome(written(tmp_path / "x", ["0.jpg"]))[0].why == ""
    finally:
        for handle in held:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_dali_without_its_docstrings():
    code = "import fastclf.data.decode.graphs"
    done = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert "NVIDIA DALI cannot be imported" in done.stderr
    assert done.stderr.endswith("Start Python without -OO (PYTHONOPTIMIZE=2)\n")
