"""A trained run on disk: its weights and what is needed to use them.

`model.json` names the weights by their hash, so that files of two different trainings are never
taken for one. Nothing is unpickled.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from scanbench import STUDIES
from scanbench.errors import UserError
from scanbench.files import read_json, replacing, sha256_of, write_json

if TYPE_CHECKING:
    from scanbench.store import Store

SCHEMA_VERSION = 1
#: Units of heights: metres, and grey levels of an image that they became.
HEIGHTS = {"m", "level"}
WEIGHTS, META = "weights.safetensors", "model.json"
#: What `model.json` must hold for the model to be used, and the type of each.
REQUIRED: dict[str, type] = {
    "study": str,
    "model": str,
    "options": dict,
    "lines": int,
    "pixels": int,
    "scan_lines": int,
    "classes": list,
    "normalisation": str,
    "training": dict,
    "prior": list,
    "fold": int,
    "seed": int,
    "store_sha256": str,
    "split_sha256": str,
    "unit": str,
    "channel": str,
    "ingest": dict,
    "weights_sha256": str,
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """A trained model and the content of its `model.json`."""

    model: nn.Module
    meta: dict[str, Any]

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the model's outputs."""
        return self.meta["classes"]

    @property
    def quantity(self) -> str:
        """What the model was trained on, for messages: `channel 'Z' in 'm'`."""
        unit = repr(self.meta["unit"]) if self.meta["unit"] else "an unknown unit"
        return f"channel {self.meta['channel']!r} in {unit}"

    def takes(self, unit: str) -> bool:
        """Return whether the run may judge values in this unit; "" is an unknown one.

        Without normalisation the units must be equal. With one, which takes the scale away, an
        unknown unit on either side is believed, and metres and grey levels are both heights.
        """
        own = self.meta["unit"]
        if self.meta["normalisation"] == "none":
            return unit == own
        return "" in (unit, own) or unit == own or {unit, own} <= HEIGHTS


def build_model(
    study: str, name: str, options: Mapping[str, Any], *, lines: int, pixels: int, classes: int
) -> nn.Module:
    """Return a new model of a study with random weights.

    Raises
    ------
    UserError
        If the model or an option does not exist, or a value is not possible.
    """
    registry = importlib.import_module(f"scanbench.{study}.models")
    return registry.build(name, options, lines, pixels, classes)


