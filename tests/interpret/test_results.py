import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from fastclf.data.dataset import Dataset
from fastclf.data.sources.arrays import ArraySource
from fastclf.data.sources.files import FileSource
from fastclf.data.sources.labels import Labels
from fastclf.interpret.images import plots, plots_from_files
from fastclf.interpret.results import ImageModelResults

NAMES = ["cat", "dog", "owl"]


def blank(path, n):
    return ArraySource(path, np.zeros((n, 5, 4, 3), np.uint8))


def dataset(source, y):
    return Dataset(source, Labels(np.asarray(y), NAMES))


@pytest.fixture
def results(tmp_path):
    probs = np.array(
        [
            [0.90, 0.05, 0.05],  # cat, right
            [0.60, 0.30, 0.10],  # cat, right
            [0.30, 0.60, 0.10],  # cat, wrong
            [0.01, 0.90, 0.09],  # cat, very wrong
            [0.98, 0.01, 0.01],  # cat, right and surest
            [0.20, 0.70, 0.10],  # dog, right
            [np.nan] * 3,  # cat, no prediction
        ]
    )
    ds = dataset(blank(tmp_path, 7), [0, 0, 0, 0, 0, 1, 0])
    return ImageModelResults(ds, np.log(probs))


def test_rows_come_in_order_for_a_number_or_a_name(results):
    for cls in (0, "cat", np.int64(0)):
        assert results.most_correct(cls).tolist() == [4, 0, 1]
        assert results.most_incorrect(cls).tolist() == [3, 2]
        assert results.most_uncertain(cls).tolist() == [2, 1, 3, 0]
    assert results.most_correct("cat", n=1).tolist() == [4]
    assert results.most_incorrect("dog").tolist() == results.most_correct("owl").tolist() == []


def test_random_rows_match_a_plain_search(rng, tmp_path):
    n = 200
    probs, y = rng.dirichlet(np.ones(3), n), rng.integers(0, 3, n)
    found = ImageModelResults(dataset(blank(tmp_path, n), y), torch.tensor(np.log(probs)).float())
    right = sorted((i for i in range(n) if y[i] == 1 == probs[i].argmax()), key=lambda i: -probs[i, 1])
    wrong = sorted((i for i in range(n) if y[i] == 1 != probs[i].argmax()), key=lambda i: probs[i, 1])
    unsure = sorted((i for i in range(n) if y[i] == 1), key=lambda i: abs(probs[i, 1] - 1 / 3))
    assert found.most_correct(1, 9).tolist() == right[:9]
    assert found.most_incorrect(1, 9).tolist() == wrong[:9]
    assert found.most_uncertain(1, 9).tolist() == unsure[:9]


def titles(figure):
    return [ax.get_title() for ax in figure.axes if ax.get_title()]


def test_plots_name_class_prediction_and_probability(results):
    figure = results.plot_most_incorrect("cat")
    assert titles(figure) == [
        "true: cat 0.010\npredicted: dog 0.900\nrow 3",
        "true: cat 0.300\npredicted: dog 0.600\nrow 2",
    ]
    assert figure.get_suptitle() == "Most incorrect: cat"
    assert titles(results.plot_most_correct(0, n=2)) == ["true: cat 0.980\nrow 4", "true: cat 0.900\nrow 0"]
    assert len(titles(results.plot_most_uncertain(0))) == 4
    assert results.plot_most_incorrect("dog").get_suptitle() == "Most incorrect: dog (none)"


