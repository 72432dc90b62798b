"""Tables that people read, of sets of every kind."""

import json

import numpy as np
import pytest

from fastclf.data.sources.labels import Labels
from fastclf.decision import Decision
from fastclf.interpret.evaluation import evaluate


def log_probs(rng, y, c, strength=2.0):
    z = rng.standard_normal((len(y), c))
    z[np.arange(len(y)), y] += strength
    return (z - np.log(np.exp(z).sum(1, keepdims=True))).astype(np.float32)


def names(c):
    return [f"class {k}" for k in range(c)]


def evaluate_one_label(rng, y, c, **kwargs):
    return evaluate(log_probs(rng, y, c), y, Labels(y, names(c)), Decision(), **kwargs)


def test_text_is_aligned_and_html_has_the_same_numbers(rng):
    y = np.arange(90) % 3
    found = evaluate_one_label(rng, y, 3, title="validation set", notes=["a note"])
    text = repr(found)
    assert text.startswith("90 rows, validation set\n\n")
    assert text.endswith("\n\nnote: a note")
    table = text.split("\n\n")[2].split("\n")
    assert [line.split()[:3] for line in table[1:]] == [["class", str(k), "30"] for k in range(3)]
    assert len({len(line) for line in table}) == 1
    assert max(map(len, text.split("\n"))) <= 100
    page = found._repr_html_()
    for line in table[1:]:
        for cell in line.split()[2:]:
            assert f"<td>{cell}</td>" in page
    assert page.count("<table>") == 2


def test_numbers_are_had_by_name(rng):
    y = np.arange(60) % 2
    preds = log_probs(rng, y, 2)
    preds[:6] = preds[:6, ::-1]  # of a set without mistakes there is no bootstrap interval
    found = evaluate(preds, y, Labels(y, names(2)), Decision())
    assert found["accuracy"] == found.overall["accuracy"]
    low, high = found.intervals["f1_macro"]
    assert low < found["f1_macro"] < high
    with pytest.raises(KeyError, match=r"no measure 'auc'; there are accuracy, .*roc_auc_macro"):
        found["auc"]


def test_dict_is_json_and_frame_has_a_row_per_class(rng):
    y = np.arange(40) % 2  # class 2 has no rows
    found = evaluate_one_label(rng, y, 3)
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert values["overall"]["accuracy"] == {"value": found["accuracy"], "interval": list(found.intervals["accuracy"])}
    assert values["each"][2]["roc_auc"] is None
    assert values["each"][1]["rows"] == 20
    assert (values["rows"], values["left_out"]) == (40, 0)
    frame = found.to_frame()
    assert frame.index.tolist() == names(3)
    assert frame.loc["class 1", "recall"] == found.each["recall"][1]


def test_rows_without_a_prediction_are_left_out_and_counted(rng):
    y = np.arange(50) % 2
    preds = log_probs(rng, y, 2)
    marked, with_nan = y.copy(), preds.copy()
    marked[[3, 7]], with_nan[[3, 7]] = -1, np.nan
    found = evaluate(with_nan, marked, Labels(y, names(2)), Decision())
    kept = np.delete(np.arange(50), [3, 7])
    assert found.overall == evaluate(preds[kept], y[kept], Labels(y[kept], names(2)), Decision()).overall
    assert (found.n, found.left_out) == (48, 2)
    assert "2 of 50 rows have no prediction and are left out" in repr(found)


def test_a_class_without_rows_is_named(rng):
    found = evaluate_one_label(rng, np.zeros(30, np.int64), 2)
    assert "no row is of class 1: n/a, and averages leave out what is n/a" in found.notes
    assert repr(found).split("\n\n")[2].split("\n")[-1].split()[-1] == "n/a"


def test_equal_predictions(rng):
    y = np.arange(30) % 3
    preds = np.log(np.full((30, 3), 1 / 3, np.float32))
    found = evaluate(preds, y, Labels(y, names(3)), Decision())
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found["roc_auc_macro"] == 0.5
    assert found["kappa"] == found["mcc"] == 0
    assert found["log_loss"] == pytest.approx(np.log(3), abs=1e-6)
    assert "every row was predicted to be class 0" in found.notes
    assert repr(found)


def test_three_rows(rng):
    found = evaluate_one_label(rng, np.array([0, 1, 1]), 2)
    assert found.intervals.keys() == {"accuracy"}
    assert "3 rows are too few for a bootstrap; of shares alone there is an interval" in found.notes
    assert repr(found)
    assert evaluate_one_label(rng, np.array([1]), 2).n == 1


