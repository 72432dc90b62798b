"""What each epoch gives reaches the loggers, which cost the native engine nothing."""

import re
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import row_data

from fastclf import Callback, HeadLearner, accuracy_thresh, fbeta
from fastclf.loggers import EpochLogger, MlflowLogger, TensorBoardLogger, WandbLogger
from fastclf.training.callbacks import wants_batches
from fastclf.training.metrics import names_of


@pytest.fixture
def learn(tmp_path, rng):
    return HeadLearner(row_data(tmp_path, rng))


class Kept(EpochLogger):
    def __init__(self, learn):
        super().__init__(learn)
        self.lines = []

    def write(self, epoch, values):
        self.lines.append((epoch, values))


def test_every_epoch_of_every_fit_is_logged(learn):
    kept = Kept(learn)
    last = learn.fit(0.01, 2, callbacks=[kept])
    learn.fit(0.01, 1, callbacks=[kept])
    assert [epoch for epoch, _ in kept.lines] == [0, 1, 2]
    names = ["trn_loss", "val_loss", *[name for name in kept.lines[0][1] if name not in ("trn_loss", "val_loss")]]
    assert list(kept.lines[1][1]) == names
    assert list(kept.lines[1][1].values())[1:] == [*last]
    assert kept.lines[2][1]["trn_loss"] == learn.sched.losses[-1]


@pytest.mark.parametrize("kind", [EpochLogger, TensorBoardLogger, WandbLogger, MlflowLogger])
def test_no_logger_is_called_between_batches(kind):
    assert not wants_batches(kind.__new__(kind))


def test_tensorboard(learn, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed", exc_type=ImportError)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    last = learn.fit(0.01, 2, callbacks=[TensorBoardLogger(learn, tmp_path / "runs")])
    events = EventAccumulator(str(tmp_path / "runs"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("val_loss")]
    assert [step for step, _ in found] == [0, 1]
    np.testing.assert_allclose(found[1][1], last[0], rtol=1e-6)


def test_wandb_offline(learn, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed", exc_type=ImportError)
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(mode="offline", dir=tmp_path)
    last = learn.fit(0.01, 2, callbacks=[WandbLogger(learn, run)])
    assert run.summary["val_loss"] == pytest.approx(last[0])
    run.finish()


@pytest.mark.filterwarnings("ignore")  # of MLflow's own use of its database
def test_mlflow_in_files(learn, tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed", exc_type=ImportError)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    with mlflow.start_run() as run:
        last = learn.fit(0.01, 2, callbacks=[MlflowLogger(learn)])
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "val_loss")
    assert [(m.step, m.value) for m in history][-1] == (1, pytest.approx(last[0]))


def top(preds, targs, k):
    return float((np.argsort(-np.asarray(preds), 1)[:, :k] == np.asarray(targs)[:, None]).any(1).mean())


def loss(preds, targs):
    return 7.0


@pytest.mark.parametrize(
    ("metrics", "names"),
    [
        ([partial(top, 1), partial(top, k=2)], ["top(1)", "top(k=2)"]),
        ([partial(top, 2), partial(top, 2)], ["top(2)", "top(2) 2"]),
        ([lambda p, t: 1.0, lambda p, t: 2.0, lambda p, t: 3.0], ["<lambda>", "<lambda> 2", "<lambda> 3"]),
        ([accuracy_thresh(0.5), fbeta(2, 0.3)], ["accuracy_thresh(0.5)", "f2(0.3)"]),
        ([partial(partial(top, loss), [*range(99)])], ["top(loss, [0, 1, 2, 3, 4, 5, ...])"]),
    ],
)
def test_metrics_have_a_name_each(metrics, names):
    assert names_of(metrics) == names


def test_no_metric_is_lost_that_is_called_like_another(tmp_path, rng):
    val_loss = partial(loss)
    val_loss.__name__ = "val_loss"
    learn = HeadLearner(row_data(tmp_path, rng), metrics=[lambda p, t: 1.0, lambda p, t: 2.0, val_loss])
    kept = Kept(learn)
    last = learn.fit(0.01, 1, callbacks=[kept])
    assert [*kept.lines[0][1].values()][1:] == [*last]
    assert list(last)[1:] == [1.0, 2.0, 7.0]


def test_mlflow_gets_names_that_it_takes(tmp_path, rng, monkeypatch):
    seen = {}
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(log_metrics=lambda values, step: seen.update(values)))
    metrics = [accuracy_thresh(0.4), lambda p, t: 1.0, partial(top, k=1), partial(top, k=2), partial(top, k=2)]
    learn = HeadLearner(row_data(tmp_path, rng, c=2), metrics=metrics)
    last = learn.fit(0.01, 1, callbacks=[MlflowLogger(learn)])
    assert list(seen.values())[1:] == [*last]
    assert all(re.fullmatch(r"[A-Za-z0-9_.\- /]+", name) for name in seen), seen


def test_mlflow_keeps_letters_of_any_language(tmp_path, rng, monkeypatch):
    seen = {}
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(log_metrics=lambda values, step: seen.update(values)))
    metrics = [partial(loss) for _ in range(3)]
    for metric, name in zip(
        metrics, ["pr\u00e9cision", "\u0442\u043e\u0447\u043d\u043e\u0441\u0442\u044c", "(*)"], strict=True
    ):
        metric.__name__ = name
    learn = HeadLearner(row_data(tmp_path, rng), metrics=metrics)
    learn.fit(0.01, 1, callbacks=[MlflowLogger(learn)])
    assert list(seen)[2:] == ["pr\u00e9cision", "\u0442\u043e\u0447\u043d\u043e\u0441\u0442\u044c", "metric"]


def test_a_search_within_a_fit_changes_nothing_of_it(tmp_path, rng):
    class Searches(Callback):
        def on_epoch_end(self, metrics):
            learn.lr_find(1e-4, 1)

    data = row_data(tmp_path, rng)
    found = []
    for callbacks in ([], [Searches()]):
        learn = HeadLearner(data, seed=1)
        kept = Kept(learn)
        last = learn.fit(0.05, 3, callbacks=[*callbacks, kept])
        found.append((list(last), kept.lines, learn.sched.losses, learn.sched.val_losses))
    assert found[0] == found[1]


def test_a_callback_has_its_own_list_of_metrics(tmp_path, rng):
    class Eats(Callback):
        def on_epoch_end(self, metrics):
            metrics.reverse()
            metrics.clear()

    data = row_data(tmp_path, rng)
    found = []
    for callbacks in ([], [Eats()]):
        learn = HeadLearner(data, seed=1)
        kept = Kept(learn)
        last = learn.fit(0.3, 3, callbacks=[*callbacks, kept], best_save_name="best")
        learn.load("best")
        found.append((list(last), kept.lines, learn.predict().tolist()))
    assert found[0] == found[1]