def test_top_losses_are_those_of_scikit_learn(rng, tmp_path):
    from sklearn.metrics import log_loss

    n = 120
    probs, y = rng.dirichlet(np.ones(3), n), rng.integers(0, 3, n)
    probs[11] = np.nan
    found = ImageModelResults(dataset(blank(tmp_path, n), y), np.log(probs))
    rows = [i for i in range(n) if i != 11]
    losses = {i: log_loss(y[i : i + 1], probs[i : i + 1], labels=[0, 1, 2]) for i in rows}
    assert found.top_losses(20).tolist() == sorted(rows, key=lambda i: -losses[i])[:20]
    assert len(found.top_losses(500)) == n - 1
    targets = rng.integers(0, 2, (n, 3)).astype(np.float32)
    several = ImageModelResults(Dataset(blank(tmp_path, n), Labels(targets, NAMES, is_multi=True)), probs)
    losses = {i: log_loss(targets[i], probs[i], labels=[0, 1]) for i in rows}
    assert several.top_losses().tolist() == sorted(rows, key=lambda i: -losses[i])[:9]


def test_plot_top_losses_says_what_is_true_and_what_was_predicted(results, tmp_path):
    figure = results.plot_top_losses(2)
    assert titles(figure) == [
        "true: cat 0.010\npredicted: dog 0.900\nloss: 4.605\nrow 3",
        "true: cat 0.300\npredicted: dog 0.600\nloss: 1.204\nrow 2",
    ]
    assert figure.get_suptitle() == "Top losses, with probabilities"
    assert len(titles(results.plot_top_losses())) == 6
    several = Dataset(blank(tmp_path, 3), Labels(np.float32([[1, 0, 1], [0, 0, 0], [0, 1, 0]]), NAMES, is_multi=True))
    found = ImageModelResults(several, np.array([[0.0, 0.6, 0.2], [0.1, 0.4, 0.3], [np.nan] * 3]))
    loss = (100 - np.log(0.4) - np.log(0.2)) / 3
    assert titles(found.plot_top_losses()) == [
        f"true: cat, owl\npredicted: dog\nprobability of cat: 0.000\nloss: {loss:.3f}\nrow 0",
        f"true: none\npredicted: none\nprobability of dog: 0.400\nloss: {-np.log([0.9, 0.6, 0.7]).mean():.3f}\nrow 1",
    ]
    nothing = ImageModelResults(dataset(blank(tmp_path, 0), np.zeros(0, int)), np.zeros((0, 3)))
    assert nothing.plot_top_losses().get_suptitle() == "Top losses, with probabilities (none)"


def test_images_are_read_from_files_and_from_arrays(tmp_path, rng):
    arrays = rng.integers(0, 256, (2, 6, 5, 3), np.uint8)
    for i, image in enumerate(arrays):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    log_preds = np.log([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1]])
    for ds in (
        dataset(FileSource(tmp_path, ["0.png", "1.png"]), [0, 0]),
        dataset(ArraySource(tmp_path, arrays), [0, 0]),
        dataset(ArraySource(tmp_path, arrays.astype(np.float32) / 255), [0, 0]),
    ):
        figure = ImageModelResults(ds, log_preds).plot_most_correct(0)
        for ax, image in zip(figure.axes, arrays, strict=True):
            drawn = np.asarray(ax.images[0].get_array(), np.float64)
            assert np.allclose(drawn / (255 if drawn.max() > 1 else 1), image / 255, atol=1e-6)
    with pytest.raises(ValueError, match="got rows of activations"):
        ImageModelResults(dataset(ArraySource(tmp_path, np.ones((2, 4))), [0, 0]), log_preds).plot_most_correct(0)


