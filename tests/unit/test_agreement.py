"""Models against people, and the ceiling of noisy labels."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import prediction_data as data
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from scanbench.errors import UserError
from scanbench.tipstate import agreement as ag
from scanbench.tipstate import ceiling
from scanbench.tipstate import namings as sheet

CLASSES = ("atoms", "asymmetry/dimer", "rows", "defect")
COLUMNS = ("atom", "asymmetry", "dimer", "row", "tip", "blurry")
MERGE = {
    "atoms": ["atom"],
    "asymmetry/dimer": ["asymmetry", "dimer"],
    "rows": ["row"],
    "defect": ["tip", "blurry"],
}


def manifest(answers: list[list[set[str]]], groups: int = 5) -> pd.DataFrame:
    """Return the manifest of scans whose volunteers named these columns."""
    rows = []
    for i, sets in enumerate(answers):
        score = {f"score_{k}": np.mean([k in named for named in sets]) for k in COLUMNS}
        rows.append(
            {
                "scan_id": f"s{i:04}", "group": f"g{i % groups}", "label": "", "excluded": "tie",
                "responses": float(len(sets)), **score,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def test_what_two_volunteers_named_is_bounded_where_the_sheet_does_not_tell() -> None:
    own = sheet.namings(
        manifest(
            [
                [{"dimer"}, {"asymmetry"}],
                [{"dimer", "asymmetry"}, {"row"}],
                [{"dimer"}, {"dimer", "asymmetry"}],
                [{"row"}, {"row"}],
            ]
        ),
        MERGE,
        CLASSES,
    )
    assert own.fewest_NC[:, 1].tolist() == [1, 1, 2, 0]
    assert own.most_NC[:, 1].tolist() == [2, 2, 2, 0]
    assert own.fewest_NC[:, 2].tolist() == own.most_NC[:, 2].tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"score_atom": 0.3}, "no shares of its responses"),
        ({"responses": np.nan}, "no scan has a response"),
    ],
)
def test_a_manifest_without_counts_is_refused(change: dict[str, Any], told: str) -> None:
    frame = manifest([[{"row"}, {"row"}]]).assign(**change)
    with pytest.raises(UserError, match=told):
        sheet.namings(frame, MERGE, CLASSES)
    with pytest.raises(UserError, match="score_tip"):
        sheet.namings(frame.drop(columns="score_tip"), MERGE, CLASSES)


sets = st.lists(st.integers(0, 7), min_size=2, max_size=3)


@given(sets=sets)
def test_the_true_way_is_among_the_completions_and_all_give_the_counts(sets: list[int]) -> None:
    prior = np.full(8, 1 / 8)
    count = [sum(s >> k & 1 for s in sets) for k in range(3)]
    ways, weight = sheet.completions(count, len(sets), prior)
    assert tuple(sorted(sets)) in ways
    assert len(set(ways)) == len(ways)
    assert weight.sum() == pytest.approx(1)
    for way in ways:
        assert [sum(s >> k & 1 for s in way) for k in range(3)] == count


def test_completions_follow_bayes_rule() -> None:
    rng = np.random.default_rng(0)
    prior = rng.dirichlet(np.ones(8))
    for count in ((1, 1, 0), (2, 1, 1), (1, 1, 1)):
        exact: dict[tuple[int, ...], float] = {}
        for pair in itertools.product(range(8), repeat=2):
            if all(sum(s >> k & 1 for s in pair) == count[k] for k in range(3)):
                key = tuple(sorted(pair))
                exact[key] = exact.get(key, 0) + prior[pair[0]] * prior[pair[1]]
        total = sum(exact.values())
        found = dict(zip(*sheet.completions(count, 2, prior), strict=True))
        assert found == pytest.approx({key: p / total for key, p in exact.items()})


def test_agreement_of_people_is_that_of_drawing_a_volunteer_and_asking_the_other() -> None:
    rng = np.random.default_rng(1)
    answers = [
        [{c for c in ("atom", "row", "tip") if rng.random() < p} for _ in range(2)]
        for p in rng.uniform(0.1, 0.9, 300)
    ]
    own = sheet.namings(manifest(answers), MERGE, CLASSES)
    unit_N = np.zeros(len(own), dtype=np.int64)
    found = ag.agreement_of_people(*ag.named_by(own, "fewest"), unit_N, np.ones((1, 1)))[0]
    for c, column in ((0, "atom"), (2, "row"), (3, "tip")):
        pairs = [(a, b) for two in answers for a, b in (two, two[::-1]) if column in a]
        assert found[c] == pytest.approx(np.mean([column in b for _, b in pairs]))


@given(st.integers(0, 1000))
def test_a_threshold_names_the_class_at_the_wanted_rate(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p = rng.random(60)
    share = rng.random(3)
    weight = rng.integers(0, 3, (3, 60)).astype(float)
    found = ag.thresholds(p, share, weight)
    for b in range(3):
        rate = weight[b] @ (p >= found[b]) / weight[b].sum()
        assert abs(rate - share[b]) <= weight[b].max() / weight[b].sum()


def test_thresholds_do_not_look_at_the_fold_that_is_tested() -> None:
    rng = np.random.default_rng(2)
    p, named = rng.random((80, 2)), rng.integers(0, 3, (80, 2)).astype(float)
    fold, unit = np.arange(80) % 4, np.arange(80) % 8
    ones = np.ones((1, 8))
    before = {int(fold[rows[0]]): x for rows, x in ag.named_by_model(p, named, fold, unit, ones)}
    changed = named.copy()
    changed[fold == 2] = 2 - changed[fold == 2]
    after = {int(fold[rows[0]]): x for rows, x in ag.named_by_model(p, changed, fold, unit, ones)}
    assert np.array_equal(before[2], after[2])
    assert any(not np.array_equal(before[f], after[f]) for f in (0, 1, 3))


def test_a_model_that_answers_as_a_third_volunteer_agrees_as_people_do() -> None:
    """Its probabilities rank the scans as one more volunteer names them."""
    rng = np.random.default_rng(3)
    theta = rng.beta(0.5, 0.5, 20_000)
    votes = rng.random((3, len(theta))) < theta
    named = votes[:2].sum(axis=0)[:, None].astype(float)
    both = 2.0 * (named == 2)
    p = (votes[2] + 1e-3 * rng.random(len(theta)))[:, None]
    fold, unit = rng.integers(0, 5, len(theta)), rng.integers(0, 20, len(theta))
    ones = np.ones((1, 20))
    people = ag.agreement_of_people(named, both, unit, ones)[0, 0]
    model = ag.agreement_of_model(p, named, fold, unit, ones)
    assert model["rate"][0, 0] == pytest.approx(named.mean() / 2, abs=0.01)
    assert model["agreement"][0, 0] == pytest.approx(people, abs=0.015)
    assert model["positive"][0, 0] == pytest.approx(people, abs=0.015)


def test_naming_everything_raises_agreement_but_not_positive_agreement() -> None:
    named = np.array([[2.0], [0.0], [1.0], [0.0]] * 10)
    fold, unit = np.arange(40) % 2, np.arange(40) % 4
    found = ag.agreement_of_model(np.ones((40, 1)), named, fold, unit, np.ones((1, 4)))
    assert found["agreement"][0, 0] == 1
    assert found["positive"][0, 0] == pytest.approx(2 * 30 / (2 * 40 + 30))


def test_trials_are_scored_as_scikit_learn_does() -> None:
    rng = np.random.default_rng(4)
    label, score = rng.integers(0, 3, 400), np.round(rng.dirichlet(np.ones(3), 400), 1)
    weight = rng.integers(1, 4, 400).astype(float)
    unit = rng.integers(0, 5, 400)
    best = score.argmax(axis=1)
    trials = ceiling.Trials(
        unit_T=unit, label_T=label, choice_TC=np.eye(3)[best], score_TC=score, weight_T=weight
    )
    times = np.array([[1.0, 1, 1, 1, 1], [0, 2, 1, 1, 3]])
    found = ceiling.score_trials(trials, times)
    for b in range(2):
        w = weight * times[b, unit]
        wanted = balanced_accuracy_score(label, best, sample_weight=w)
        assert found["balanced_accuracy", None][b] == pytest.approx(wanted)
        for c in range(3):
            auroc = roc_auc_score(label == c, score[:, c], sample_weight=w)
            assert found["auroc", c][b] == pytest.approx(auroc)


def test_chances_of_labels_are_those_of_asking_volunteers() -> None:
    rng = np.random.default_rng(5)
    theta = rng.dirichlet(np.ones(8), 2)
    for responses in (1, 2, 3):
        found = ceiling.label_chances(theta, responses, 3)
        drawn = rng.choice(8, (40_000, responses), p=theta[1])
        votes = (drawn[:, :, None] >> np.arange(3) & 1).sum(axis=1)
        best = votes.max(axis=1)
        unique = ((votes == best[:, None]).sum(axis=1) == 1) & (best >= responses / 2)
        shares = np.bincount(votes.argmax(axis=1)[unique], minlength=3) / len(drawn)
        assert found[1] == pytest.approx(shares, abs=0.01)


def test_no_reader_beats_the_bound_and_the_bound_is_reached_where_labels_have_no_noise() -> None:
    rng = np.random.default_rng(6)
    assert ceiling.noise_bound(np.diag([0.1, 0.4, 0.2, 0.2, 0.1])) == pytest.approx(1, abs=1e-6)
    same = np.array([0.2, 0.4, 0.2, 0.2])
    # Where all scans are alike, nobody tells anything: chance.
    assert ceiling.noise_bound(np.outer(same, same)) == pytest.approx(1 / 3, abs=1e-6)
    for _ in range(3):
        theta = rng.dirichlet([0.2, 0.5, 0.3, 0.2], 4000)
        joint = theta.T @ theta / len(theta)
        share = theta[:, :3].mean(axis=0)
        knows = (theta[:, :3] / (3 * share)).max(axis=1).mean()
        assert knows - 0.005 <= ceiling.noise_bound(joint) <= 1


def test_the_dirichlet_is_found_again_from_pairs() -> None:
    rng = np.random.default_rng(7)
    mean = np.array([0.1, 0.3, 0.2, 0.4])
    theta = rng.dirichlet(0.8 * mean, 100_000)
    alpha, found = ceiling.concentration(theta.T @ theta)
    assert alpha == pytest.approx(0.8, abs=0.05)
    assert found == pytest.approx(mean, abs=0.01)


# ---------------------------------------------------------------------------------------------
# The stage


@pytest.fixture
def stage(tmp_path: Path) -> dict[str, Any]:
    """Write the predictions of two models about 60 scans, a third of them without label."""
    rng = np.random.default_rng(8)
    held = data.scans(groups=6, per_group=16)
    truth = held["label"].to_numpy().copy()
    held.loc[held.index[::3], "label"] = -1
    answers = []
    for k in truth:
        column = ("atom", "dimer", "row", "blurry")
        count = int(rng.integers(1, 4))
        answers.append([{column[k if rng.random() < 0.8 else 3 - k]} for _ in range(count)])
    frame = manifest(answers)
    frame["scan_id"], frame["group"] = held.index, held["group"].to_numpy()
    used = held["label"].to_numpy() >= 0
    frame["label"] = [CLASSES[k] if k >= 0 else "" for k in held["label"]]
    frame["excluded"] = np.where(used, "", "tie")
    (tmp_path / "scans").mkdir()
    frame.to_csv(tmp_path / "scans/manifest.csv", index=False)
    groups = sorted(set(held["group"]))
    folds = []
    for f in range(2):
        part = {
            name: [s for s in held.index[used] if held["group"][s] in own]
            for name, own in (
                ("test", groups[f::2]), ("validation", groups[1 - f :: 2][:1]),
                ("train", groups[1 - f :: 2][1:]),
            )
        }  # fmt: skip
        folds.append({name: frozenset(ids) for name, ids in part.items()})
    predictions: dict[str, list[Path]] = {"good": [], "poor": []}
    for name, skill in (("good", 3.0), ("poor", 0.3)):
        for f, seed in itertools.product(range(2), range(2)):
            run = tmp_path / name / f"fold{f}-seed{seed}"
            run.mkdir(parents=True)
            mine = held[held["group"].isin(groups[f::2])]
            whole = mine.assign(label=truth[held.index.get_indexer(mine.index)])
            table = data.table(whole, skill=skill, seed=seed, fold=f)
            table["label"] = held.loc[table["scan_id"], "label"].to_numpy()
            table[table["label"] >= 0].to_parquet(run / "predictions.parquet")
            table[table["label"] < 0].to_parquet(run / ag.UNLABELLED)
            predictions[name].append(run)
    spec = {"merge": MERGE, "bootstrap": 40, "confidence": 0.95, "seed": 0}
    held_out = data.HeldOut(classes=CLASSES, scans=held, folds=tuple(folds))
    return {
        "spec": spec, "predictions": predictions, "held_out": held_out, "scans": tmp_path / "scans",
    }  # fmt: skip


def run_stage(
    stage: dict[str, Any], out: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, pd.DataFrame]:
    monkeypatch.setattr(ag.HeldOut, "load", lambda *_: stage["held_out"])
    for name in ("REFITS", "BOUND_RESAMPLES"):
        monkeypatch.setattr(ceiling, name, 2)
    ag.agreement(stage["spec"], stage["predictions"], "store", "split", stage["scans"], out)
    return {path.stem: pd.read_csv(path) for path in sorted(out.glob("*.csv"))}


def test_the_stage_counts_scans_without_label_and_gives_the_same_bytes(
    stage: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run_stage(stage, tmp_path / "out", monkeypatch)
    two = pd.read_csv(stage["scans"] / "manifest.csv").query("responses == 2")
    rows = found["agreement"]
    assert set(rows["scans"]) == {len(two)}
    assert set(rows["unlabelled"]) == {two["label"].isna().sum()}
    mean = rows[rows["class"].isna() & (rows["reading"] == "fewest")].set_index("experiment")
    assert mean.loc["good", "model"] > mean.loc["poor", "model"] + 0.2
    assert mean.loc["poor", "difference_high"] < 0
    of_people = found["people"].query("scope == 'predicted' and reading == 'fewest'")
    assert of_people["probability"].tolist() == pytest.approx(
        rows[(rows["experiment"] == "good") & (rows["reading"] == "fewest")]["people"].tolist()
    )
    errors = found["errors"][found["errors"]["experiment"] == "good"].set_index("by")
    for by in ("responses", "group", "pair"):
        assert errors.loc[by, "errors"].sum() == pytest.approx(errors.loc["all", "errors"])
    assert {"second volunteer", "any reader (estimated bound)", "good"} <= set(
        found["ceiling"]["reader"]
    )

    run_stage(stage, tmp_path / "again", monkeypatch)
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_predictions_of_groups_that_were_trained_on_are_refused(
    stage: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = stage["predictions"]["good"][0], stage["predictions"]["good"][2]
    pd.read_parquet(other / ag.UNLABELLED).assign(fold=0, seed=0).to_parquet(first / ag.UNLABELLED)
    with pytest.raises(UserError, match="leakage"):
        run_stage(stage, tmp_path / "out", monkeypatch)
    (first / ag.UNLABELLED).unlink()
    with pytest.raises(UserError, match="predict --unlabelled"):
        run_stage(stage, tmp_path / "out", monkeypatch)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # A table that gives its scans a tested group still holds scans that were trained on.
        (lambda table, other: other.assign(fold=0, seed=0, group=table["group"].iloc[0]),
         "in the store of"),
        (lambda table, _: table.assign(fold=7), "fold 7 is not in split.json, which has 2"),
        (lambda table, _: table.assign(fold=-1), "fold -1 is not in"),
        (lambda table, _: table.assign(scan_id="nowhere/" + table["scan_id"]), "not in the store"),
    ],
    ids=["group", "fold", "negative fold", "scan"],
)  # fmt: skip
def test_tables_of_scans_without_label_must_agree_with_store_and_split(
    stage: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Any,
    message: str,
) -> None:
    first, other = (stage["predictions"]["good"][k] / ag.UNLABELLED for k in (0, 2))
    change(pd.read_parquet(first), pd.read_parquet(other)).to_parquet(first)
    with pytest.raises(UserError, match=message):
        run_stage(stage, tmp_path / "out", monkeypatch)