def test_a_set_without_mistakes_has_no_certain_interval():
    y = np.arange(40) % 2
    preds = np.log(np.where(np.eye(2)[y] > 0, 0.9, 0.1))
    found = evaluate(preds, y, Labels(y, names(2)), Decision())
    assert found["accuracy"] == found["f1_macro"] == found["roc_auc_macro"] == 1
    assert found.intervals["accuracy"][0] < 0.95
    assert "f1_macro" not in found.intervals


def test_a_thousand_classes_are_cut_to_the_worst(rng):
    y = rng.integers(0, 1000, 1500)
    found = evaluate_one_label(rng, y, 1000)
    text = repr(found)
    shown = [line for line in text.split("\n") if line.startswith("class ")]
    assert len(shown) == 20
    assert "note: the 20 lowest of 1,000 are shown; to_frame() has all of them" in text
    lowest = np.argsort(found.each["f1"], kind="stable")[:20]
    assert [" ".join(line.split()[:2]) for line in shown] == [f"class {k}" for k in lowest]
    assert len(found.to_frame()) == 1000
    assert "top 5 accuracy" in text


def test_names_of_any_kind_make_no_line_and_no_tag(rng):
    y = np.arange(20) % 2
    labels = Labels(y, ["<b>\n", "x" * 60])
    found = evaluate(log_probs(rng, y, 2), y, labels, Decision())
    assert "x" * 28 not in repr(found)
    assert "<b>\\n " in repr(found)
    assert "<b>\\n" not in found._repr_html_()
    assert "&lt;b&gt;\\n" in found._repr_html_()


def test_several_labels_use_the_tuned_thresholds(rng):
    y = (rng.random((80, 3)) < 0.4).astype(np.float32)
    probs = np.clip(0.3 * y + rng.uniform(0, 0.6, y.shape), 0, 1).astype(np.float32)
    labels = Labels(y, names(3), is_multi=True)
    plain = evaluate(probs, y, labels, Decision())
    tuned = evaluate(probs, y, labels, Decision(thresholds=(0.2, 0.4, 0.6)))
    assert plain["exact_match"] == np.mean(((probs > 0.5) == y).all(1))
    assert tuned["exact_match"] == np.mean(((probs > np.array([0.2, 0.4, 0.6])) == y).all(1))
    assert tuned.each["threshold"].tolist() == [0.2, 0.4, 0.6]
    assert "0.6000" in repr(tuned)
    assert "f1 micro" in repr(tuned)


def test_numbers_have_errors_of_each_column(rng):
    y = rng.standard_normal((50, 2))
    found = evaluate(y + 0.1, y, Labels(y, [], is_reg=True), Decision())
    assert found["mae"] == pytest.approx(0.1)
    assert repr(found).split("\n\n")[2].split("\n")[1].split()[0] == "0"
    one = evaluate(y[:, :1] + 0.1, y[:, :1], Labels(y[:, :1], [], is_reg=True), Decision())
    assert len(repr(one).split("\n\n")) == 2


def test_answers_none_of_these_cost_what_they_cost(rng):
    y = np.arange(100) % 2
    preds = log_probs(rng, y, 2, strength=1)
    sure = np.exp(preds).max(1)
    decision = Decision(confidences=tuple(np.sort(sure).astype(float).tolist()))
    found = evaluate(preds, y, Labels(y, names(2)), decision, unknown=0.2)
    answered = sure >= np.sort(sure)[19]
    assert found["refused"] == pytest.approx(1 - answered.mean(), abs=0.011)
    assert found["accuracy_of_answered"] == pytest.approx((preds.argmax(1) == y)[answered].mean(), abs=0.02)
    assert {"refused", "accuracy_of_answered"} <= found.intervals.keys()


@pytest.mark.parametrize(
    ("preds", "y", "kind", "message"),
    [
        ([[0.5, 0.5]], [0], {}, "must give log-probabilities. End it in nn.LogSoftmax"),
        ([[2.0, -1.0]], [0], {}, "must give log-probabilities"),
        ([[np.nan, np.nan]], [0], {}, "predictions of 1 of 1 rows are NaN"),
        ([[np.nan, np.nan]], [-1], {}, "no row has a prediction"),
        ([[1.5, 0.0]], [[1.0, 0.0]], {"is_multi": True}, "must give probabilities, got values outside of 0..1"),
    ],
)
def test_predictions_that_are_none_are_refused(preds, y, kind, message):
    y = np.array(y)
    with pytest.raises(ValueError, match=message):
        evaluate(np.array(preds), y, Labels(y, names(2), **kind), Decision())