def test_captions_name_the_file(tmp_path):
    names = ["valid/cat/a.png", "valid/cat/" + "x" * 40 + "end.png", "b\n.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 4)).save(tmp_path / name)
    found = ImageModelResults(dataset(FileSource(tmp_path, names), [0, 0, 0]), np.log([[0.8, 0.1, 0.1]] * 3))
    lines = [title.split("\n")[-1] for title in titles(found.plot_most_correct(0))]
    assert lines == ["a.png", "..." + "x" * 22 + "end.png", "b\\n.png"]


def test_a_test_set_without_labels_has_no_wrong_images(tmp_path):
    labels = Labels(np.zeros(3, np.int64), NAMES).zeros(7)
    with pytest.raises(ValueError, match=r"ds has no labels.*test_with_labels=True"):
        ImageModelResults(Dataset(blank(tmp_path, 7), labels), np.zeros((7, 3)))


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "inline", "qtagg", "agg"])
def test_a_notebook_shows_a_figure_once(monkeypatch, backend):
    """IPython first calls this: it closes the figure, which the inline backend would show again at the cell's end."""
    figure = plots([np.zeros((4, 4))])
    assert plt.fignum_exists(figure.number)
    monkeypatch.setattr(plt, "get_backend", lambda: backend)
    assert figure._repr_mimebundle_(include=None, exclude=None) == {}
    assert plt.fignum_exists(figure.number) == ("inline" not in backend)
    plt.close(figure)


def test_misuse_names_the_argument(results, tmp_path):
    ds, source = results.ds, results.ds.source
    with pytest.raises(ValueError, match=r"must be \[7, 3\].*got \[7, 2\]"):
        ImageModelResults(ds, np.zeros((7, 2)))
    with pytest.raises(ValueError, match="Average the views"):
        ImageModelResults(ds, np.zeros((5, 7, 3)))
    with pytest.raises(ValueError, match=r"take np\.log"):
        ImageModelResults(ds, np.full((7, 3), 1 / 3))
    with pytest.raises(ValueError, match="cls must be one of 'cat', 'dog', 'owl', or 0 to 2, got 'cow'"):
        results.most_correct("cow")
    with pytest.raises(ValueError, match="got -1"):
        results.plot_most_uncertain(-1)
    with pytest.raises(ValueError, match="must have classes, got numbers"):
        ImageModelResults(Dataset(source, Labels(np.zeros((7, 3), np.float32), [], is_reg=True)), np.zeros((7, 3)))
    several = Dataset(source, Labels(np.zeros((7, 3), np.float32), NAMES, is_multi=True))
    with pytest.raises(ValueError, match=r"need probabilities, got values outside of 0\.\.1"):
        ImageModelResults(several, np.full((7, 3), -0.1))
    with pytest.raises(ValueError, match=r"Average the views first: preds\.mean\(0\)"):
        ImageModelResults(several, np.zeros((5, 7, 3)))


def test_several_labels_match_a_plain_search(rng, tmp_path):
    n = 150
    probs, y = rng.uniform(size=(n, 3)), rng.integers(0, 2, (n, 3)).astype(np.float32)
    probs[7] = np.nan
    found = ImageModelResults(Dataset(blank(tmp_path, n), Labels(y, NAMES, is_multi=True)), probs)
    rows = [i for i in range(n) if i != 7]
    for k, name in enumerate(NAMES):
        p, has = probs[:, k], y[:, k] > 0
        right = sorted((i for i in rows if has[i] and p[i] > 0.5), key=lambda i: -p[i])
        wrong = sorted((i for i in rows if has[i] != (p[i] > 0.5)), key=lambda i: p[i] if has[i] else 1 - p[i])
        unsure = sorted(rows, key=lambda i: abs(p[i] - 0.5))
        assert found.most_correct(name, 9).tolist() == right[:9]
        assert found.most_incorrect(name, 9).tolist() == wrong[:9]
        assert found.most_uncertain(name, 9).tolist() == unsure[:9]


def test_titles_of_several_labels_name_the_true_ones(tmp_path):
    y = np.float32([[1, 0, 1], [0, 0, 0]])
    ds = Dataset(blank(tmp_path, 2), Labels(y, NAMES, is_multi=True))
    found = ImageModelResults(ds, np.array([[0.9, 0.8, 0.2], [0.1, 0.7, 0.3]]))
    assert titles(found.plot_most_incorrect("dog")) == [
        "true: cat, owl\nprobability of dog: 0.800\nrow 0",
        "true: none\nprobability of dog: 0.700\nrow 1",
    ]
    assert repr(found) == "ImageModelResults: 2 images, 3 classes; 0 predicted right"
    assert titles(found.plot_most_incorrect("owl")) == ["true: cat, owl\nprobability of owl: 0.200\nrow 0"]