def resolved_options(study: str, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of a model of a study, those not given at their defaults."""
    return importlib.import_module(f"scanbench.{study}.models").resolved_options(name, options)


def operations(model: nn.Module, lines: int, pixels: int) -> int:
    """Return the floating-point operations of a model's answers about one sample.

    Counted are matrix products, convolutions and attention, a multiplication and an addition as two
    operations, as PyTorch's counter does; what a model does to each number on its own is not.
    """
    sample = torch.zeros(1, lines, pixels), torch.tensor([lines])
    training = model.training
    model.eval()
    # The fused LSTM of oneDNN is one step to the counter; without it, its products are seen.
    with (
        torch.inference_mode(),
        torch.backends.mkldnn.flags(enabled=False, allow_tf32=None),
        FlopCounterMode(display=False) as counter,
    ):
        model(*sample)
    model.train(training)
    return counter.get_total_flops()


def save_run(folder: Path, weights: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write `weights.safetensors` and `model.json`; the latter last, as it names the former.

    Raises
    ------
    OSError
        If a file cannot be written, on a full disk for one.
    """
    contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
    with replacing(folder / WEIGHTS) as part:
        try:
            safetensors.torch.save_file(contiguous, part)
        except safetensors.SafetensorError as error:  # it hides the system's error in its text
            raise OSError(f"{folder / WEIGHTS}: cannot be written ({error})") from None
    known = {"schema_version": SCHEMA_VERSION, "weights_sha256": sha256_of(folder / WEIGHTS)}
    write_json(folder / META, {**meta, **known})


def load_run(folder: str | Path, *, withheld: bool = False) -> Run:
    """Return a trained model in evaluation mode, on the CPU, and what is known about it.

    Parameters
    ----------
    folder
        Of the run.
    withheld
        Whether the run may be one from whose training classes were withheld. It cannot name them,
        so what it says is no answer to the study's question: only who asks how strange a scan is to
        it may want it.

    Raises
    ------
    UserError
        If a file is missing, damaged, of another training, or does not fit the model's source; or
        if classes were withheld and that is not wanted.
    """
    folder = Path(folder)
    meta = _read_meta(folder / META)
    if meta.get("withheld") and not withheld:
        raise UserError(
            f"{folder / META}: {', '.join(meta['withheld'])} was withheld from its training, so it "
            "cannot name it: such a run serves an anomaly comparison only; name another run"
        )
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder / WEIGHTS}: no such file; train the run again")
    if sha256_of(folder / WEIGHTS) != meta["weights_sha256"]:
        raise UserError(
            f"{folder / WEIGHTS}: does not match {META} (sha256); the file is damaged or of "
            "another training: train the run again"
        )
    try:
        # First without memory for its weights: what stands in the file shall say how large it is.
        with torch.device("meta"):
            expected = _built(meta).state_dict()
        with safetensors.safe_open(folder / WEIGHTS, "pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        if found != {name: tuple(value.shape) for name, value in expected.items()}:
            raise RuntimeError("other names or shapes")
        model = _built(meta)
        model.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
    except UserError as error:
        raise UserError(f"{folder / META}: {error}; train the run again") from None
    except (RuntimeError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{folder / WEIGHTS}: does not fit model {meta['model']} ({reason}); its source "
            "has changed since: train the run again"
        ) from None
    return Run(model=model.eval(), meta=meta)


def _built(meta: Mapping[str, Any]) -> nn.Module:
    return build_model(
        meta["study"],
        meta["model"],
        meta["options"],
        lines=meta["lines"],
        pixels=meta["pixels"],
        classes=len(meta["classes"]),
    )


def check_trained_on(
    folder: str | Path, meta: Mapping[str, Any], data: Store, split: str | Path
) -> None:
    """Check that a run was trained with this store and split, so that its test part is unseen.

    Raises
    ------
    UserError
        Naming the file that is another.
    """
    for path, key, sha256 in (
        (data.path, "store_sha256", data.sha256),
        (split, "split_sha256", sha256_of(split)),
    ):
        if sha256 != meta[key]:
            raise UserError(
                f"{Path(folder) / META}: was trained with another file than {path} ({key}); give "
                "the one that it was trained with, or train again"
            )


def _read_meta(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; name the folder of a trained run")
    meta = read_json(path, "train the run again")
    if meta.get("schema_version") != SCHEMA_VERSION:
        raise UserError(f"{path}: schema_version is not {SCHEMA_VERSION}; train the run again")
    if meta.get("study") not in STUDIES:
        raise UserError(f"{path}: study is not one of {', '.join(STUDIES)}; train the run again")
    for key, kind in REQUIRED.items():
        if not isinstance(meta.get(key), kind):
            raise UserError(f"{path}: {key} is missing or no {kind.__name__}; train the run again")
    return meta


@dataclass(frozen=True)
class AnswerTimes:
    """When a model answers about a sample.

    Parameters
    ----------
    lines
        Lines seen at each of the T answers, rising.
    at_end
        Whether the only answer comes at the end of the sample, however few of its lines were
        measured. Any other model answers when it has seen the lines it needs.
    """

    lines: Sequence[int]
    at_end: bool

    @classmethod
    def of(cls, model: nn.Module, lines: int) -> AnswerTimes:
        """Ask a model for samples of `lines` lines."""
        answer_lines: list[int] = model.answer_lines()  # type: ignore[operator]
        at_end = bool(getattr(model, "answers_at_end", True))
        assert not at_end or answer_lines == [lines], (
            f"{type(model).__module__}: answers after {answer_lines} of {lines} lines; a model "
            "that does not answer once at the end must say `answers_at_end = False`"
        )
        return cls(answer_lines, at_end)

    def valid(self, n_lines_B: Tensor) -> Tensor:
        """Tell which answers are valid about samples of so many measured lines, bool [B, T]."""
        if self.at_end:
            return torch.ones(len(n_lines_B), 1, dtype=torch.bool, device=n_lines_B.device)
        return torch.tensor(self.lines, device=n_lines_B.device) <= n_lines_B[:, None]

    @property
    def fewest(self) -> int:
        """Measured lines that a sample must have for the model to give an answer."""
        return 1 if self.at_end else self.lines[0]


def by_whole_scan(model: nn.Module, normalisation: str) -> bool:
    """Tell whether a sample is normalised by the whole scan.

    A model that standardises its samples itself takes out what others had put in.
    """
    return normalisation == "scan" and not getattr(model, "standardises", False)


def looks_ahead(model: nn.Module, lines: int, normalisation: str, *, windowed: bool) -> bool:
    """Tell whether answers given while a scan runs depend on lines that are not measured yet."""
    early = windowed or not AnswerTimes.of(model, lines).at_end
    return early and by_whole_scan(model, normalisation)
