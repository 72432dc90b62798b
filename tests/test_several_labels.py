"""Several labels train as one does: start, rate, shown losses; losses of the user's own; shapes of a regression."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import image_data, row_data, three_colours, tiny_learner
from kinks import linear_relus
from torch import nn

from fastclf import BCE, NLL, HeadLearner, ImageClassifierData, Learner, mean_average_precision

AUTOGRAD = partial(torch.optim.SGD, momentum=0.9)


def _named(crit):
    """The same name in every process, which a function's address is not."""
    return getattr(crit, "__name__", type(crit).__name__)


def labelled(path, rng, n=200, c=5, f=10, bs=16, **kwargs):
    """Rows of which each label depends on one column, rare and frequent ones."""
    x = rng.standard_normal((n + 60, f)).astype(np.float32)
    y = (x[:, np.arange(c) % f] > np.linspace(-1, 1.2, c)).astype(np.float32)
    y[:2] = [[0], [1]]
    return ImageClassifierData.from_arrays(path, (x[:n], y[:n]), (x[n:], y[n:]), bs=bs, **kwargs)


def numbers(path, rng, n=120, k=1, flat=True):
    x = rng.standard_normal((n + 50, 6)).astype(np.float32)
    y = np.stack([30 + 2 * x[:, j] + 0.1 * x[:, 5] for j in range(k)], 1).astype(np.float32)
    y = y[:, 0] if flat else y
    return ImageClassifierData.from_arrays(path, (x[:n], y[:n]), (x[n:], y[n:]), bs=16, continuous=True)


def plain_loss(learn):
    """The mean binary cross-entropy of the validation set, from logits: a sure probability may round to 1."""
    learn.head.eval()
    with torch.no_grad():
        z = learn.head.double().logits(torch.from_numpy(learn.data.val_ds.rows).double()).numpy()
    return np.mean(np.logaddexp(0, z) - learn.data.val_y * z)


def last_linear(learn):
    return learn.head.layers[-1]


def test_the_output_starts_at_the_log_odds_of_the_labels(tmp_path, rng):
    data = labelled(tmp_path, rng)
    positive = data.trn_y.astype(np.float64).sum(0)
    expected = np.log((positive + 0.5) / (len(data.trn_y) - positive + 0.5))
    np.testing.assert_allclose(last_linear(HeadLearner(data)).bias.detach(), expected, rtol=1e-6)


def test_the_output_starts_at_the_log_frequencies_of_classes(tmp_path, rng):
    y = np.repeat([0, 1, 2], [40, 8, 2])
    x = rng.standard_normal((50, 4)).astype(np.float32)
    bias = last_linear(HeadLearner(ImageClassifierData.from_arrays(tmp_path, (x, y), (x, y), bs=50))).bias.detach()
    np.testing.assert_allclose(bias.softmax(0), np.array([40.5, 8.5, 2.5]) / 51.5, rtol=1e-6)


