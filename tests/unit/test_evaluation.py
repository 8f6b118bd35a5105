import json

import numpy as np
import pandas as pd
import pytest
from prediction_data import CLASSES, LINES, held_out, scans, table, write_split, write_store
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from scanbench.comparison import holm
from scanbench.errors import UserError
from scanbench.evaluation import EXAMPLES, evaluate, metrics_for
from scanbench.files import sha256_of
from scanbench.predictions import HeldOut, class_columns

SPEC = {
    "lines": [4, 8, 16, LINES],
    "bootstrap": 200,
    "permutations": 99,
    "confidence": 0.95,
    "ece_bins": 10,
    "seed": 0,
    "metrics": ["auroc", "balanced_accuracy"],
    "comparison": "main",
    "folds": [0],
    "seeds": [0, 1],
}
WINDOWS = tuple((first, (first + 8,)) for first in range(0, 25, 8))
SAMPLES = {
    "whole": ((0, (LINES,)),),
    "rolling": ((0, (8, 16, 24, 32)),),
    "windows": WINDOWS,
}
SKILL = {"whole": 1.0, "rolling": 2.5, "windows": 0.3}
FILES = ["metrics", "progress", "pairs", "roc", "confusion", "calibration", "groups", "examples",
         "stopping", "stops"]  # fmt: skip


class Study:
    """A folder with store, split and predictions of three experiments."""

    def __init__(self, folder, every: pd.DataFrame, seeds=(0, 1)) -> None:
        self.folder = folder
        self.every = every
        self.store = write_store(folder / "store.h5", every)
        self.split = write_split(folder / "split.json", held_out(every), self.store)
        self.tables = {
            name: [table(every, skill=SKILL[name], seed=seed, samples=samples) for seed in seeds]
            for name, samples in SAMPLES.items()
        }

    def evaluate(self, out: str = "tables", **change: object) -> dict[str, pd.DataFrame]:
        runs = {}
        for name, frames in self.tables.items():
            runs[name] = [self.folder / f"{name}-{i}.parquet" for i in range(len(frames))]
            for path, frame in zip(runs[name], frames, strict=True):
                frame.to_parquet(path)
        folder = self.folder / out
        evaluate({**SPEC, **change}, runs, self.store, self.split, folder)
        return {name: pd.read_csv(folder / f"{name}.csv") for name in FILES}


def in_folds(every: pd.DataFrame, folds: int) -> HeldOut:
    """Each group is tested in one of the folds, in turn."""
    tested_in = pd.factorize(every["group"])[0] % folds
    parts = [
        {
            "train": frozenset(every.index[tested_in != f]),
            "validation": frozenset[str](),
            "test": frozenset(every.index[tested_in == f]),
        }
        for f in range(folds)
    ]
    return HeldOut(classes=CLASSES, scans=every, folds=tuple(parts))


def folded(folder, every: pd.DataFrame, folds: int) -> Study:
    """A study with a guess from the class shares of each training part, and a model."""
    study = Study(folder, every)
    held = in_folds(every, folds)
    write_split(study.split, held, study.store)
    tables: dict[str, list[pd.DataFrame]] = {"majority": [], "rolling": []}
    for seed in (0, 1):
        for f, parts in enumerate(held.folds):
            tested = every.loc[sorted(parts["test"])]
            trained = every.loc[sorted(parts["train"]), "label"]
            shares = np.bincount(trained, minlength=len(CLASSES)) / len(trained)
            constant = table(tested, skill=0, seed=seed, fold=f)
            constant[class_columns(CLASSES)] = shares.astype(np.float32)
            tables["majority"].append(constant)
            tables["rolling"].append(table(tested, skill=2.5, seed=seed, fold=f))
    study.tables = tables
    return study


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path, scans(partial=10))


