"""A step exported as ONNX is the step, without PyTorch and Scanbench, and says what it is."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from streaming_example import CLASSES, LINES, PIXELS, heights, items, make_run

from scanbench.cli import main
from scanbench.errors import UserError
from scanbench.export import FORMS, export, in_form, onnx_step
from scanbench.runs import build_model
from scanbench.streaming import Monitor, MonitorOptions

EXAMPLE = Path(__file__).parents[2] / "examples" / "onnx_monitor.py"

#: Runs a script in a process that finds no other package than those of a bare environment.
BARE = """
import runpy, sys
class Bare:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "scanbench", "onnx", "pandas", "lightning"):
            raise ImportError(f"{name} is not in a bare environment")
sys.meta_path.insert(0, Bare())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0])
"""


@pytest.fixture(scope="module", params=["causal", "lrcn"])
def exported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    run = make_run(folder / "run", request.param)
    export(folder / "run", folder / "step.onnx")
    return folder, run


def test_the_example_gives_the_monitors_answers_in_a_bare_environment(exported, tmp_path):
    folder, run = exported
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 30
    x_LP = heights()
    np.save(tmp_path / "lines.npy", x_LP)
    command = [sys.executable, "-c", BARE, str(EXAMPLE), str(folder / "step.onnx")]
    done = subprocess.run(
        [*command, str(tmp_path / "lines.npy")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answers = {answer["line"]: answer["p"] for answer in map(json.loads, done.stdout.splitlines())}
    events = Monitor(run, MonitorOptions()).events(items(x_LP))
    expected = {e["answer_lines"]: e["p"] for e in events if e["event"] == "line" and e["p"]}
    assert answers.keys() == expected.keys()
    for seen, p in expected.items():
        assert list(answers[seen]) == CLASSES
        np.testing.assert_allclose(list(answers[seen].values()), list(p.values()), atol=1e-4)


def streamed_logits(model, session, x_LP):
    """Return (torch's, onnxruntime's) logits at every answer."""
    state = model.initial_state()
    given = {name: value.numpy() for name, value in state.items()}
    for line_P in x_LP:
        with torch.inference_mode():
            logits_C, answered, state = model.step(line_P, state)
        result = session.run(None, {"line": line_P.numpy(), **given})
        given = dict(zip(given, result[2:], strict=True))
        assert result[1].tolist() == answered.tolist()
        if answered:
            yield logits_C.numpy(), result[0]
    for name, value in state.items():
        np.testing.assert_allclose(given[name], value.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("causal", {"d_model": 64, "layers": 2, "heads": 4, "ffn": 256}),
        ("causal", {"d_model": 32, "layers": 2, "heads": 2, "ffn": 64, "attention_window": 9}),
        ("lrcn", {"slow_pooling": [2, 2, 1]}),
        ("lrcn", {"stride": 3, "channels": [4, 8, 8], "hidden": 16}),
    ],
)
def test_exported_steps_equal_torch_at_every_line(name, options):
    torch.manual_seed(0)
    model = build_model("tipstate", name, options, lines=40, pixels=128, classes=4).eval()
    session = onnxruntime.InferenceSession(onnx_step(model, 128).SerializeToString())
    x_LP = torch.randn(40, 128, generator=torch.Generator().manual_seed(1))
    pairs = list(streamed_logits(model, session, x_LP))
    assert len(pairs) == len(model.answer_lines())
    for expected, actual in pairs:
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


#: Largest difference of a logit, as a share of the largest logit.
TOLERANCES = {"fp32": 1e-5, "fp16": 1e-3, "int8": 0.05}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("causal", {"d_model": 64, "layers": 1, "heads": 4, "ffn": 256}),
        ("lrcn", {"slow_pooling": [2, 2, 1], "hidden": 32}),
        ("efficientnet-causal", {"blocks": 4}),
    ],
)
def test_every_form_stays_close_to_torch_over_a_scan_and_takes_less_room(name, options, form):
    torch.manual_seed(0)
    model = build_model("tipstate", name, options, lines=32, pixels=32, classes=4).eval()
    full = onnx_step(model, 32)
    proto = in_form(full, form)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    x_LP = torch.randn(32, 32, generator=torch.Generator().manual_seed(1))
    given = {key: value.numpy() for key, value in model.initial_state().items()}
    found = []
    for line_P in x_LP:
        logits_C, answered, *after = session.run(None, {"line": line_P.numpy(), **given})
        given = dict(zip(given, after, strict=True))
        found += [logits_C] if answered else []
    with torch.inference_mode():
        wanted_TC = model(x_LP[None], torch.tensor([32]))[0].numpy()
    np.testing.assert_allclose(found, wanted_TC, rtol=0, atol=TOLERANCES[form] * wanted_TC.max())
    if form != "fp32":
        assert len(proto.SerializeToString()) < 0.85 * len(full.SerializeToString())
        assert not np.array_equal(found, wanted_TC)


def test_an_exported_form_says_which_it_is(tmp_path, capsys):
    make_run(tmp_path / "run", "causal", options={"d_model": 64, "ffn": 256})
    arguments = ["export", str(tmp_path / "run"), str(tmp_path / "small.onnx")]
    assert main([*arguments, "--form", "int8"]) == 0
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx")
    assert session.get_modelmeta().custom_metadata_map["form"] == "int8"
    assert "| Weights | 8-bit integers" in (tmp_path / "small.md").read_text()
    assert main([*arguments, "--form", "int4"]) == 2
    assert "form: 'int4' is unknown" in capsys.readouterr().err


def test_the_file_says_what_it_is_and_nothing_of_where_it_was_made(exported):
    folder, run = exported
    model = onnx.load(folder / "step.onnx")
    told = json.loads({p.key: p.value for p in model.metadata_props}["scanbench"])
    assert told["classes"] == CLASSES
    assert (told["lines"], told["pixels"], told["normalisation"]) == (LINES, PIXELS, "line")
    assert told["weights_sha256"] == run.meta["weights_sha256"]
    inputs = [value.name for value in model.graph.input]
    assert inputs == ["line", *run.model.initial_state()]
    outputs = [value.name for value in model.graph.output]
    assert outputs == ["logits", "answered", *(f"next_{name}" for name in inputs[1:])]
    content = (folder / "step.onnx").read_bytes()
    assert b".py" not in content
    assert str(Path(torch.__file__).parents[1]).encode() not in content
    card = (folder / "step.md").read_text(encoding="utf-8")
    assert run.meta["weights_sha256"] in card
    assert ", ".join(CLASSES) in card


def test_the_same_run_gives_the_same_bytes(exported):
    folder, _ = exported
    before = (folder / "step.onnx").read_bytes(), (folder / "step.md").read_bytes()
    export(folder / "run", folder / "again" / "step.onnx")
    again = folder / "again"
    assert ((again / "step.onnx").read_bytes(), (again / "step.md").read_bytes()) == before


def test_the_card_holds_the_results_it_is_given(exported, capsys):
    folder, run = exported
    name = run.meta["name"]
    (folder / "metrics.csv").write_text(
        "experiment,reading,lines,metric,class,value,low,high,seeds\n"
        f"{name},scan,,auroc,,0.91234,0.88,0.94,3\n"
        f"{name},lines,20,auroc,,0.85,,,3\n"
        "other,scan,,auroc,,0.5,0.4,0.6,5\n"
    )
    arguments = ["export", str(folder / "run"), str(folder / "step.onnx")]
    assert main([*arguments, "--metrics", str(folder / "metrics.csv")]) == 0
    card = (folder / "step.md").read_text(encoding="utf-8")
    assert "| scan | auroc | 0.912 | 0.880 to 0.940 |" in card
    assert "| lines, after 20 lines | auroc | 0.850 |  |" in card
    assert "0.500" not in card
    assert "From `metrics.csv`. Mean over runs: 3 seeds." in card
    # What the file does not tell, the card does not claim.
    assert "held-out" not in card
    assert "95 %" not in card
    (folder / "applied.csv").write_text("reading,lines,metric,class,value\nscan,,auroc,,0.9\n")
    assert main([*arguments, "--metrics", str(folder / "applied.csv")]) == 0
    card = (folder / "step.md").read_text(encoding="utf-8")
    assert "From `applied.csv`.\n" in card
    assert "| scan | auroc | 0.900 |  |" in card
    assert main([*arguments, "--metrics", str(folder / "nothing.csv")]) == 2
    assert "nothing.csv: cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ("vit", {}, "vit: has no step that answers line by line"),
        ("causal", {"window": {"lines": 6, "stride": 2}}, "windows of 6 lines"),
        ("causal", {"normalisation": "scan"}, "looks at lines not yet measured"),
    ],
)
def test_runs_that_a_step_cannot_stand_for_are_refused_in_one_line(
    tmp_path, model, changes, message
):
    make_run(tmp_path / "run", model, **changes)
    with pytest.raises(UserError, match=message) as error:
        export(tmp_path / "run", tmp_path / "step.onnx")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "step.onnx").exists()
