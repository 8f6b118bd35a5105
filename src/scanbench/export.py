"""One step of a run as ONNX, the state as inputs and outputs, and a card that says what it is.

What runs it needs neither PyTorch nor this package: a line, normalised as the metadata say, and the
state of the step before go in; logits, whether they are an answer, and the next state come out.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import pandas as pd
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from scanbench import __version__
from scanbench.errors import UserError, did_you_mean
from scanbench.files import canonical_json, replacing, sha256_of
from scanbench.runs import Run, load_run

#: The newest that the exporter writes of itself, in IR version 10: onnxruntime 1.18 or later.
OPSET = 20
#: How weights are stored, and what a card says of it.
FORMS = {
    "fp32": "float32",
    "fp16": "stored as float16, computed with in float32",
    "int8": "8-bit integers: products by dynamic quantisation, convolutions computed in float32",
}
#: Weights of fewer numbers stay as they are.
SMALL = 64
#: Outputs of a step before the state.
OUTPUTS = ("logits", "answered")
#: What `model.json` holds that a user of the file needs to know.
TOLD = (
    "study", "name", "model", "options", "classes", "lines", "pixels", "normalisation", "unit",
    "channel", "fold", "seed", "weights_sha256", "store_sha256", "split_sha256",
)  # fmt: skip


class Step(nn.Module):
    """A model's `step` with the state as tensors in a row, in the order of `names`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        self.names = list(model.initial_state())  # type: ignore[operator]

    def forward(self, line_P: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Return logits [C], whether they are an answer [1], and the next state."""
        named = dict(zip(self.names, state, strict=True))
        logits_C, answered, after = self.model.step(line_P, named)
        return (logits_C, answered, *(after[name] for name in self.names))


def export(run: Path, out: Path, *, form: str = "fp32", metrics: Path | None = None) -> None:
    """Write one step of a run as ONNX, and its card beside it (`.md`).

    Parameters
    ----------
    run
        Folder of a trained run.
    out
        The ONNX file; its bytes are the same for the same run and packages.
    form
        One of `FORMS`: how weights are stored.
    metrics
        `metrics.csv` of apply or of a comparison, for the card.

    Raises
    ------
    UserError
        If the run cannot be fed line by line, or a path is wrong.
    """
    if out.suffix != ".onnx":
        raise UserError(f"{out}: give a name that ends in .onnx")
    if form not in FORMS:
        raise UserError(f"form: {form!r} is unknown; {did_you_mean(form, FORMS)}")
    trained = load_run(run)
    told = metadata(trained)
    source = "" if metrics is None else metrics.name
    found = _read_metrics(metrics, trained.meta)
    card = model_card(told, trained.meta, found, source=source, form=form)
    model = in_form(onnx_step(trained.model, trained.meta["pixels"]), form)
    described = {"scanbench": canonical_json(told), "form": form}
    onnx.helper.set_model_props(model, described)
    model.producer_name, model.producer_version = "scanbench", __version__
    with replacing(out) as part:
        onnx.save_model(model, part)
    card += f"\n`{out.name}`: SHA-256 `{sha256_of(out)}`, {out.stat().st_size / 1e6:.2f} MB\n"
    with replacing(out.with_suffix(".md")) as part:
        part.write_text(card, encoding="utf-8")


def metadata(run: Run) -> dict[str, Any]:
    """Return what stands in the ONNX file's metadata under `scanbench`, as JSON.

    Raises
    ------
    UserError
        If the run cannot be fed line by line by its step alone.
    """
    meta = run.meta
    if not hasattr(run.model, "step"):
        raise UserError(
            f"model {meta['model']}: has no step that answers line by line; export causal, "
            "lrcn or efficientnet-causal (scanbench stream runs every model)"
        )
    if meta.get("window"):
        raise UserError(
            f"model {meta['model']}: was trained on windows of {meta['window']['lines']} lines, of "
            "which several run at a time; train it on whole scans to export it"
        )
    if meta["normalisation"] == "scan":
        raise UserError(
            f"model {meta['model']}: was trained with normalisation: scan, which looks at lines "
            "not yet measured; train it with normalisation: line"
        )
    return {key: meta[key] for key in TOLD if key in meta} | {"scanbench": __version__}


def onnx_step(model: nn.Module, pixels: int) -> onnx.ModelProto:
    """Return a model's step: inputs `line` and the state, outputs `next_<name>` for each of it."""
    step = Step(model).eval()
    state = tuple(step.model.initial_state().values())
    with _quiet():
        program = torch.onnx.export(
            step,
            (torch.zeros(pixels), *state),
            input_names=["line", *step.names],
            output_names=[*OUTPUTS, *(f"next_{name}" for name in step.names)],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    # The exporter notes where in the source each node comes from, with the paths of this machine.
    graphs: list[Any] = [proto.graph, *proto.functions]
    for graph in graphs:
        del graph.metadata_props[:]
        for node in graph.node:
            node.doc_string = ""
            del node.metadata_props[:]
        # Shapes within are inferred anew by whoever needs them; some are those before a transpose.
        del graph.value_info[:]
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    onnx.checker.check_model(proto, full_check=True)
    return proto


def in_form(model: onnx.ModelProto, form: str) -> onnx.ModelProto:
    """Return a step with its weights stored in one of `FORMS`."""
    assert form in FORMS, form
    if form == "fp16":
        return _decoded(model, set(), _half)
    if form == "int8":
        return quantised(model)
    return model


def quantised(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the weights of matrix products and convolutions as 8-bit integers.

    Products: dynamic quantisation (onnxruntime), where each tensor that is multiplied gets its
    scale from its own values. Convolutions are computed in float32, as their integer form is slower
    on a CPU; their weights are rounded to 255 steps of each channel's largest.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with TemporaryDirectory() as folder, _quiet():
        before, after = Path(folder, "before.onnx"), Path(folder, "after.onnx")
        onnx.save_model(model, before)
        quantize_dynamic(
            before,
            after,
            op_types_to_quantize=["MatMul", "Gemm"],
            weight_type=QuantType.QInt8,
            per_channel=True,
            # 7 bits: products of 8 overflow on processors without VNNI instructions.
            reduce_range=True,
        )
        rounded = onnx.load_model(after)
    return _decoded(rounded, {"Conv"}, _integers)


def _half(name: str, value: NDArray[np.float32]) -> tuple[list[onnx.TensorProto], onnx.NodeProto]:
    """Return a weight as float16, and the node that reads it as float32."""
    stored = numpy_helper.from_array(value.astype(np.float16), f"{name}_fp16")
    to = onnx.TensorProto.FLOAT
    return [stored], onnx.helper.make_node("Cast", [stored.name], [name], to=to)


def _integers(
    name: str, value: NDArray[np.float32]
) -> tuple[list[onnx.TensorProto], onnx.NodeProto]:
    """Return a weight as int8 with a scale for each output channel, and the node that reads it."""
    largest = np.abs(value).max(tuple(range(1, value.ndim)), keepdims=True)
    scale = np.where(largest > 0, largest, 1.0).astype(np.float32) / 127
    stored = [
        numpy_helper.from_array(np.rint(value / scale).astype(np.int8), f"{name}_int8"),
        numpy_helper.from_array(scale.ravel(), f"{name}_scale"),
    ]
    names = [tensor.name for tensor in stored]
    return stored, onnx.helper.make_node("DequantizeLinear", names, [name], axis=0)


def _decoded(
    model: onnx.ModelProto, operators: set[str], code: Callable[..., Any]
) -> onnx.ModelProto:
    """Return a model whose weights are stored in a code and read by a node each.

    Of all nodes, or as second input of some operators.
    """
    coded = onnx.ModelProto()
    coded.CopyFrom(model)
    read = {node.input[1] for node in model.graph.node if node.op_type in operators}
    kept, readers = [], []
    for tensor in model.graph.initializer:
        of_these = tensor.name in read or not operators
        if tensor.data_type == onnx.TensorProto.FLOAT and of_these and np.prod(tensor.dims) > SMALL:
            stored, node = code(tensor.name, numpy_helper.to_array(tensor))
            kept += stored
            readers.append(node)
        else:
            kept.append(tensor)
    nodes = [*readers, *model.graph.node]
    for field, values in ((coded.graph.initializer, kept), (coded.graph.node, nodes)):
        del field[:]
        field.extend(values)
    onnx.checker.check_model(coded, full_check=True)
    return coded


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter and the quantiser tell of their passes, in three ways."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _read_metrics(path: Path | None, meta: Mapping[str, Any]) -> pd.DataFrame | None:
    if path is None:
        return None
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    missing = {"reading", "metric", "class", "value"} - set(table.columns)
    if missing:
        raise UserError(f"{path}: lacks column {sorted(missing)[0]}; give a metrics.csv")
    if "experiment" in table.columns:
        table = table[table["experiment"] == meta.get("name")]
    table = table[table["reading"].isin(["scan", "lines"]) & table["class"].isna()]
    if not len(table):
        raise UserError(f"{path}: holds nothing about experiment {meta.get('name')}")
    return table.dropna(subset="value")


def model_card(
    told: Mapping[str, Any],
    meta: Mapping[str, Any],
    metrics: pd.DataFrame | None,
    *,
    source: str = "",
    form: str = "fp32",
) -> str:
    """Return the card of an exported run as Markdown (after Mitchell et al. 2019, 1810.03993).

    Parameters
    ----------
    told
        From `metadata`.
    meta
        Content of `model.json`.
    metrics
        Macro metrics with columns `reading`, `lines`, `metric`, `value` and perhaps `low`, `high`,
        `seeds`.
    source
        Name of the file that they are from.
    form
        One of `FORMS`.
    """
    counts = meta.get("class_counts") or []
    if isinstance(counts, Mapping):
        counts = [counts.get(name, 0) for name in told["classes"]]
    scale = {
        "none": "none: heights divided by a constant of the unit",
        "line": "each line to mean 0 and standard deviation 1",
    }
    lines = [
        f"# {told.get('name', told['model'])}",
        "",
        f"One step of the model `{told['model']}` of the study `{told['study']}`: a scan line goes "
        "in, the probabilities of the tip's states come out.",
        "",
        "| | |",
        "|---|---|",
        f"| Classes | {', '.join(told['classes'])} |",
        f"| Scan | {told['lines']} lines × {told['pixels']} pixels, after resampling |",
        f"| Channel | {told['channel'] or 'unknown'}, in {told['unit'] or 'an unknown unit'} |",
        f"| Normalisation | {scale[told['normalisation']]} |",
        f"| Weights | {FORMS[form]}"
        + (f", {meta['parameters']:,} numbers" if "parameters" in meta else "")
        + " |",
        f"| Options | {', '.join(f'{k} {v}' for k, v in sorted(told['options'].items()))} |",
    ]
    if counts:
        trained = ", ".join(f"{n} {c}" for n, c in zip(told["classes"], counts, strict=True))
        lines.append(f"| Trained on | {trained} |")
    for key in ("weights", "store", "split"):
        lines.append(f"| SHA-256 of the {key} | `{told[f'{key}_sha256']}` |")
    lines += ["", "## Results", ""]
    if metrics is None:
        lines.append("None were given.")
    else:
        # On which scans they were taken, and how wide intervals are, only the file's maker knows.
        said = [f"From `{source}`."]
        if "seeds" in metrics and (seeds := metrics["seeds"].max()) > 1:
            said.append(f"Mean over runs: {seeds:g} seeds.")
        if form != "fp32" and "form" not in metrics:
            said.append("Of the float32 weights.")
        lines += [" ".join(said), ""]
        lines += ["| Reading | Metric | Value | Interval |", "|---|---|---|---|"]
        for row in metrics.to_dict("records"):
            after = f", after {row['lines']:g} lines" if row["reading"] == "lines" else ""
            low, high = row.get("low"), row.get("high")
            span = f"{low:.3f} to {high:.3f}" if pd.notna(low) and pd.notna(high) else ""
            lines.append(
                f"| {row['reading']}{after} | {row['metric']} | {row['value']:.3f} | {span} |"
            )
    lines += [
        "",
        "## Limits",
        "",
        "It knows the classes above, on the surface and instrument that it was trained on. It says "
        "one of them of anything that it is given; probabilities are not calibrated on other data.",
        "",
        "## File",
        "",
    ]
    return "\n".join(lines)
