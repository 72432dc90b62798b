"""A leading ``~`` in any path that a user gives is the home folder, as in a shell."""

import numpy as np
import pytest
from helpers import three_colours, write_images

from fastclf import ImageClassifierData, load, open_image, tfms_from_model
from fastclf.cli import main
from fastclf.models.archs import efficientnet_lite0
from fastclf.models.verify import verify


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return three_colours(tmp_path / "home" / "data", n=3, n_valid=2, n_test=1).parent


def test_python_calls(home):
    tfms = tfms_from_model(efficientnet_lite0, 32)
    data = ImageClassifierData.from_paths("~/data", bs=4, tfms=tfms)
    assert data.path == home / "data"
    image = next((home / "data" / "valid").rglob("*.png"))
    assert open_image(f"~/{image.relative_to(home)}").shape[2] == 3
    names = [str(file) for file in sorted((home / "data" / "train").rglob("*.png"))]
    (home / "t.csv").write_text("file,label\n" + "".join(f"{name},{i % 2}\n" for i, name in enumerate(names)))
    table = ImageClassifierData.from_csv("~/data", ".", "~/t.csv", bs=4, tfms=tfms, val_idxs=[0, 1])
    assert len(table.val_ds) == 2
    np.save(home / "x.npy", np.ones((4, 3), np.float32))
    rows = ImageClassifierData.from_arrays("~/rows", ("~/x.npy", [0, 1, 0, 1]), ("~/x.npy", [0, 1, 0, 1]), bs=2)
    assert rows.path == home / "rows"
    assert len(rows.trn_ds) == 4


def test_a_model_and_what_is_made_of_it(home, capsys):
    data = ImageClassifierData.from_paths("~/data", bs=4, tfms=tfms_from_model(efficientnet_lite0, 32))
    from fastclf import ConvLearner

    learn = ConvLearner.pretrained(efficientnet_lite0, data, pretrained=False)
    learn.save("m")
    learn.report("~/report.html")
    assert (home / "report.html").is_file()
    classifier = load("~/data/models/m")
    found = classifier.predict("~/data/valid")
    assert len(found) == len(classifier.predict("~/data/valid/*/*.png")) == 6
    found.to_csv("~/p.csv")
    assert (home / "p.csv").is_file()
    assert main(["predict", "~/data/models/m", "~/data/valid", "--out", "~/q.csv"]) == 0
    assert (home / "q.csv").read_bytes() == (home / "p.csv").read_bytes()
    classifier.export("~/m.onnx")
    assert verify("~/m.onnx") < 1e-4
    assert not (home.parent / "~").exists()


def test_a_name_that_only_begins_with_the_sign_stays(home):
    write_images(home.parent, {"plain": 2})
    file = next((home.parent / "plain").rglob("*.png"))
    file.rename(home.parent / "~$notes.png")
    assert open_image("~$notes.png").shape[2] == 3