def test_tables_have_the_columns_of_the_contract(study):
    tables = study.evaluate()
    columns = {
        "metrics": "experiment,reading,lines,metric,class,value,low,high,seeds,groups,scans,rows",
        "pairs": "experiment_a,experiment_b,reading,metric,difference,low,high,p,p_holm,"
        "seeds,groups,scans",
        "progress": "experiment,metric,lines,difference,low,high",
        "roc": "experiment,class,seed,fpr,tpr",
        "confusion": "experiment,seed,true,predicted,count",
        "calibration": "experiment,bin_low,bin_high,confidence,accuracy,count",
        "groups": "experiment,group,scans,metric,value",
        "examples": "experiment,scan_id,label,predicted,p_label,p_predicted,kind",
        "stopping": "experiment,patience,threshold,wrong_stops,saved,lines_spent",
        "stops": "experiment,limit,figure,value,low,high",
    }
    for name, frame in tables.items():
        assert list(frame.columns) == columns[name].split(",")


def test_the_same_inputs_give_the_same_bytes(study):
    study.evaluate("first")
    study.evaluate("second")
    first, second = (sorted((study.folder / name).iterdir()) for name in ("first", "second"))
    assert [path.name for path in first] == sorted(
        [*(f"{name}.csv" for name in FILES), "evaluate.json", "policy.json"]
    )
    assert [sha256_of(path) for path in first] == [sha256_of(path) for path in second]


def test_stopping_is_judged_of_models_that_answer_while_a_scan_runs(study):
    tables = study.evaluate(stop_classes=[CLASSES[3]], stop_limits=[0.1], stop_patience=[1, 2])
    early = {name for name, samples in SAMPLES.items() if samples != ((0, (LINES,)),)}
    assert set(tables["stopping"]["experiment"]) == set(tables["stops"]["experiment"]) == early
    assert set(tables["stopping"]["patience"]) == {1, 2}
    assert tables["stops"].groupby(["experiment", "figure"]).size().eq(1).all()
    policy = json.loads((study.folder / "tables/policy.json").read_text())
    assert policy["classes"] == [CLASSES[3]]
    assert [(p["experiment"], p["limit"]) for p in policy["policies"]] == [
        ("rolling", 0.1), ("windows", 0.1)
    ]  # fmt: skip
    for own in policy["policies"]:
        stops = tables["stops"].set_index(["experiment", "figure"]).loc[own["experiment"]]
        for figure, value in own["expected"].items():
            assert value["value"] == pytest.approx(stops.loc[figure, "value"], rel=1e-6)
        assert [(rule["fold"], rule["seed"]) for rule in own["rules"]] == [(0, 0), (0, 1)]


def test_progress_is_the_difference_to_the_last_answer(study):
    tables = study.evaluate()
    metrics, progress = tables["metrics"], tables["progress"]
    macro = metrics[metrics["class"].isna()].set_index(["experiment", "metric", "reading", "lines"])
    final = macro.xs("scan", level="reading").droplevel("lines")["value"]
    for row in progress.to_dict("records"):
        own = row["experiment"], row["metric"]
        value = macro.loc[(*own, "lines", row["lines"]), "value"]
        assert row["difference"] == pytest.approx(value - final[own], abs=1e-7)
        assert row["low"] <= row["difference"] <= row["high"]
    at_end = progress[progress["lines"] == LINES]
    assert (at_end[["difference", "low", "high"]] == 0).all(axis=None)


def test_without_a_class_to_stop_for_no_rule_is_judged(study):
    for classes in ([], ["no class of these data"], list(CLASSES)):
        tables = study.evaluate(stop_classes=classes)
        assert tables["stopping"].empty
        assert tables["stops"].empty


def test_values_are_means_over_seeds_of_the_references(study):
    metrics = study.evaluate()["metrics"]
    scores, recalls = [], []
    for frame in study.tables["whole"]:
        ordered = frame.sort_values("scan_id")
        p, label = ordered[class_columns(CLASSES)].to_numpy(float), ordered["label"]
        scores.append(np.mean([roc_auc_score(label == c, p[:, c]) for c in range(4)]))
        recalls.append(balanced_accuracy_score(label, p.argmax(axis=1)))
    macro = metrics[
        (metrics["experiment"] == "whole")
        & (metrics["reading"] == "scan")
        & metrics["class"].isna()
    ].set_index("metric")
    assert macro.loc["auroc", "value"] == pytest.approx(np.mean(scores), abs=1e-7)
    assert macro.loc["balanced_accuracy", "value"] == pytest.approx(np.mean(recalls), abs=1e-7)
    assert macro.loc["auroc", ["seeds", "groups", "scans", "rows"]].tolist() == [2, 6, 48, 96]


