"""What each epoch gives reaches the loggers, which cost the native engine nothing."""

import numpy as np
import pytest
from helpers import row_data

from fastclf import HeadLearner
from fastclf.loggers import EpochLogger, MlflowLogger, TensorBoardLogger, WandbLogger
from fastclf.training.callbacks import wants_batches


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
