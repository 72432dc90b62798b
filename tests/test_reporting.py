"""The page that a learner writes: complete, escaped, without addresses outside of it, and there whole or not at all."""

import re
import shutil

import numpy as np
import pytest
from helpers import image_data, row_data, three_colours, tiny_learner, write_images

from fastclf import HeadLearner, ImageClassifierData, tfms_from_stats
from fastclf.interpret import near, page

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def self_contained(text):
    """Nothing runs, and nothing is loaded from elsewhere."""
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    return "<script" not in text and all(s.startswith(("data:", "#")) for s in sources) and "@import" not in text


@pytest.mark.parametrize("precompute", [True, False])
def test_a_page_has_everything_and_needs_no_network(tmp_path, monkeypatch, precompute):
    folder = three_colours(tmp_path / "data")
    shutil.copy(folder / "train/red/000.png", folder / "valid/red/copy.png")
    learn = tiny_learner(image_data(folder), precompute=precompute)
    learn.fit(1e-2, 2)
    monkeypatch.chdir(tmp_path)
    file = learn.report("page.html")
    text = file.read_text()
    assert file == tmp_path / "page.html"
    assert self_contained(text)
    assert "byte for byte" in text
    assert text.count("data:image/jpeg") >= 12
    assert text.count('class="heat"') >= 12
    assert ("train/red/000.png" in text.partition('id="duplicates"')[2]) == precompute
    assert len(text) < 2_000_000
    assert [entry.name for entry in tmp_path.iterdir() if "page" in entry.name] == ["page.html"]


def test_hostile_names_are_text(tmp_path):
    evil = '<script>alert("1")<'
    folder = write_images(tmp_path, {f"{part}/{name}": 6 for part in ("train", "valid") for name in (evil, "b&'c")})
    for file in (folder / "valid" / evil).iterdir():
        file.rename(file.with_name(f'{file.stem}"><img src=x onerror=y>.png'))
    learn = tiny_learner(image_data(folder))
    text = learn.report(tmp_path / "page.html").read_text()
    assert self_contained(text)
    assert "<img src=x" not in text
    assert "&lt;script&gt;alert" in text


def test_several_labels_bad_images_and_no_bodies(tmp_path):
    folder = write_images(tmp_path, {"all": 40})
    (folder / "all" / "039.png").write_bytes(b"no image")
    lines = [f"{i:03d}.png,{'a b' if i % 2 else 'b' if i % 3 else 'a'}" for i in range(40)]
    (folder / "labels.csv").write_text("\n".join(["file,tags", *lines]))
    data = ImageClassifierData.from_csv(
        folder, "all", "labels.csv", val_idxs=np.arange(20, 40), tfms=tfms_from_stats(HALF, 16), on_bad="skip", bs=8
    )
    text = tiny_learner(data, metrics=[]).report(tmp_path / "several.html").read_text()
    assert "true positive" in text
    assert "have all their labels right" in text
    rows = HeadLearner(row_data(tmp_path, np.random.default_rng(0)), xtra_fc=[4])
    text = rows.report(tmp_path / "rows.html").read_text()
    assert "Of 100 rows like these" in text
    for section in ("images", "duplicates"):
        assert f'id="{section}"' not in text
        assert f'href="#{section}"' not in text


def test_a_page_says_where_duplicates_were_not_looked_for(tmp_path, monkeypatch):
    data = image_data(three_colours(tmp_path / "data"))
    learn = tiny_learner(data)
    assert "learn.precompute = True" in learn.report(tmp_path / "page.html").read_text()
    learn.precompute = True
    assert "were compared" not in learn.report(tmp_path / "page.html").read_text()
    monkeypatch.setattr(near, "_MOST_PRODUCTS", 5 * len(data.trn_ds) * 12)  # of 12 columns each
    assert "Only the first 5 of 18 images were compared" in learn.report(tmp_path / "page.html").read_text()


@pytest.mark.parametrize("c", [2, 100, 500])
def test_matrices_of_any_size_are_bounded(rng, c):
    y, guess = rng.integers(0, c, 3000), rng.integers(0, c, 3000)
    made = page.confusion(y, guess, [f"class {k}" for k in range(c)])
    assert len(made["matrix"]["names"]) == min(c, 120)
    assert made["confused"][0][2] == max(
        np.sum((y == i) & (guess == j)) for i, j in {*zip(y, guess, strict=True)} if i != j
    )
    total = sum(n for _, _, n, _ in made["matrix"]["cells"])
    assert total == 3000 if c <= 120 else 0 < total < 3000


def test_an_older_page_stays_where_writing_fails(tmp_path, monkeypatch):
    learn = tiny_learner(image_data(three_colours(tmp_path / "data")))
    file = tmp_path / "page.html"
    file.write_text("older")
    monkeypatch.setattr(page, "calibration_plot", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        learn.report(file)
    assert file.read_text() == "older"
    with pytest.raises(IsADirectoryError, match="is a folder"):
        learn.report(tmp_path)