def test_a_regression_starts_at_the_median(tmp_path, rng):
    data = numbers(tmp_path, rng, k=2, flat=False)
    np.testing.assert_allclose(last_linear(HeadLearner(data)).bias.detach(), np.median(data.trn_y, 0), rtol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("opt_fn", [None, AUTOGRAD], ids=["engine", "autograd"])
def test_training_follows_the_sum_over_labels_and_shows_the_mean(tmp_path, rng, opt_fn, weighted):
    """Step by step against plain torch in float64."""
    data = labelled(tmp_path, rng, c=7)
    weight = torch.from_numpy(rng.uniform(0.2, 3, 7)) if weighted else torch.ones(7, dtype=torch.float64)
    crit = BCE(weight.float()) if weighted else None
    learn = HeadLearner(data, ps=0, xtra_fc=[16], opt_fn=opt_fn, crit=crit)
    linear_relus(learn.head.layers)
    ours = nn.Sequential(
        nn.BatchNorm1d(10), nn.Linear(10, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 7)
    ).double()
    ours.load_state_dict({name: tensor.double() for name, tensor in learn.head.layers.state_dict().items()})
    optimizer, shown = torch.optim.SGD(ours.parameters(), lr=0.02, momentum=0.9), []
    val_loss = learn.fit(0.02, 2)[0]
    for epoch in range(2):
        for x, y in data.trn_dl.batches(epoch):
            p, y = ours(x.double()).sigmoid(), y.double()
            terms = -weight * (y * p.log() + (1 - y) * (1 - p).log())
            optimizer.zero_grad()
            terms.sum(1).mean().backward()
            optimizer.step()
            shown.append(float(terms.detach().mean()))
    expected, average = [], 0.0
    for i, loss in enumerate(shown):
        average = 0.98 * average + 0.02 * loss
        expected.append(average / (1 - 0.98 ** (i + 1)))
    np.testing.assert_allclose(learn.sched.losses, expected, rtol=1e-4)
    parameters = zip(learn.head.layers.parameters(), ours.parameters(), strict=True)
    for one, other in parameters:
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-4)
    assert val_loss == pytest.approx(plain_loss(learn), rel=1e-4)


def test_repeating_every_label_changes_no_gradient_of_what_lies_before(tmp_path, rng):
    """With a mean over labels, twice the labels would halve what each of them teaches."""
    x = rng.standard_normal((64, 6)).astype(np.float32)
    y = (x[:, :2] > 0).astype(np.float32)

    def moved(y):
        data = ImageClassifierData.from_arrays(tmp_path, (x, y), (x, y), bs=64)
        learn = HeadLearner(data, ps=0, xtra_fc=[], seed=1)
        linear = last_linear(learn)
        with torch.no_grad():
            linear.weight.zero_()
        learn.fit(0.5, 1)
        return linear.weight.detach()[:2]

    torch.testing.assert_close(moved(np.tile(y, (1, 4))), moved(y))


def test_clipping_bounds_the_gradient_that_is_followed(tmp_path, rng):
    data = labelled(tmp_path, rng, bs=200)
    engine, autograd = HeadLearner(data, ps=0, xtra_fc=[8]), HeadLearner(data, ps=0, xtra_fc=[8], opt_fn=AUTOGRAD)
    for learn in (engine, autograd):
        before = [p.detach().clone() for p in learn.head.parameters()]
        learn.clip = 1e-3
        learn.fit(1.0, 1)
        moves = [(p.detach() - b).flatten() for p, b in zip(learn.head.parameters(), before, strict=True)]
        assert float(torch.cat(moves).norm()) == pytest.approx(1e-3, rel=1e-2)


def test_one_rate_serves_one_label_and_many(tmp_path, rng):
    """The same ten columns decide one of ten classes, or ten labels: both learn at the README's rate."""
    x = rng.standard_normal((900, 10)).astype(np.float32)
    for y, chance in ((x.argmax(1), 0.1), ((x > 1).astype(np.float32), 0.2)):
        data = ImageClassifierData.from_arrays(tmp_path, (x[:700], y[:700]), (x[700:], y[700:]), bs=32)
        loss, metric = HeadLearner(data, xtra_fc=[32]).fit(1e-2, 4)
        assert metric > chance + 0.3
        assert loss < (2.3 if y.ndim == 1 else 0.43)


def test_the_loss_of_a_constant_stands_beside_the_first_epoch(tmp_path, rng, capsys):
    data = labelled(tmp_path, rng)
    HeadLearner(data).fit(1e-2, 2)
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["epoch", "trn_loss", "val_loss", "mean_average_precision"]
    p = (data.trn_y.astype(np.float64).sum(0) + 0.5) / (len(data.trn_y) + 1)
    y = data.val_y.astype(np.float64)
    expected = -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))
    assert first.endswith(f"(val_loss of a constant: {expected:.6f})")
    assert "constant" not in second