def test_each_reading_stands_where_it_makes_sense(study):
    metrics = study.evaluate()["metrics"]
    auroc = metrics[(metrics["metric"] == "auroc") & metrics["class"].isna()]
    lines = auroc[auroc["reading"] == "lines"].groupby("experiment")["lines"].apply(list)
    assert lines["whole"] == [LINES]
    assert lines["rolling"] == [8, 16, LINES]
    assert lines["windows"] == [8, 16, LINES]
    assert auroc[auroc["reading"] == "window"]["experiment"].tolist() == ["windows"]
    assert auroc[auroc["reading"] == "scan"]["experiment"].tolist() == list(SAMPLES)


def test_a_rolling_model_ends_its_curve_at_its_scan_figure(study):
    metrics = study.evaluate()["metrics"]
    rolling = metrics[metrics["experiment"] == "rolling"]
    at_end = rolling[rolling["lines"] == LINES].set_index(["metric", "class"])
    scan = rolling[rolling["reading"] == "scan"].set_index(["metric", "class"])
    figures = ["value", "low", "high"]
    assert (at_end[figures] == scan[figures]).all(axis=None)


def test_intervals_hold_the_values_and_differences(study):
    tables = study.evaluate()
    metrics, pairs = tables["metrics"], tables["pairs"]
    smooth = metrics[metrics["metric"].isin(["auroc", "accuracy", "balanced_accuracy"])]
    assert ((smooth["low"] <= smooth["value"]) & (smooth["value"] <= smooth["high"])).all()
    assert (pairs["low"] <= pairs["difference"]).all()
    assert (pairs["difference"] <= pairs["high"]).all()


def test_differences_are_those_of_the_metrics_table(study):
    tables = study.evaluate()
    metrics, pairs = tables["metrics"], tables["pairs"]
    scan = metrics[(metrics["reading"] == "scan") & metrics["class"].isna()]
    value = scan.set_index(["experiment", "metric"])["value"]
    assert len(pairs) == 3 * 2
    for row in pairs.itertuples():
        expected = value[row.experiment_a, row.metric] - value[row.experiment_b, row.metric]
        assert row.difference == pytest.approx(expected, abs=1e-7)
        assert row.p <= row.p_holm <= 1


def test_confusion_and_calibration_count_every_scan_of_every_seed(study):
    tables = study.evaluate()
    for name in ("confusion", "calibration"):
        assert (tables[name].groupby("experiment")["count"].sum() == 2 * 48).all()
    per_class = tables["confusion"].groupby(["experiment", "seed", "true"])["count"].sum()
    assert (per_class == 12).all()


def test_groups_are_scored_over_the_classes_that_they_hold(tmp_path):
    every = scans(groups=6, per_group=8)
    every.loc[every["group"] == "session 00", "label"] = [0, 0, 0, 0, 1, 1, 1, 1]
    every.loc[every["group"] == "session 01", "label"] = 2
    tables = Study(tmp_path, every).evaluate()
    groups = tables["groups"].set_index(["experiment", "group", "metric"]).sort_index()
    assert (groups["scans"] == 8).all()
    assert np.isnan(groups.loc[("rolling", "session 01", "auroc"), "value"])
    assert np.isfinite(groups.loc[("rolling", "session 00", "auroc"), "value"])
    one_class = groups.loc[("rolling", "session 01")]["value"]
    assert one_class["balanced_accuracy"] == one_class["accuracy"]


def test_examples_are_the_most_confident_of_each_experiment(study):
    examples = study.evaluate()["examples"]
    assert set(examples["experiment"]) == set(study.tables)
    examples = examples[examples["experiment"] == "rolling"]
    assert (examples.groupby(["label", "kind"]).size() <= EXAMPLES).all()
    assert ((examples["label"] == examples["predicted"]) == (examples["kind"] == "right")).all()
    columns = class_columns(CLASSES)
    mean = (
        pd.concat(study.tables["rolling"])
        .query("final")
        .groupby(["scan_id", "label"])[columns]
        .mean()
        .reset_index()
    )
    right = mean[(mean[columns].to_numpy().argmax(axis=1) == mean["label"]) & (mean["label"] == 0)]
    best = right.sort_values("p_atoms", ascending=False)["scan_id"].head(EXAMPLES).tolist()
    ours = examples[(examples["label"] == "atoms") & (examples["kind"] == "right")]
    assert ours["scan_id"].tolist() == best


