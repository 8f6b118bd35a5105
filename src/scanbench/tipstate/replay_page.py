"""The replay page: scans that a monitor watched, played again line by line in one HTML file.

Everything stands in the page: the pixels as 8-bit images, the answers as JSON. Its only script is
named by hash in its policy, so nothing else can run, and nothing can be asked for.

Shape suffixes: L lines, P pixels of a line, C classes.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from scanbench import pages
from scanbench.plotting import CLASS_COLOURS
from scanbench.policy import strictest
from scanbench.render import Material
from scanbench.runs import WEIGHTS, load_run
from scanbench.split_file import LEAKY
from scanbench.store import FloatArray, Normalisation
from scanbench.streaming import Event, Judge, MonitorOptions
from scanbench.tipstate.attention import running_attention
from scanbench.tipstate.figures import (
    example_rows,
    flattened,
    line_answering,
    line_answers,
    listed,
    picture,
)
from scanbench.tipstate.tip_change import step_scores

__all__ = ["POLICY", "Replay", "image_of", "material_page", "of_material", "page", "policy_text"]

#: Lines and pixels of a scan that the page holds; of larger ones, every second, third, ….
LARGEST_IMAGE = 1024
Facts = Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Replay:
    """A scan, and what a monitor said while it ran. Lines are counted from 1, as in events.

    Attributes
    ----------
    name, summary
        For people: which scan, and what became of it in a few words.
    by
        Whose answers they are.
    about
        What else is known, term by term.
    classes
        Names, in the order of colours.
    x_LP
        Heights of the lines that came, NaN where missing.
    planned_lines
        Of the whole scan.
    aspect
        Height over width of the whole scan.
    upward
        The lines go up on the instrument's screen.
    answers
        What events tell of each answer (`streaming.Judge`), with `line`: the line of this scan
        after which it came. With `attention`, the weight of each of the run's lines seen.
    faults
        `kind`, `message` and the `line` after which it was said.
    faulty
        Number and kind of the fault of each line that has one.
    run_lines
        Lines of a whole scan as the run sees it.
    step_L
        How unusual the step to each line that came is (`change.Steps`); None where that is unknown.
    change_line
        After this line the tip is known to have changed.
    """

    name: str
    summary: str
    by: str
    about: Facts
    classes: Sequence[str]
    x_LP: NDArray[Any]
    planned_lines: int
    aspect: float
    upward: bool
    answers: Sequence[Event]
    faults: Sequence[Event] = ()
    faulty: Sequence[tuple[int, str]] = ()
    run_lines: int
    step_L: Sequence[float | None]
    change_line: int | None = None


def image_of(replay: Replay) -> Image.Image:
    """Return the planned lines of a scan in grey, 0 where nothing was measured.

    As in the figures, the median of each line is subtracted, and 1 to 255 span the middle 98 % of
    the heights. Row 0 is the upper end of the instrument's screen.
    """
    grey_LP = np.zeros((replay.planned_lines, replay.x_LP.shape[1]), np.uint8)
    if np.isfinite(replay.x_LP).any():
        flat_LP, low, high = flattened(replay.x_LP.astype(np.float64))
        level_LP = 1 + 254 * np.clip((flat_LP - low) / (high - low), 0, 1)
        grey_LP[: len(level_LP)] = np.nan_to_num(np.round(level_LP))
    step_L, step_P = (math.ceil(size / LARGEST_IMAGE) for size in grey_LP.shape)
    grey_LP = grey_LP[::step_L, ::step_P]
    return Image.fromarray(grey_LP[::-1] if replay.upward else grey_LP)


def page(
    replays: Sequence[Replay], *, title: str, kind: str, facts: Facts, provenance: Facts = ()
) -> str:
    """Return a page on which scans are played line by line.

    Parameters
    ----------
    replays
        At least one.
    title
        Heading.
    kind
        Shown beside it: whether the data are measured or simulated; empty if unknown.
    facts
        What holds for all scans, term by term: source and licence among it.
    provenance
        How the page was made, term by term.

    Returns
    -------
    str
        A whole HTML document, the same for the same arguments.
    """
    script = pages.source("replay.js")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return pages.template("replay.html.j2").render(
        title=title,
        kind=kind,
        facts=facts,
        provenance=provenance,
        data={"colours": list(CLASS_COLOURS), "scans": [_payload(replay) for replay in replays]},
        script=Markup(script),
        style=Markup(pages.source("replay.css")),
        digest=digest,
    )


def _payload(replay: Replay) -> dict[str, Any]:
    buffer = io.BytesIO()
    image_of(replay).save(buffer, "PNG", optimize=True, transparency=0)
    keys = ("line", "uncertainty", "change", "advice")
    answers = []
    for answer in replay.answers:
        told = {key: answer[key] for key in keys}
        told["p"] = [answer["p"][name] for name in replay.classes]
        if answer.get("attention"):
            told["attention"] = answer["attention"]
        answers.append(told)
    return {
        "name": replay.name,
        "summary": replay.summary,
        "about": [("Answers of", replay.by), *replay.about],
        "classes": list(replay.classes),
        "image": "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"),
        "aspect": round(replay.aspect, 4),
        "upward": replay.upward,
        "planned": replay.planned_lines,
        "measured": len(replay.x_LP),
        "runLines": replay.run_lines,
        "changeLine": replay.change_line,
        "answers": answers,
        "steps": list(replay.step_L),
        "faults": [{key: fault[key] for key in ("line", "message")} for fault in replay.faults],
        "faulty": list(replay.faulty),
    }


def policy_text(policy: Mapping[str, Any]) -> str:
    """Say the keys of `MonitorOptions` in a sentence."""
    calls = [
        f"{what} for {', '.join(policy[key])}"
        for key, what in (("stop", "stop"), ("recondition", "recondition"))
        if policy[key]
    ]
    if not calls:
        return "none: no class calls for anything"
    answers = policy["patience"]
    in_a_row = "one answer" if answers == 1 else f"each of {answers} answers in a row"
    return (
        f"{'; '.join(calls)}: from a probability of {policy['threshold']:g} in {in_a_row}, from "
        f"line {policy['first_line']} of the run on"
    )


# ---------------------------------------------------------------------------- for the render stage


#: What `of_material` reads beside the files of the figure `examples`.
POLICY = "scores/policy.json"


def of_material(material: Material) -> tuple[list[Replay], list[str]]:
    """Return the scans of the figure `examples`, as one run saw them that never trained on them.

    The run is that of the first seed, of the fold whose test part holds the scan; its answers are
    those in its table of predictions, judged as a monitor with the policy of this run does. Where
    the model has attention over the lines of a running scan, its weights tell that.

    Returns
    -------
    replays : list of Replay
        The scans.
    files : list of str
        Names of the files read beside those of the figure, as `render` names its inputs.
    """
    store, classes = material.store, list(material.classes)
    experiment = line_answering(material)
    every = material.predictions(experiment)
    of_seed = every[every["seed"] == min(material.spec["seeds"])]
    folders = {folder.name: folder for folder in material.runs[experiment]}
    attending = lru_cache(maxsize=None)(_attending)
    replays, files = [], [POLICY]
    for row in example_rows(material, experiment):
        scan_id = str(row["scan_id"])
        run = of_seed[of_seed["scan_id"] == scan_id].iloc[0]
        k = int(store.index_of([scan_id])[0])
        shown, known = picture(store, material.manifest, k), listed(material.manifest, scan_id)
        options, chosen_for = _options(material, experiment, int(run["fold"]), int(run["seed"]))
        judge = Judge(options, classes)
        table = line_answers(of_seed, scan_id, classes)
        folder = folders[f"fold{run['fold']}-seed{run['seed']}"]
        answers = [
            {**judge.judged(p_C, int(seen)), "line": int(seen)}
            for seen, p_C in zip(table.index, table.to_numpy(np.float64), strict=True)
        ]
        if found := attending(folder):
            normalisation, attention = found
            files.append(f"{experiment}/{folder.name}/{WEIGHTS}")
            x_LP = store.read([k], normalisation)[0]
            for answer in answers:
                answer["attention"] = attention(x_LP[: answer["line"]])
        p = answers[-1]["p"]
        last = max(p, key=p.__getitem__)
        verdict = "right" if last == row["label"] else f"taken for {last}"
        change = int(store.change_line[k])
        planned, pixels = int(known["planned_lines"]), int(known["pixels"])
        size = f"{store.lines} lines of {store.pixels} pixels"
        if (planned, pixels) != (store.lines, store.pixels):
            size += f", resampled from {planned} of {pixels}"
        replays.append(
            Replay(
                name=scan_id,
                summary=f"{row['label']}: {verdict}",
                by=f"{experiment}, fold{run['fold']}-seed{run['seed']}",
                about=[
                    ("Label", str(row["label"])),
                    ("Last answer", f"{last} ({p[last]:.3f})"),
                    ("Session", str(store.group[k])),
                    ("Policy", f"{policy_text(asdict(options))} ({chosen_for})"),
                    ("Size", size),
                ],
                classes=classes,
                x_LP=shown.x_LP,
                planned_lines=store.lines,
                aspect=shown.aspect * store.lines / len(shown.x_LP),
                upward=known["slow_direction"] == "up",
                answers=answers,
                run_lines=store.lines,
                step_L=_steps(shown.x_LP),
                change_line=change if change >= 0 else None,
            )
        )
    return replays, sorted(set(files))


def _steps(x_LP: FloatArray) -> list[float | None]:
    """Return how unusual the step to each line is, None before the first that can be judged."""
    scores = step_scores(x_LP[None])[0].tolist()
    return [score if math.isfinite(score) else None for score in scores]


def _attending(folder: Path) -> tuple[Normalisation, Callable[[FloatArray], list[float]]] | None:
    """Return how a run is shown scans, and what tells how an answer draws on the lines so far."""
    if not (folder / WEIGHTS).is_file():  # an ensemble has no weights of its own
        return None
    run = load_run(folder)
    weights = running_attention(run)
    return None if weights is None else (run.meta["normalisation"], weights)


def _options(
    material: Material, experiment: str, fold: int, seed: int
) -> tuple[MonitorOptions, str]:
    """Return how a monitor judges a run's answers, and where that comes from.

    That is the policy of the smallest share of wrong stops that one could be chosen for; where
    there is none, the defaults for the classes that are to be stopped.
    """
    found = strictest(material.policy, experiment, fold, seed)
    if found is None:
        return MonitorOptions.of({"stop": material.policy["classes"]}, material.classes), "default"
    limit, options = found
    return MonitorOptions.of(options, material.classes), f"chosen for {limit:.0%} wrong stops"


def material_page(
    material: Material,
    replays: Sequence[Replay],
    inputs: Mapping[str, str],
    record: Mapping[str, Any],
) -> str:
    """Return a comparison's replay page.

    Parameters
    ----------
    material
        What is known of the comparison.
    replays
        From `of_material`.
    inputs
        The files they were made from, by name, with their SHA-256.
    record
        Provenance of the render stage (`scanbench.provenance.record`). Only what is the same
        whenever the inputs are goes into the page.
    """
    spec = material.spec
    split = f"{spec['split']} ({spec['scheme']})"
    if spec["scheme"] in LEAKY:
        split += ": leaky, says nothing about groups never seen"
    commit = record["commit"] or "not run from a git checkout"
    return page(
        replays,
        title=f"Replay: {spec['title']}",
        kind="Simulated data" if spec["simulated"] else "Measured data",
        facts=[
            ("Data set", spec["dataset_title"]),
            ("Source and licence", spec["attribution"] or "not stated in the configuration"),
            ("Split", split),
            ("Scans", "the most confident right and wrong answer for each class, seeds averaged; "
             "shown is what the first seed's run, which was never trained on the scan, said"),
        ],
        provenance=[
            ("Command", record["command"]),
            ("Commit", commit + (" with uncommitted changes" if record["dirty"] else "")),
            *sorted(inputs.items()),
        ],
    )  # fmt: skip