def test_a_fit_that_ends_above_a_constant_says_so(tmp_path, rng, capsys):
    x, y = rng.standard_normal((60, 8)).astype(np.float32), np.arange(60) % 2
    data = ImageClassifierData.from_arrays(tmp_path, (x, rng.permutation(y)), (x[::-1].copy(), y), bs=8)
    HeadLearner(data).fit(0.3, 3)
    assert "that of a constant prediction: on new images its probabilities" in capsys.readouterr().out.splitlines()[-1]
    HeadLearner(data, crit=nn.NLLLoss()).fit(0.3, 1)
    assert "constant" not in capsys.readouterr().out


def test_the_validation_loss_is_that_without_weights(tmp_path, rng):
    learn = HeadLearner(labelled(tmp_path, rng), class_weights="auto")
    loss = learn.fit(1e-2, 1)[0]
    assert loss == pytest.approx(plain_loss(learn), rel=1e-4)


def test_automatic_weights_of_a_rare_label_do_not_diverge(tmp_path, rng):
    x = rng.standard_normal((1500, 16)).astype(np.float32)
    y = np.stack([x[:, 0] > 0, x[:, 1] > 1, np.arange(1500) % 500 == 0], 1).astype(np.float32)
    with pytest.warns(UserWarning, match="class_weights"):
        data = ImageClassifierData.from_arrays(tmp_path, (x, y), (x, y), bs=64)
    plain, weighted = (HeadLearner(data, class_weights=w).fit(3e-2, 3)[0] for w in (None, "auto"))
    assert weighted < plain + 0.05


# Losses of the user's own


@pytest.mark.parametrize(
    "crit", [nn.BCEWithLogitsLoss(), F.binary_cross_entropy_with_logits, nn.MultiLabelSoftMarginLoss()], ids=_named
)
def test_a_loss_that_takes_logits_gets_logits(tmp_path, rng, crit):
    """All three are the mean over labels and rows of the default loss."""
    data = labelled(tmp_path, rng)
    learn = HeadLearner(data, crit=crit, metrics=[mean_average_precision])
    loss, _ = learn.fit(3e-2, 4)
    p = learn.predict()
    assert ((p >= 0) & (p <= 1)).all()
    assert loss == pytest.approx(plain_loss(learn), rel=1e-3)