def test_plots_takes_images_of_any_size_and_kind(rng):
    images = [
        rng.integers(0, 256, (9, 5, 3), np.uint8),
        rng.uniform(size=(4, 30, 3)).astype(np.float32),
        rng.uniform(size=(8, 8)),
    ]
    figure = plots(images, rows=2, titles=["a", "b$", "c"], maintitle="three")
    figure.canvas.draw()
    assert [len(ax.images) for ax in figure.axes] == [1, 1, 1, 0]
    assert not any(ax.axison for ax in figure.axes)
    assert titles(figure) == ["a", "b$", "c"]
    assert titles(plots(np.zeros((2, 4, 4, 3), np.uint8))) == []
    assert tuple(plots([], figsize=(3, 2)).get_size_inches()) == (3, 2)


def test_plots_refuses_what_is_no_image(rng):
    with pytest.raises(ValueError, match=r"image 1 must be \[H, W, 3\] or \[H, W\], got \[3, 8, 8\].*denorm"):
        plots([np.zeros((8, 8, 3), np.uint8), np.zeros((3, 8, 8))])
    with pytest.raises(ValueError, match=r"image 0 must be uint8, or float in 0\.\.1, got float64 -2 to 0.*denorm"):
        plots([np.linspace(-2, 0, 48).reshape(4, 4, 3)])
    with pytest.raises(ValueError, match="titles must be one per image, 1, got 2"):
        plots([np.zeros((4, 4))], titles=["a", "b"])
    for rows in (0, 1.5, "1"):
        with pytest.raises(ValueError, match="plots: rows must be a whole number of at least 1"):
            plots([np.zeros((4, 4))], rows=rows)
    for figsize in (3, (3,), (1, 2, 3)):
        with pytest.raises(ValueError, match=r"figsize must be \(width, height\)"):
            plots([np.zeros((4, 4))], figsize=figsize)
    with pytest.raises(ValueError, match=r"image 0 must be \[H, W, 3\]"):
        plots(None)


@pytest.mark.parametrize("shape", [(8, 5, 3), (8, 5), (8, 5, 1)])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, lambda x: Image.fromarray(x.squeeze())])
def test_plots_takes_one_image(rng, shape, kind):
    image = rng.integers(0, 256, shape).astype(np.uint8)
    (ax,) = plots(kind(image)).axes
    np.testing.assert_array_equal(np.asarray(ax.images[0].get_array()).reshape(shape), image)


def test_how_many_is_a_number(results):
    for call in (results.top_losses, lambda n: results.most_correct("cat", n), lambda n: results.most_uncertain(0, n)):
        for wrong in (-1, 1.5, "3", None, True):
            with pytest.raises(ValueError, match="ImageModelResults: n must be a whole number of at least 0"):
                call(wrong)
        assert len(call(np.int64(0))) == 0


def test_plots_from_files_reads_each(tmp_path, rng):
    image = rng.integers(0, 256, (6, 5, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    figure = plots_from_files([tmp_path / "a.png", str(tmp_path / "a.png")], titles=["a", "again"])
    assert np.allclose(figure.axes[1].images[0].get_array() * 255, image, atol=1e-3)
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        plots_from_files([tmp_path / "none.png"])


@pytest.mark.parametrize("cls", [None, 1.5, -1, 3, "ant", [0]])
def test_a_class_that_there_is_not(results, cls):
    for call in (results.most_correct, results.most_incorrect, results.most_uncertain):
        with pytest.raises(ValueError, match="cls must be one of 'cat', 'dog', 'owl', or 0 to 2"):
            call(cls)
