"""The reward model on synthetic features whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit

from learner.dataset import Answer, Dataset, Label, Pair
from learner.reward_model import FORM, OUTLOOK_PRIOR, RewardModel, auc, calibration, ece, fit
from thumbwheel import config

SETTINGS = config.RewardModel()


def answers(count: int) -> list[Answer]:
    return [Answer(f"r{i}", f"conversation {i}", (1,), (2,), (-1.0,), "base", 48, True) for i in range(count)]


def truth(count: int, size: int = 20, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Features (N, D) and how much people like each answer (N,)."""
    rng = np.random.default_rng(seed)
    features = rng.normal(3.0, 2.0, (count, size))
    return features, (features - 3.0) @ np.r_[np.ones(3), np.zeros(size - 3)] / 2


def test_thumbs_are_learnt_and_calibrated() -> None:
    features, liking = truth(600)
    rng = np.random.default_rng(1)
    flips = rng.random(600) < 0.1
    labels = [Label(i, float((liking[i] > 0) ^ flips[i]), f"rater {i % 7}") for i in range(400)]
    model, quality = fit(Dataset(answers(600), labels), features, SETTINGS)
    assert auc(model.score(features[400:]), liking[400:] > 0) > 0.95
    assert 0.8 < quality.auc < 0.95  # noisy labels understate it
    assert quality.ece < 0.1
    likely = model.probability(features[400:]) > 0.5
    assert (likely == (liking[400:] > 0)).mean() > 0.85


def test_random_votes_measure_as_random() -> None:
    features, _ = truth(300)
    rng = np.random.default_rng(2)
    labels = [Label(i, float(rng.random() < 0.5), "a") for i in range(300)]
    _, quality = fit(Dataset(answers(300), labels), features, SETTINGS)
    assert abs(quality.auc - 0.5) < 0.1


def test_pairs_alone_are_learnt() -> None:
    features, liking = truth(300)
    order = [(i, i + 1) if liking[i] > liking[i + 1] else (i + 1, i) for i in range(0, 200, 2)]
    data = Dataset(answers(300), [], [Pair(better, worse, 1.0, "a") for better, worse in order])
    model, quality = fit(data, features, SETTINGS)
    assert auc(model.score(features[200:]), liking[200:] > 0) > 0.9
    assert np.isnan(quality.auc)
    assert quality.floor_value == quality.agreement > 0.7


def test_pairs_add_to_thumbs() -> None:
    features, liking = truth(500, size=60)
    labels = [Label(i, float(liking[i] > 0), "a") for i in range(40)]
    pairs = [
        Pair(i, i + 1, 1.0, "a") if liking[i] > liking[i + 1] else Pair(i + 1, i, 1.0, "a") for i in range(40, 240, 2)
    ]
    alone, _ = fit(Dataset(answers(500), labels), features, SETTINGS)
    both, _ = fit(Dataset(answers(500), labels, pairs), features, SETTINGS)
    unseen, good = features[240:], liking[240:] > 0
    assert auc(both.score(unseen), good) > auc(alone.score(unseen), good) + 0.03


def test_no_votes_is_an_error() -> None:
    with pytest.raises(ValueError, match="no votes"):
        fit(Dataset(answers(3)), np.zeros((3, 4)), SETTINGS)


def test_one_sided_votes_do_not_break_it() -> None:
    features, _ = truth(40)
    model, quality = fit(Dataset(answers(40), [Label(i, 1.0, "a") for i in range(40)]), features, SETTINGS)
    assert np.isnan(quality.floor_value)
    assert np.isfinite(model.probability(features)).all()


def test_auc_by_hand() -> None:
    # Of the 2 x 2 pairs, .8 beats .1 and .4; .4 beats .1 and ties with .4.
    assert auc(np.array([0.1, 0.4, 0.8, 0.4]), np.array([False, False, True, True])) == pytest.approx(3.5 / 4)


