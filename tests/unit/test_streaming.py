"""What a monitor says about lines, answers and faults."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streaming_example import CLASSES, LINES, PIXELS, heights, items, make_run

from scanbench.errors import UserError
from scanbench.prediction import predict_arrays
from scanbench.predictions import class_columns, lines_reading
from scanbench.resample import resample
from scanbench.store import NATURAL, line_statistics
from scanbench.streaming import (
    Adviser,
    Fault,
    Line,
    LineResampler,
    Monitor,
    MonitorOptions,
    ScanInfo,
    inspected,
    uncertainty,
)
from scanbench.tipstate.tip_change import step_scores


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


def events_of(run, source, **options):
    return list(Monitor(run, MonitorOptions(**options)).events(source))


def lines_of(events):
    return [event for event in events if event["event"] == "line"]


def faults_of(events):
    return [(event["kind"], event.get("line")) for event in events if event["event"] == "fault"]


@settings(max_examples=60, deadline=None)
@given(
    planned=st.integers(1, 40),
    width=st.integers(2, 20),
    lines=st.integers(1, 40),
    pixels=st.integers(2, 20),
    data=st.data(),
)
def test_lines_are_resampled_to_the_numbers_of_the_whole_scan(planned, width, lines, pixels, data):
    measured = data.draw(st.integers(1, planned))
    x_LP = heights(measured, width, seed=planned)
    resampler = LineResampler(planned, width, lines, pixels)
    streamed = [row_P for x_P in x_LP for row_P in resampler.push(x_P)]
    whole = resample(x_LP, planned, lines, pixels)
    np.testing.assert_array_equal(np.reshape(streamed, (-1, pixels)), whole)
    assert len(resampler.kept) <= planned // lines + 2


def normalised(x_LP, normalisation):
    """Normalise a scan as the store does, and pad it."""
    statistics = line_statistics(x_LP[None], [len(x_LP)])
    if normalisation == "none":
        x_LP = x_LP / np.float32(NATURAL["m"])
    elif normalisation == "line":
        x_LP = (x_LP - statistics["line_mean"][0][:, None]) / statistics["line_std"][0][:, None]
    else:
        x_LP = (x_LP - statistics["scan_mean"][0]) / statistics["scan_std"][0]
    padded_LP = np.zeros((LINES, PIXELS), np.float32)
    padded_LP[: len(x_LP)] = x_LP
    return padded_LP


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("causal", {}),
        ("causal", {"normalisation": "none"}),
        ("causal", {"options": {"attention_window": 5}}),
        ("causal", {"window": {"lines": 6, "stride": 2}}),
        ("lrcn", {}),
        ("lrcn", {"options": {"stride": 3}}),
        ("lrcn", {"window": {"lines": 12, "stride": 2}}),
        ("vit", {}),
        ("vit", {"normalisation": "scan"}),
        ("vit", {"window": {"lines": 6, "stride": 3}}),
        ("cnn-scan", {}),
        ("features", {"normalisation": "none"}),
    ],
)
def test_a_stream_says_after_each_line_what_predict_says_of_a_scan_aborted_there(
    tmp_path, model, changes
):
    run = make_run(tmp_path, model, **changes)
    x_LP = heights()
    lines = lines_of(events_of(run, items(x_LP)))
    assert [line["line"] for line in lines] == list(range(1, LINES + 1))
    answered = 0
    for seen, line in enumerate(lines, 1):
        padded_LP = normalised(x_LP[:seen], run.meta["normalisation"])
        answers = predict_arrays(run, padded_LP[None], [seen])
        if answers.fallback[0]:
            assert line["p"] is None
            continue
        answered += 1
        expected_C, ended = as_evaluated(answers, seen)
        assert line["answer_lines"] == ended
        np.testing.assert_allclose(list(line["p"].values()), expected_C, atol=1e-4)
    assert answered >= 5


def as_evaluated(answers, lines):
    """Return the probabilities that the evaluation reads by a line, and where they came last."""
    columns = class_columns(CLASSES)
    table = pd.DataFrame(answers.probability.astype(np.float64), columns=columns).assign(
        seed=0,
        scan_id="scan",
        fold=0,
        label=0,
        group="group",
        first_line=answers.first_line,
        lines_seen=answers.lines_seen,
        final=answers.final,
    )
    ended = answers.lines_seen[answers.final].max()
    return lines_reading(table, CLASSES, lines).p_SNC[0, 0], ended


def test_a_window_whose_last_answer_comes_before_its_end_counts_at_its_end(tmp_path):
    run = make_run(tmp_path, "lrcn", window={"lines": 11, "stride": 2})
    assert run.model.answer_lines() == [10]
    x_LP = heights()
    lines = lines_of(events_of(run, items(x_LP)))
    assert [line["answer_lines"] for line in lines[9:]] == [None, 11, 11, 13, 13, 15, 15]
    answers = predict_arrays(run, normalised(x_LP, "line")[None], [LINES])
    expected_C, _ = as_evaluated(answers, LINES)
    np.testing.assert_allclose(list(lines[-1]["p"].values()), expected_C, atol=1e-4)


def test_a_scan_in_metres_gets_the_answers_of_prediction_from_a_model_that_standardises(tmp_path):
    lines = pixels = 40
    run = make_run(
        tmp_path,
        "efficientnet",
        lines=lines,
        pixels=pixels,
        scan_lines=lines,
        normalisation="scan",
        options={"pretrained": False},
    )
    rng = np.random.default_rng(0)
    x_LP = (1e-7 + 1e-11 * rng.normal(size=(lines, pixels))).astype(np.float32)
    events = list(Monitor(run, MonitorOptions()).events(items(x_LP)))
    for seen in (20, lines):
        statistics = line_statistics(x_LP[None, :seen], [seen])
        padded_LP = np.zeros_like(x_LP)
        padded_LP[:seen] = (x_LP[:seen] - statistics["scan_mean"]) / statistics["scan_std"]
        expected_C = predict_arrays(run, padded_LP[None], [seen]).probability[0]
        found = lines_of(events)[seen - 1]["p"]
        np.testing.assert_allclose(list(found.values()), expected_C, atol=1e-4)


@pytest.mark.parametrize("source", [[], items(heights())[1:], [Fault("silent", "no line")]])
def test_a_source_that_begins_with_no_scan_is_refused_in_one_line(causal, source):
    with pytest.raises(UserError, match="holds no scan") as error:
        events_of(causal, source)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("model", ["causal", "lrcn"])
@pytest.mark.parametrize("window", [None, {"lines": 12, "stride": 2}])
def test_normalisation_by_the_whole_scan_is_refused_where_it_looks_ahead(tmp_path, model, window):
    run = make_run(tmp_path, model, normalisation="scan", window=window)
    with pytest.raises(UserError, match="looks at lines not yet measured; train it with") as error:
        Monitor(run, MonitorOptions())
    assert "\n" not in str(error.value)


def test_a_scan_of_other_lines_and_pixels_is_resampled_and_answered_when_a_line_is_whole(causal):
    lines = lines_of(events_of(causal, items(heights(2 * LINES, 3 * PIXELS))))
    assert [line["lines_seen"] for line in lines] == [n // 2 for n in range(1, 2 * LINES + 1)]
    lines = lines_of(events_of(causal, items(heights(LINES // 4, PIXELS // 2))))
    assert [line["lines_seen"] for line in lines] == [4, 8, 12, 16]


def test_other_physics_is_refused_in_one_line(causal):
    with pytest.raises(UserError, match=r"scan: heights in 'A', but .* 'Z' in 'm'"):
        events_of(causal, [ScanInfo(name="scan", planned_lines=4, pixels=4, unit="A")])


@pytest.mark.parametrize("normalisation", ["line", "scan", "none"])
@pytest.mark.parametrize(
    ("own", "unit", "alike"),
    [
        ("m", "level", True), ("level", "m", True), ("", "m", True), ("m", "", True),
        ("", "A", True), ("m", "A", False), ("A", "m", False), ("level", "A", False),
        ("A", "level", False), ("m", "m", None), ("level", "level", None), ("", "", None),
    ],
)  # fmt: skip
def test_which_units_a_run_takes(causal, normalisation, own, unit, alike):
    """`alike`: None where the units are equal, which is always taken."""
    run = dataclasses.replace(
        causal, meta=causal.meta | {"unit": own, "normalisation": normalisation}
    )
    assert run.takes(unit) == (alike is None or (alike and normalisation != "none"))


def test_a_run_on_grey_levels_answers_about_a_stream_in_metres(causal):
    assert causal.meta["normalisation"] == "line"
    levels = dataclasses.replace(causal, meta=causal.meta | {"unit": "level"})
    source = items(heights(LINES, PIXELS))
    assert source[0].unit == "m"
    assert lines_of(events_of(levels, source)) == lines_of(events_of(causal, source))
    with pytest.raises(UserError, match=r"heights in 'A', but .* in 'level'"):
        events_of(levels, [dataclasses.replace(source[0], unit="A")])


def test_uncertainty_runs_from_sure_to_nothing_known():
    assert uncertainty(np.array([0.0, 1.0, 0.0])) == pytest.approx(0)
    assert uncertainty(np.full(5, 0.2)) == pytest.approx(1)
    assert uncertainty(np.array([1.0])) == 0


def test_the_change_score_is_the_distance_from_the_average_of_the_answers_before(causal):
    lines = lines_of(events_of(causal, items(heights()), smoothing=0.5))
    p_TC = np.array([list(line["p"].values()) for line in lines])
    average_C = p_TC[0]
    assert lines[0]["change"] == 0
    for p_C, line in zip(p_TC[1:], lines[1:], strict=True):
        assert line["change"] == pytest.approx(0.5 * np.abs(p_C - average_C).sum(), abs=1e-5)
        average_C = (p_C + average_C) / 2
    assert max(line["change"] for line in lines) > 1e-4


@pytest.mark.parametrize("measured", [10, 16, 32, 40])
def test_the_step_score_is_of_the_lines_as_measured_at_every_size(causal, measured):
    x_LP = heights(measured)
    jump = measured - 3
    x_LP[jump:] += 50 * x_LP.std()
    steps = [line["step"] for line in lines_of(events_of(causal, items(x_LP)))]
    assert steps[:3] == [None] * 3
    expected_L = step_scores(x_LP[None])[0]
    np.testing.assert_allclose(steps[3:], expected_L[3:], atol=1e-5)
    assert np.nanargmax(expected_L) == jump


def test_a_line_that_was_not_measured_has_no_step_and_the_next_has_that_from_the_last_good_one(
    causal,
):
    x_LP = heights()
    filled_LP, bad_LP = x_LP.copy(), x_LP.copy()
    filled_LP[7] = filled_LP[8] = x_LP[6]
    bad_LP[7:9] = np.nan
    expected_L = step_scores(filled_LP[None])[0]  # as the store has lost lines
    assert np.isnan(expected_L[7:9]).all()
    expected = [None if np.isnan(step) else pytest.approx(step, abs=1e-5) for step in expected_L]
    assert [line["step"] for line in lines_of(events_of(causal, items(bad_LP)))] == expected


def test_advice_takes_patience_and_the_first_line_and_is_that_of_the_larger_share():
    options = MonitorOptions(
        stop=("defect",), recondition=("rows",), threshold=0.7, patience=2, first_line=3
    )
    adviser = Adviser(options, CLASSES)
    answers = [
        ([0.1, 0.0, 0.9], "go on"),  # one bad answer
        ([0.1, 0.0, 0.9], "go on"),  # two, but too early
        ([0.1, 0.0, 0.9], "stop"),
        ([0.2, 0.5, 0.3], "recondition"),  # bad together, mostly because of rows
        ([0.9, 0.0, 0.1], "go on"),
        ([0.3, 0.3, 0.4], "go on"),  # the count begins anew
        ([0.3, 0.3, 0.4], "stop"),
    ]
    for seen, (p_C, advice) in enumerate(answers, 1):
        assert adviser.advise(np.array(p_C), seen) == advice, seen


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"patiense": 3}, "patiense: no such option of stream; did you mean 'patience'"),
        ({"patience": 0}, "patience: 0 is not possible"),
        ({"patience": 2.5}, "patience: 2.5 is no int"),
        ({"threshold": 1.5}, "threshold: 1.5 is no number above 0, up to 1"),
        ({"threshold": True}, "threshold: True is no float"),
        ({"stop": "defect"}, "stop: 'defect' is no list of classes"),
        ({"stop": ["defects"]}, "stop: 'defects': no class; did you mean 'defect'"),
        ({"stop": ["rows"], "recondition": ["rows"]}, "stop: rows stands in recondition too"),
        ({"on_fault": "panic"}, "on_fault: 'panic' is unknown"),
    ],
)
def test_wrong_options_are_refused_in_one_line(spec, message):
    with pytest.raises(UserError, match=message) as error:
        MonitorOptions.of(spec, CLASSES)
    assert "\n" not in str(error.value)


def spoilt(kind, x_P):
    x_P = x_P.copy()
    if kind == "missing":
        x_P[2:] = np.nan
    elif kind == "infinite":
        x_P[2:] = np.inf
    elif kind == "constant":
        x_P[:] = x_P[0]
    elif kind == "saturated":
        x_P[3:] = x_P.max()
    return x_P


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        ("missing", "missing"),
        ("infinite", "missing"),
        ("constant", "constant"),
        ("saturated", "saturated"),
    ],
)
def test_a_line_without_a_measurement_is_said_once_and_the_last_good_one_stands_for_it(
    causal, spoil, kind
):
    x_LP = heights()
    bad_LP, filled_LP = x_LP.copy(), x_LP.copy()
    for number in (5, 6):
        bad_LP[number] = spoilt(spoil, x_LP[number])
        filled_LP[number] = x_LP[4]
    events = events_of(causal, items(bad_LP))
    assert faults_of(events) == [(kind, 6)]
    lines = lines_of(events)
    assert [line["fault"] for line in lines] == [None] * 5 + [kind] * 2 + [None] * 9
    for key in ("p", "advice", "change", "answer_lines"):
        assert lines[5][key] == lines[6][key] == lines[4][key]
    assert [line["lines_seen"] for line in lines] == list(range(1, LINES + 1))
    filled = lines_of(events_of(causal, items(filled_LP)))
    assert lines[-1]["p"] == filled[-1]["p"]


def test_missing_pixels_are_interpolated_along_their_line(causal):
    x_P = heights()[0]
    x_P[3:6] = np.nan
    filled_P, kind = inspected(x_P, None)
    assert kind == "missing"
    np.testing.assert_allclose(filled_P[3:6], np.linspace(x_P[2], x_P[6], 5)[1:4], rtol=1e-6)
    x_LP = heights()
    x_LP[4] = x_P
    assert faults_of(events_of(causal, items(x_LP))) == [("missing", 5)]


def test_bad_lines_at_the_start_wait_for_the_first_good_one(causal):
    x_LP = heights()
    x_LP[:2] = np.nan
    lines = lines_of(events_of(causal, items(x_LP)))
    assert [line["lines_seen"] for line in lines[:4]] == [0, 0, 3, 4]
    filled_LP = x_LP.copy()
    filled_LP[:2] = x_LP[2]
    assert lines[-1]["p"] == lines_of(events_of(causal, items(filled_LP)))[-1]["p"]


def test_dropped_lines_keep_their_place_and_lines_that_come_again_are_ignored(causal):
    x_LP = heights()
    info, *lines = items(x_LP)
    filled_LP = x_LP.copy()
    filled_LP[5:8] = x_LP[4]
    dropped = events_of(causal, [info, *lines[:5], *lines[8:]])
    assert faults_of(dropped) == [("dropped", 6)]
    assert [line["line"] for line in lines_of(dropped)] == list(range(1, LINES + 1))
    assert lines_of(dropped)[-1]["p"] == lines_of(events_of(causal, items(filled_LP)))[-1]["p"]
    again = events_of(causal, [info, *lines[:5], *lines[3:]])
    assert faults_of(again) == [("again", 4)]
    assert lines_of(again) == lines_of(events_of(causal, items(x_LP)))


def test_a_repeated_line_is_said_and_fed(causal):
    x_LP = heights()
    x_LP[7] = x_LP[6]
    events = events_of(causal, items(x_LP))
    assert faults_of(events) == [("repeated", 8)]
    assert [line["answer_lines"] for line in lines_of(events)] == list(range(1, LINES + 1))


def test_lines_past_the_planned_ones_or_of_another_width_are_said_and_not_fed(causal):
    info, *lines = items(heights())
    events = events_of(causal, [info, *lines, Line(LINES, heights()[0])])
    assert faults_of(events) == [("surplus", LINES + 1)]
    assert len(lines_of(events)) == LINES
    events = events_of(causal, [info, *lines[:3], Line(3, heights(1, 5)[0]), *lines[4:]])
    assert faults_of(events) == [("size", 4)]
    assert len(lines_of(events)) == LINES


def test_faults_end_the_stream_where_that_is_asked_for(causal):
    x_LP = heights()
    x_LP[5] = np.nan
    events = events_of(causal, items(x_LP), on_fault="stop")
    assert [event["event"] for event in events] == ["scan", *["line"] * 5, "fault", "line", "end"]
    assert events[-1] == {
        "event": "end",
        "reason": "stopped at a fault: missing",
        "line": 6,
        "lines_seen": 6,
    }
    info, *lines = items(heights())
    source = [info, lines[0], Fault("unavailable", "the cable is out"), *lines[1:]]
    assert [event["event"] for event in events_of(causal, source, on_fault="stop")] == [
        "scan", "line", "fault", "end",
    ]  # fmt: skip
    assert len(lines_of(events_of(causal, source))) == LINES


def test_another_scan_begins_with_nothing_known(causal):
    once = items(heights())
    events = events_of(causal, [*items(heights(seed=1))[:9], *once])
    assert lines_of(events)[8:] == lines_of(events_of(causal, once))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_no_stream_of_lines_however_bad_breaks_the_monitor(causal, data):
    value = st.sampled_from([0.0, 1.0, -2.5, np.nan, np.inf, -np.inf, 1e30, 1e-40, 3e38])
    line = st.builds(
        Line,
        st.integers(0, LINES + 2),
        st.lists(value, min_size=PIXELS - 1, max_size=PIXELS + 1).map(np.array),
    )
    good = st.builds(lambda n: Line(n, heights(seed=n)[0]), st.integers(0, LINES - 1))
    source = [items(heights())[0], *data.draw(st.lists(st.one_of(line, good), max_size=30))]
    events = events_of(causal, source)
    assert events[-1]["event"] == "end"
    numbers = [event["line"] for event in lines_of(events)]
    assert numbers == list(range(1, len(numbers) + 1))
    for event in lines_of(events):
        if event["p"] is not None:
            assert sum(event["p"].values()) == pytest.approx(1, abs=1e-5)
