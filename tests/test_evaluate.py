"""Scores and what they stand on: intervals, the crowd a network is worth, calibration; and `gzpaper evaluate` on good and bad tables."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
from conftest import assert_whole

from gzpaper.data import read_labels
from gzpaper.evaluate import (
    ASKED,
    _accuracy_table,
    _calibration_table,
    _selective_table,
    _worth_table,
    calibration_bins,
    ceiling,
    compare_paths,
    confidence,
    confusion,
    evaluation,
    leading_path,
    majority,
    question_table,
)
from gzpaper.mock import answer_probabilities, draw_galaxy
from gzpaper.scores import against_table, compare, rmse, rmse_table
from gzpaper.tree import COLUMNS, QUESTIONS, asked, predictions_table, to_conditional
from gzpaper.volunteers import expected_labels, labels_from_votes, vote

LABELS = "training_solutions_rev1.csv"
TABLES = "overall questions answers confusion calibration calibration_bins selective volunteers".split()


@pytest.fixture(scope="module")
def fractions() -> np.ndarray:
    "True conditional probabilities of 1,500 mock galaxies."
    return np.stack([answer_probabilities(draw_galaxy(np.random.default_rng([3, i]))) for i in range(1500)])


@pytest.fixture(scope="module")
def labels(fractions) -> np.ndarray:
    "What a crowd of 44 says of them."
    return labels_from_votes(vote(fractions, 44, np.random.default_rng(0)))


@pytest.fixture(scope="module")
def predicted(fractions) -> np.ndarray:
    "What another crowd, of 15, says."
    return labels_from_votes(vote(fractions, 15, np.random.default_rng(1)))


def test_intervals_cover_what_they_should(fractions):
    "The RMSE over all galaxies lies in about 95% of the intervals of small samples of them; so it does for one question and one answer."
    rng, hits, tries = np.random.default_rng(0), np.zeros(3), 100
    true, predicted = (labels_from_votes(vote(fractions, n, rng)) for n in (44, 15))
    whole = rmse_table(predicted, true, draws=2).rmse[[0, 3, 15]].to_numpy()
    for i in range(tries):
        rows = rng.integers(len(true), size=150)
        found = rmse_table(predicted[rows], true[rows], draws=200, seed=i).iloc[[0, 3, 15]]
        hits += (found.low <= whole) & (whole <= found.high)
    assert ((0.86 * tries <= hits) & (hits < tries)).all(), hits


def test_a_bootstrap_in_blocks_is_that_of_one_draw(predicted, labels):
    squares, n = ((predicted - labels) ** 2).mean(1), len(labels)
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=250)
    low, high = np.percentile(np.sqrt(counts @ squares / n), [2.5, 97.5])
    np.testing.assert_allclose(rmse_table(predicted, labels, draws=250).iloc[0, 1:].astype(float), [rmse(predicted, labels), low, high])


@pytest.mark.parametrize("n", [4, 12, 30, 60])
def test_a_crowd_is_worth_its_volunteers(n, fractions, labels):
    found = _worth_table(labels_from_votes(vote(fractions, n, np.random.default_rng(n))), labels, 44, draws=300).iloc[0]
    assert abs(found.volunteers / n - 1) < 0.12
    assert found.low < found.volunteers < found.high


def test_below_the_floor_there_is_no_number(fractions, labels):
    itself = _worth_table(labels, labels, draws=20)
    assert itself.volunteers.isna().all() and np.isinf(itself[["low", "high"]]).all(axis=None)
    perfect = _worth_table(expected_labels(fractions, 44), labels, 44, draws=100)
    assert (perfect.high == np.inf).any() and not perfect[["low", "high"]].isna().any(axis=None)
    assert (perfect.volunteers.isna() == (perfect.rmse <= perfect.floor)).all()


def test_the_ceiling_is_what_a_perfect_prediction_reaches(fractions, labels):
    found, perfect = ceiling(labels), _accuracy_table(expected_labels(fractions, 44), labels)
    enough = (perfect.n >= 100).to_numpy()
    assert enough.sum() >= 9
    assert np.abs(found - perfect.accuracy)[enough].max() < 0.06
    assert (ceiling(labels, volunteers=4)[enough] < found[enough]).all()


def test_all_count_who_are_asked_by_half_and_the_confident_are_some_of_them(predicted, labels):
    everyone, confident = _accuracy_table(predicted, labels), _accuracy_table(predicted, labels, 0.8)
    assert everyone.n.tolist() == (asked(labels) >= ASKED).sum(0).tolist()
    assert confident.n.tolist() == ((asked(labels) >= ASKED) & (confidence(predicted) > 0.8)).sum(0).tolist()
    assert (confident.n < everyone.n).all() and (confident.accuracy > everyone.accuracy).sum() >= 10
    assert _accuracy_table(np.zeros_like(labels), labels).n.tolist() == everyone.n.tolist()
    assert ((everyone.low < everyone.accuracy) & (everyone.accuracy < everyone.high)).all()


def test_confusion_holds_the_accuracy(predicted, labels):
    table = question_table(predicted, labels)
    for i, question in enumerate(QUESTIONS):
        matrix = confusion(predicted, labels, question)
        assert matrix.sum() == table.n[i] and np.isclose(np.trace(matrix) / matrix.sum(), table.accuracy[i])
        assert np.isclose(matrix.sum(1).max() / matrix.sum(), table.majority[i]), "rows are the volunteers'"


def test_calibration_error_by_hand():
    "Two bins of one answer: 3 galaxies that are 0.1 off and 1 that is 0.2 off."
    true = np.tile((np.isin(COLUMNS, ["Class1.1", "Class6.2", "Class7.1"])).astype(float), (4, 1))
    true[:, 13], true[:, 14] = [0.0, 0.2, 0.1, 0.5], [1.0, 0.8, 0.9, 0.5]
    predicted = true.copy()
    predicted[:, 13], predicted[:, 14] = [0.21, 0.2, 0.19, 0.7], [0.79, 0.8, 0.81, 0.3]
    table = _calibration_table(predicted, true).set_index("part")
    bins = calibration_bins(predicted, true)
    odd = bins[(bins.name == "odd") & (bins.answer == "yes")]
    assert odd.low.tolist() == [0.1, 0.2, 0.7] and odd.n.tolist() == [1, 2, 1]
    by_hand = (1 * 0.09 + 2 * 0.105 + 1 * 0.2) / 4
    assert np.isclose(table.ece["odd"], by_hand) and table.n["odd"] == 4
    assert np.isclose(table.deviation["odd"], (0.21 + 0 + 0.09 + 0.2) / 4)
    assert table.ece["rounded"] == 0 and np.isnan(table.ece["bar"]) and table.n["bar"] == 0


def test_intervals_of_residuals_are_of_the_difference(fractions):
    "What is known exactly has no interval, however widely the shares differ; and intervals of the best prediction cover zero."
    share = np.linspace(0, 0.89, 500)
    true, predicted = np.zeros((2, 500, 37))
    true[:, 0], predicted[:, 0] = share + 0.1, share
    true[:, 1], predicted[:, 1] = 1 - true[:, 0], 1 - share
    bins = calibration_bins(predicted, true).query("question == 1 and answer == 'smooth'")
    np.testing.assert_allclose(bins.observed - bins.predicted, 0.1)
    np.testing.assert_allclose(bins.error, 0, atol=1e-9)
    expected, rng = expected_labels(fractions, np.full(len(fractions), 44)), np.random.default_rng(5)
    drawn = [calibration_bins(expected, labels_from_votes(vote(fractions, 44, rng))).query("question == 1 and n >= 30") for _ in range(20)]
    z = pd.concat([(table.observed - table.predicted) / table.error for table in drawn])
    assert 0.02 < (z.abs() > 1.96).mean() < 0.09 and abs(z.mean()) < 0.2, (len(z), z.mean(), (z.abs() > 1.96).mean())


def test_the_mean_is_calibrated_and_extremes_are_not(labels):
    mean = _calibration_table(np.tile(to_conditional(labels).mean(0), (len(labels), 1)), labels).iloc[0]
    extreme = _calibration_table(to_conditional(labels[np.random.default_rng(0).permutation(len(labels))]).round(), labels).iloc[0]
    assert mean.ece < mean.deviation and extreme.ece > 0.1


def test_dropping_the_uncertain_ends_at_all(predicted, labels):
    table, everyone = _selective_table(predicted, labels), _accuracy_table(predicted, labels)
    last = table[table.kept == 1]
    np.testing.assert_allclose(last.accuracy, everyone.accuracy)
    assert last.n.tolist() == everyone.n.tolist()
    for _, question in table.groupby("question"):
        assert question.confidence.is_monotonic_decreasing and question.n.is_monotonic_increasing


def test_a_path_asks_what_its_answers_open(labels):
    for values in labels[:300]:
        path = leading_path(values)
        taken = {q.columns[q.answers.index(path[q.name][0])] for q in QUESTIONS if q.name in path}
        due = {q.name for q in QUESTIONS if q.parent is None or q.parent in taken}
        assert set(path) == (due if "Class1.3" not in taken else {"smooth_or_features"})


def test_a_path_beside_the_network_has_the_volunteers_answers(predicted, labels):
    "Whatever the network's own path is."
    ours, theirs = to_conditional(predicted), to_conditional(labels)
    for row, values in enumerate(labels[:300]):
        path, both = leading_path(values), compare_paths(values, predicted[row])
        columns = [COLUMNS.index(column) for column in both.column]
        assert [QUESTIONS[n - 1].name for n in both.question] == list(path)
        np.testing.assert_array_equal(both[["volunteers", "network"]], np.stack([theirs[row, columns], ours[row, columns]], 1))


def test_two_tables_are_paired(predicted, labels):
    other = np.clip(predicted + 0.01, 0, 1)
    table = against_table(predicted, other, labels, draws=300)
    np.testing.assert_allclose(table.iloc[0, 3:].astype(float), compare([predicted], [other], labels, draws=300))
    alone = rmse_table(predicted, labels, draws=300).iloc[0]
    assert table.high[0] - table.low[0] < (alone.high - alone.low) / 3, "paired, the difference is known far better than either"


def test_galaxies_that_nobody_asked_leave_holes_and_no_error():
    stars = np.tile(np.isin(COLUMNS, ["Class1.3", "Class6.2"]).astype(float), (5, 1))
    found = evaluation(np.full((5, 37), 0.5), stars)
    assert found["questions"].n.tolist() == [5] + 10 * [0] and found["questions"].ceiling.notna().tolist() == [True] + 10 * [False]
    assert found["confusion"].n.sum() == 5 and set(found["selective"].question) == {1}


@pytest.fixture(scope="module")
def solutions(mock_folder):
    return mock_folder / LABELS


@pytest.fixture
def predictions(solutions, tmp_path):
    "A table that is a little off the labels."
    table = read_labels(solutions)
    values = table[COLUMNS].to_numpy() * 0.9 + 0.02
    file = tmp_path / "predictions.csv"
    predictions_table(table.GalaxyID, values).to_csv(file, index=False)
    return file


def test_evaluate_prints_and_writes(predictions, solutions, tmp_path, cli):
    table = pd.read_csv(predictions)
    other = tmp_path / "other.parquet"
    table.assign(**{c: table[c] * 0.8 for c in COLUMNS}).to_parquet(other)
    result = cli("evaluate", predictions, solutions, "--against", other, "--out", tmp_path / "scores")
    assert result.code == 0, result
    assert {f.stem for f in (tmp_path / "scores").glob("*.csv")} == {*TABLES, "against"}
    overall = pd.read_csv(tmp_path / "scores/overall.csv").set_index("name")
    truth = read_labels(solutions)
    expected = rmse(table.sort_values("GalaxyID")[COLUMNS].to_numpy(), truth[COLUMNS].to_numpy())
    assert np.isclose(overall.value["RMSE"], expected, rtol=1e-5) and overall.low["RMSE"] < expected < overall.high["RMSE"]
    assert f"RMSE {expected:.5f}" in result.out and f"on {len(truth)} galaxies" in result.out
    assert "lower for these two tables" in result.out and pd.read_csv(tmp_path / "scores/against.csv").difference[0] < 0
    assert_whole(tmp_path)


def test_evaluate_below_the_floor_names_no_number(solutions, cli):
    result = cli("evaluate", solutions, solutions)
    assert result.code == 0 and "cannot be told" in result.out and "nan" not in result.out.lower()


def edited(file, edit):
    "Write an edited table over a file."
    edit(pd.read_csv(file)).to_csv(file, index=False)


def with_value(table: pd.DataFrame, value: float) -> pd.DataFrame:
    "The table with this prediction in the sixth row."
    return table.assign(**{"Class3.1": table["Class3.1"].where(table.index != 5, value)})


WRONG = {  # what is done to a predictions table, and what the message says beside its name; ID stands for the sixth GalaxyID
    "missing": (lambda t: t.drop(5), ["ID", LABELS, "1 missing", "predict", "--subset"]),
    "extra": (lambda t: pd.concat([t, t[:2].assign(GalaxyID=[1, 2])]), ["GalaxyID 1,", "2 in all", "remove", "--subset"]),
    "duplicate": (lambda t: pd.concat([t, t[5:6]]), ["ID", "more than once", "remove"]),
    "none in common": (lambda t: t.assign(GalaxyID=t.GalaxyID + 1_000_000), ["no GalaxyID in common", "name the labels"]),
    "swapped columns": (lambda t: t[["GalaxyID", "Class1.2", "Class1.1", *COLUMNS[2:]]], ["column 2 is Class1.2, not Class1.1", "order"]),
    "GalaxyID last": (lambda t: t[[*COLUMNS, "GalaxyID"]], ["column 1 is Class1.1, not GalaxyID", "order"]),
    "above 1": (partial(with_value, value=1.01), ["ID", "Class3.1", "1.01", "correct or remove"]),
    "below 0": (partial(with_value, value=-0.5), ["ID", "Class3.1", "-0.5", "correct or remove"]),
    "infinite": (partial(with_value, value=np.inf), ["ID", "Class3.1", "inf", "correct or remove"]),
    "NaN": (partial(with_value, value=np.nan), ["ID", "Class3.1", "empty", "correct or remove"]),
    "a name for an ID": (lambda t: t.astype({"GalaxyID": object}).replace({"GalaxyID": {t.GalaxyID[5]: "NGC 1300"}}),
                         ["NGC 1300", "not a whole number", "correct or remove"]),
}


@pytest.mark.parametrize("damage", WRONG)
@pytest.mark.parametrize("place", ["first", "against"])
def test_what_cannot_be_scored_is_refused(damage, place, predictions, solutions, tmp_path, cli):
    good = tmp_path / "good.csv"
    good.write_bytes(predictions.read_bytes())
    act, words = WRONG[damage]
    words = [str(pd.read_csv(good).GalaxyID[5]) if word == "ID" else word for word in words]
    edited(predictions, act)
    tables = [predictions, solutions] if place == "first" else [good, solutions, "--against", predictions]
    cli("evaluate", *tables, "--out", tmp_path / "scores").refused(predictions, *words)
    assert not (tmp_path / "scores").exists()


def test_a_subset_is_scored_where_it_is_asked_for(predictions, solutions, cli):
    edited(predictions, lambda t: pd.concat([t[10:], t[:1].assign(GalaxyID=1)]))
    result = cli("evaluate", predictions, solutions, "--subset")
    assert result.code == 0 and f"on {len(read_labels(solutions)) - 10} galaxies" in result.out


def test_a_folder_that_cannot_be_written(predictions, solutions, cli):
    cli("evaluate", predictions, solutions, "--out", predictions).refused(predictions, "cannot be written", "name another place")
    assert len(pd.read_csv(predictions)) == 40


def test_real_labels_give_ceilings_and_majorities_of_the_kind_that_is_known(real_folder):
    "Beside those of 12,316 unselected galaxies of the challenge; the sample is a selected one."
    true = read_labels(real_folder / LABELS)[COLUMNS].to_numpy()
    known = np.array([.948, .983, .960, .936, .899, .970, .952, .877, .941, .859, .892])
    assert np.abs(ceiling(true, crowds=3) - known).max() < 0.04
    assert np.abs(majority(true) - [.559, .805, .805, .585, .490, .865, .490, .318, .688, .452, .576]).max() < 0.2