def test_auc_by_hand_with_weights() -> None:
    # Ups .4 (twice as heavy) and .8 against downs .1 (three times as heavy) and .4: (2 * (3 + .5) + 1 * 4) / (3 * 4).
    scores, weights = np.array([0.1, 0.4, 0.8, 0.4]), np.array([3.0, 2.0, 1.0, 1.0])
    assert auc(scores, np.array([False, True, True, False]), weights) == pytest.approx(11 / 12)


def test_ece_by_hand() -> None:
    # One bin (fewer than 40 votes): mean probability .5, mean vote .75.
    assert ece(np.array([0.2, 0.8, 0.5, 0.5]), np.array([1.0, 1.0, 1.0, 0.0])) == pytest.approx(0.25)


def test_calibration_by_hand() -> None:
    # 40 votes make two bins of 20: the lower half is predicted at .2 and liked by 5, the upper at .8 and by all.
    probabilities, values = np.repeat([0.8, 0.2], 20), np.r_[np.ones(20), np.ones(5), np.zeros(15)]
    assert calibration(probabilities, values) == (
        (pytest.approx(0.2), pytest.approx(0.25), 20), (pytest.approx(0.8), pytest.approx(1.0), 20),
    )  # fmt: skip
    assert ece(probabilities, values) == pytest.approx((0.05 + 0.2) / 2)
    assert calibration(np.zeros(0), np.zeros(0)) == ()


def test_calibration_hears_a_rater_as_loudly_as_the_fit_does() -> None:
    chances, votes, weights = np.full(4, 0.5), np.array([1.0, 1.0, 0.0, 0.0]), np.array([3.0, 0.0, 0.5, 0.5])
    assert calibration(chances, votes, weights) == ((0.5, pytest.approx(0.75), 4.0),)
    assert ece(chances, votes, weights) == pytest.approx(0.25)
    assert calibration(chances, votes, np.zeros(4)) == ()


def test_what_the_tokens_say_and_the_form_add_up_to_the_score() -> None:
    features, liking = truth(200)
    labels = [Label(i, float(liking[i] > 0), "a") for i in range(200)]
    model, quality = fit(Dataset(answers(200), labels), features, SETTINGS)
    assert sum(votes for _, _, votes in quality.bins) == 200
    tokens, form = features[:6, :-FORM], features[0, -FORM:]
    of_form = (form - model.mean[-FORM:]) / model.std[-FORM:] @ model.weight[-FORM:]
    whole = np.r_[tokens.mean(0), form][None]
    assert model.evidence(tokens).mean() + of_form + model.bias == pytest.approx(model.score(whole)[0])


def test_votes_weigh_what_their_raters_weigh() -> None:
    features, liking = truth(400)
    labels = [Label(i, float(liking[i] > 0), "honest") for i in range(200)]
    labels += [Label(i, float(liking[i] < 0), "contrary") for i in range(200)]
    model, quality = fit(Dataset(answers(400), labels, [], {"contrary": 0.0}), features, SETTINGS)
    assert auc(model.score(features[200:]), liking[200:] > 0) > 0.95
    assert quality.auc > 0.95
    assert quality.votes == 200


def test_the_outlook_is_the_score_of_what_has_been_said_and_average_words_to_come() -> None:
    # Two features of tokens, then the form; standardised they are (x - 1) / 2.
    model = RewardModel(
        mean=np.array([1.0, 1.0, 5.0, 5.0]), std=np.array([2.0, 2.0, 1.0, 1.0]), weight=np.array([3.0, -1.0, 9.0, 9.0]),
        bias=0.5, slope=2.0, offset=-0.25,
    )  # fmt: skip
    tokens = np.array([[3.0, 1.0], [1.0, 3.0], [7.0, 7.0]])  # worth 3, -1 and 6
    logits = np.array([0.0, 3 / (1 + OUTLOOK_PRIOR), 2 / (2 + OUTLOOK_PRIOR)])
    np.testing.assert_allclose(model.outlook(tokens), expit(2 * (logits + 0.5) - 0.25))