def test_the_summary_counts_and_cautions(study):
    study.evaluate()
    summary = json.loads((study.folder / "tables" / "evaluate.json").read_text())
    assert (summary["groups"], summary["scans"], summary["seeds"]) == (6, 48, [0, 1])
    assert summary["best"] == "rolling"
    assert summary["class_scans"] == dict.fromkeys(CLASSES, 12)
    assert summary["windows"] == {"windows": 48 * 4 - 2}  # the partial scan has two fewer
    assert "only 6 test groups" in summary["caution"]
    assert summary["settings"] == SPEC


def test_one_seed_gives_intervals_from_groups_and_says_so(tmp_path):
    study = Study(tmp_path, scans(), seeds=(0,))
    metrics = study.evaluate(seeds=[0])["metrics"]
    assert (metrics["seeds"] == 1).all()
    assert (metrics["low"] < metrics["high"]).any()
    summary = json.loads((tmp_path / "tables" / "evaluate.json").read_text())
    assert "one seed per experiment" in summary["caution"]


def test_one_test_group_gives_figures_without_intervals(tmp_path):
    tables = Study(tmp_path, scans(groups=1, per_group=24)).evaluate()
    assert tables["metrics"]["value"].notna().all()
    assert tables["metrics"]["low"].isna().all()
    assert (tables["pairs"]["p"] == 1).all()


def test_with_a_baseline_each_other_experiment_is_compared_with_it_alone(study):
    every = study.evaluate()["pairs"]
    against = study.evaluate(baseline="rolling")["pairs"]
    for metric, family in against.groupby("metric"):
        assert family["experiment_a"].tolist() == ["whole", "windows"]
        assert set(family["experiment_b"]) == {"rolling"}
        # Holm over two tests instead of three.
        assert family["p_holm"].tolist() == pytest.approx(holm(family["p"].tolist()))
        for row in family.itertuples():
            names = {row.experiment_a, row.experiment_b}
            same = every[
                (every["metric"] == metric)
                & every["experiment_a"].isin(names)
                & every["experiment_b"].isin(names)
            ].iloc[0]
            sign = 1 if same["experiment_a"] == row.experiment_a else -1
            assert row.difference == pytest.approx(sign * same["difference"])
            assert row.p == same["p"]
            assert sorted((row.low, row.high)) == pytest.approx(
                sorted((sign * same["low"], sign * same["high"]))
            )
    assert json.loads((study.folder / "tables/evaluate.json").read_text())["pairs"] == 2


def test_one_experiment_has_no_pairs(study):
    study.tables = {"rolling": study.tables["rolling"]}
    assert study.evaluate()["pairs"].empty


def test_a_constant_model_has_auroc_one_half_in_several_folds(tmp_path):
    every = scans()
    every["label"] = np.random.default_rng(0).permutation(every["label"])  # shares differ by fold
    study = folded(tmp_path, every, 3)
    tables = study.evaluate(folds=[0, 1, 2])
    auroc = tables["metrics"].query("metric == 'auroc' and experiment == 'majority'")
    assert (auroc[["value", "low", "high"]] == 0.5).all(axis=None)
    groups = tables["groups"].query("metric == 'auroc' and experiment == 'majority'")
    assert (groups["value"].dropna() == 0.5).all()
    corners = tables["roc"].query("experiment == 'majority'")[["fpr", "tpr"]]
    assert (corners["fpr"] == corners["tpr"]).all()


def test_a_class_may_be_absent_from_the_test_part_of_a_fold(tmp_path):
    every = scans()
    in_first = in_folds(every, 3).folds[0]["test"]
    every.loc[every.index.isin(in_first) & (every["label"] == 2), "label"] = 1
    metrics = folded(tmp_path, every, 3).evaluate(folds=[0, 1, 2])["metrics"]
    assert metrics[["value", "low", "high"]].notna().all(axis=None)