def test_cross_entropy_gets_logits_and_trains_as_the_default(tmp_path, rng):
    data = row_data(tmp_path, rng)
    ours, theirs = HeadLearner(data, xtra_fc=[8]), HeadLearner(data, xtra_fc=[8], crit=nn.CrossEntropyLoss())
    for learn in (ours, theirs):
        linear_relus(learn.head.layers)
    assert ours.fit(1e-2, 2)[0] == pytest.approx(theirs.fit(1e-2, 2)[0], rel=1e-4)
    np.testing.assert_allclose(ours.predict(), theirs.predict(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("crit", [nn.CrossEntropyLoss(), F.cross_entropy, NLL(), partial(F.cross_entropy)], ids=_named)
@pytest.mark.parametrize("call", [lambda learn: learn.fit(1e-2, 1), lambda learn: learn.lr_find()], ids=["fit", "find"])
def test_a_loss_of_one_label_is_refused_for_several(tmp_path, rng, crit, call):
    """It would take zeros and ones as shares of classes that exclude each other, and train on without a word."""
    with pytest.raises(ValueError, match=r"is for one class per row, and these data have several labels .* BCE\(\)"):
        call(HeadLearner(labelled(tmp_path, rng), crit=crit))


def test_a_loss_of_one_label_is_refused_for_numbers(tmp_path, rng):
    x, y = rng.standard_normal((20, 4)).astype(np.float32), rng.random((20, 3)).astype(np.float32)
    data = ImageClassifierData.from_arrays(tmp_path, (x, y), (x, y), bs=8, continuous=True)
    with pytest.raises(ValueError, match=r"one class per row, and these data have numbers .* nn.MSELoss\(\)"):
        HeadLearner(data, crit=nn.CrossEntropyLoss()).fit(1e-2, 1)


def test_images_too_give_logits_to_such_a_loss(tmp_path):
    learn = tiny_learner(image_data(three_colours(tmp_path)), crit=nn.CrossEntropyLoss())
    loss = learn.fit(1e-2, 1)[0]
    log_probs, y = learn.predict_with_targs()
    assert loss == pytest.approx(-log_probs[np.arange(len(y)), y].astype(np.float64).mean(), rel=1e-4)


@pytest.mark.parametrize("call", [lambda learn: learn.fit(1e-2, 1), lambda learn: learn.lr_find()], ids=["fit", "find"])
def test_probabilities_are_refused_by_a_loss_that_takes_logits(tmp_path, rng, call):
    data = labelled(tmp_path, rng)
    head = nn.Sequential(nn.Linear(10, 5), nn.Sequential(nn.Sigmoid()))
    learn = HeadLearner(data, custom_head=head, crit=nn.BCEWithLogitsLoss())
    with pytest.raises(ValueError, match=r"ends in nn\.Sigmoid and gives prob.*BCEWithLogitsLoss takes logits"):
        call(learn)
    learn.crit = nn.BCELoss()
    call(learn)
    one = row_data(tmp_path, rng)
    model = nn.Sequential(nn.Linear(10, 3), nn.Softmax(1))
    with pytest.raises(ValueError, match=r"ends in nn\.Softmax and gives prob.*NLL takes log-prob"):
        call(Learner(one, model, [model]))
    learn = Learner(one, model[:1], [model], crit=nn.CrossEntropyLoss())
    call(learn)


# Regression


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize(
    "crit", [None, nn.MSELoss(), F.smooth_l1_loss, lambda out, y: (out - y).abs().mean()], ids=_named
)
def test_predictions_and_targets_of_one_number_have_one_shape(tmp_path, rng, flat, crit):
    data = numbers(tmp_path, rng, flat=flat)
    shapes = []

    def rmse(preds, targs):
        shapes.append((preds.shape, targs.shape))
        return ((preds - targs) ** 2).mean() ** 0.5

    learn = HeadLearner(data, metrics=[rmse], crit=crit)
    values = learn.fit(1e-4, 3)
    preds, targs = learn.predict_with_targs()
    assert {*shapes} == {((50, 1), (50, 1))}
    assert preds.shape == targs.shape == data.val_y.shape == (50, 1)
    assert values[1] == pytest.approx(np.sqrt(np.mean((preds.ravel() - targs.ravel()) ** 2)), rel=1e-4)
    assert len(next(iter(data.trn_dl))[1].shape) == 2


def test_a_network_that_gives_a_number_per_row_does_not_broadcast(tmp_path, rng):
    data = numbers(tmp_path, rng)
    seen = []

    def crit(out, y):
        seen.append((tuple(out.shape), tuple(y.shape)))
        return (out - y).pow(2).mean()

    model = nn.Sequential(nn.Linear(6, 1), nn.Flatten(0))
    learn = Learner(data, model, [model], crit=crit, metrics=[lambda p, t: float((p - t).abs().mean())])
    loss, mae = learn.fit(1e-3, 2)
    assert all(one == other for one, other in seen)
    preds, targs = learn.predict_with_targs()
    assert preds.shape == targs.shape
    assert mae == pytest.approx(np.abs(preds - targs).mean(), rel=1e-4)
    assert loss == pytest.approx(np.square(preds - targs).mean(), rel=1e-4)


def test_targets_far_from_zero_are_met_from_the_start(tmp_path, rng):
    """The mean of 30 is 15 deviations away: from zero, not one epoch of ten brings the loss below 5."""
    data = numbers(tmp_path, rng)
    constant = np.abs(data.val_y - np.median(data.trn_y)).mean()
    learn = HeadLearner(data)
    learn.fit(1e-3, 1)
    assert learn.sched.val_losses[0] < 2 * constant < 5