def test_the_outlook_comes_to_the_score_in_a_long_answer() -> None:
    features, liking = truth(200)
    features = np.hstack([features, np.tile([3.0, 0.0], (200, 1))])  # a form that is the same for all
    labels = [Label(i, float(liking[i] > 0), "a") for i in range(200)]
    model, _ = fit(Dataset(answers(200), labels), features, SETTINGS)
    for row in features[:5]:
        outlook = model.outlook(np.tile(row[:-FORM], (5000, 1)))
        start = model.probability(model.mean)
        assert outlook[0] == pytest.approx(start)
        assert outlook[-1] == pytest.approx(model.probability(row), abs=0.01)
        assert (np.diff(outlook) * (outlook[-1] - start) >= 0).all()


def test_the_doubt_is_the_standard_error_of_the_fit() -> None:
    """Of many fits to other votes of the same kind the scores differ by what one fit says of itself."""
    fits, doubts = [], []
    shown = truth(40, size=6, seed=99)[0]
    for seed in range(16):
        features, liking = truth(300, size=6, seed=seed)
        dice = np.random.default_rng(seed)
        labels = [Label(i, float(dice.random() < expit(liking[i])), "a") for i in range(300)]
        model, _ = fit(Dataset(answers(300), labels), features, SETTINGS)
        plain = RewardModel(model.mean, model.std, model.weight, model.bias, members=model.members)
        fits.append(plain.score(shown))
        doubts.append(plain.doubt(shown))
    ratio = np.mean(doubts) / np.std(fits, axis=0).mean()
    assert 0.6 < ratio < 1.6  # penalties differ from fit to fit, which no single one knows


def test_doubt_grows_with_the_distance_from_what_was_judged() -> None:
    features, liking = truth(200)
    labels = [Label(i, float(liking[i] > 0), "a") for i in range(200)]
    model, _ = fit(Dataset(answers(200), labels), features, SETTINGS)
    assert len(model.members) == SETTINGS.folds
    known, strange = model.doubt(features).mean(), model.doubt(3.0 + 5 * (features - 3.0)).mean()
    assert strange > 3 * known > 0


def test_caution_lowers_what_is_doubtful() -> None:
    features, liking = truth(200)
    labels = [Label(i, float(liking[i] > 0), "a") for i in range(200)]
    model, _ = fit(Dataset(answers(200), labels), features, SETTINGS)
    np.testing.assert_allclose(model.cautious(features, 0.0), model.probability(features))
    assert (model.cautious(features, 1.0) < model.probability(features)).all()
    alone = RewardModel(model.mean, model.std, model.weight, model.bias, model.slope, model.offset)
    np.testing.assert_allclose(alone.cautious(features, 1.0), model.probability(features))


def test_what_people_say_later_is_foreseen_or_not() -> None:
    features, liking = truth(400)
    same = [Label(i, float(liking[i] > 0), "a", at=i) for i in range(400)]
    _, quality = fit(Dataset(answers(400), same), features, SETTINGS)
    assert quality.auc_later > 0.9
    turned = [Label(i, float((liking[i] > 0) ^ (i >= 320)), "a", at=i) for i in range(400)]
    _, quality = fit(Dataset(answers(400), turned), features, SETTINGS)
    assert quality.auc > 0.6
    assert quality.auc_later < 0.2, "the folds mix the times and hide it"


def test_later_votes_on_the_same_conversations_foresee_nothing() -> None:
    features, liking = truth(100)
    one = [Answer(f"r{i}", "the same", (1,), (2,), (-1.0,), "base", 48, True) for i in range(100)]
    labels = [Label(i, float(liking[i] > 0), "a", at=i) for i in range(100)]
    assert np.isnan(fit(Dataset(one, labels), features, SETTINGS)[1].auc_later)
    assert np.isnan(fit(Dataset(answers(100), labels[:20]), features, SETTINGS)[1].auc_later)