def test_a_class_that_stands_beside_no_other_in_any_fold_is_named(tmp_path):
    every = scans()
    in_first = every.index.isin(in_folds(every, 3).folds[0]["test"])
    every["label"] = np.where(in_first, 2, every["label"].replace(2, 1))
    with pytest.raises(UserError, match=r"class 'rows' has no scan beside another class.*0, 1, 2"):
        folded(tmp_path, every, 3).evaluate(folds=[0, 1, 2])


def test_a_class_absent_from_the_test_part_is_named(tmp_path):
    every = scans()
    every["label"] = every["label"].replace(2, 1)
    with pytest.raises(UserError, match=r"split\.json: class 'rows' has no scan.*fold\(s\) 0"):
        Study(tmp_path, every).evaluate()


def test_a_failed_evaluation_leaves_the_old_tables_alone(study):
    study.evaluate()
    before = sha256_of(study.folder / "tables" / "metrics.csv")
    study.tables["whole"][0] = study.tables["whole"][0].iloc[1:]
    with pytest.raises(UserError, match="experiment 'whole': 1 test scan"):
        study.evaluate()
    assert sha256_of(study.folder / "tables" / "metrics.csv") == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bootsrap": 10}, "'bootsrap' is unknown; did you mean 'bootstrap'"),
        ({"bootstrap": 0}, "bootstrap is 0"),
        ({"confidence": 95}, "confidence is 95"),
        ({"baseline": "wole"}, "baseline 'wole' is not one of the experiments; did you mean"),
        ({"lines": [0, 8]}, "lines: 0"),
        ({"metrics": ["aurocc"]}, "'aurocc' cannot be tested; did you mean 'auroc'"),
        ({"classes": ["atoms", "rows"]}, "are not those of"),
        ({"seeds": [0, 1, 2]}, "experiment 'whole': seed 2 is without predictions"),
        ({"seeds": [0]}, "experiment 'whole': seed 1 is predicted but not asked for"),
    ],
)
def test_a_wrong_setting_is_named(study, change, words):
    with pytest.raises(UserError) as error:
        study.evaluate(**change)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_setting_is_named(study):
    spec = {key: value for key, value in SPEC.items() if key != "ece_bins"}
    with pytest.raises(UserError, match="key 'ece_bins' is missing"):
        evaluate(spec, {"a": []}, study.store, study.split, study.folder / "tables")


def test_a_table_on_its_own_gets_the_figures_of_the_report(study):
    metrics = study.evaluate()["metrics"]
    ours = metrics_for(
        pd.concat(study.tables["windows"]), CLASSES, lines=SPEC["lines"], ece_bins=10
    )
    theirs = metrics[metrics["experiment"] == "windows"].reset_index(drop=True)
    assert ours["reading"].tolist() == theirs["reading"].tolist()
    assert np.allclose(ours["value"], theirs["value"], atol=1e-7)


def test_fitted_thresholds_have_a_figure_in_every_reading_of_several_folds_and_none_of_one(
    study, tmp_path
):
    assert "balanced_accuracy_fitted" not in set(study.evaluate()["metrics"]["metric"])
    metrics = folded(tmp_path, scans(), 3).evaluate(folds=[0, 1, 2])["metrics"]
    plain, fitted = (
        metrics[metrics["metric"] == metric].set_index(["experiment", "reading", "lines"])
        for metric in ("accuracy", "balanced_accuracy_fitted")
    )
    assert fitted.index.equals(plain.index)
    assert fitted["value"].between(fitted["low"], fitted["high"]).all()


def test_scoring_leaves_out_scans_without_label_and_classes_that_are_absent():
    frame = table(scans(), skill=1)
    frame.loc[frame["label"] == 3, "label"] = -1
    scored = metrics_for(frame, CLASSES, lines=[], ece_bins=10)
    assert (scored["scans"] == 36).all()
    macro = scored[scored["class"].isna()].set_index("metric")["value"]
    assert np.isnan(macro["auroc"])
    assert np.isfinite(macro["accuracy"])
    with pytest.raises(UserError, match="no scan has a label"):
        metrics_for(frame.assign(label=-1), CLASSES, lines=[], ece_bins=10)
