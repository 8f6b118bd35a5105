"""Stopping rules on file: from the evaluation that chose them to the monitor that keeps them.

`policy.json` stands beside the tables of a comparison (docs/formats.md). It holds, for each
experiment and each wanted share of wrong stops, what came of the rules on scans that had no say in
them, and the rule of each run: the one that was chosen without the scans that the run was tried on,
or with a single fold, on these very scans.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from scanbench.errors import UserError, did_you_mean
from scanbench.files import read_json
from scanbench.stopping import FIGURES, Tried

SCHEMA_VERSION = 2
_NAMES = {"type": "array", "items": {"type": "string"}}
_COUNT = {"type": "integer", "minimum": 0}


def _needs(**properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of an object that has these keys, perhaps among others."""
    return {"type": "object", "required": sorted(properties), "properties": properties}


#: What a monitor reads of a policy file.
_CHECK = Draft202012Validator(
    _needs(
        classes=_NAMES,
        first_line=_COUNT,
        store_sha256={"type": "string"},
        split_sha256={"type": "string"},
        weights={"type": "object", "additionalProperties": _NAMES},
        policies={
            "type": "array",
            "items": _needs(
                experiment={"type": "string"},
                limit={"type": "number"},
                rules={
                    "type": "array",
                    "items": _needs(
                        fold=_COUNT,
                        seed=_COUNT,
                        threshold={"type": ["number", "null"], "minimum": 0, "maximum": 1},
                        patience={"type": "integer", "minimum": 1},
                    ),
                },
            ),
        },
    )
)


def policy_document(
    *,
    classes: Sequence[str],
    first_line: int,
    store_sha256: str,
    split_sha256: str,
    weights: Mapping[str, Sequence[str]],
    policies: Sequence[Mapping[str, Any]],
    names: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the content of `policy.json`.

    Parameters
    ----------
    classes
        For which a scan is stopped.
    first_line
        Before which no rule stops a scan.
    store_sha256, split_sha256
        What the predictions are of.
    weights
        Experiment → SHA-256 of the weights that each of its tables of predictions is of.
    policies
        From `policies`.
    names
        Of the comparison, its data set and its split, where they have any.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        **names,
        "classes": list(classes),
        "first_line": first_line,
        "store_sha256": store_sha256,
        "split_sha256": split_sha256,
        "weights": {name: sorted(hashes) for name, hashes in weights.items()},
        "policies": list(policies),
    }


def policies(
    experiment: str,
    tried: Mapping[int, Tried | None],
    table: pd.DataFrame,
) -> list[dict[str, Any]]:
    """Return the policies of one experiment, one for each limit, as plain builtins.

    Parameters
    ----------
    experiment
        Its name.
    tried
        Seed of training → the rules that were tried.
    table
        `stopping.limits_table` of them.
    """
    result = []
    for g, limit in enumerate(dict.fromkeys(table["limit"].tolist())):
        figures = table[table["limit"] == limit].set_index("figure")
        rules = [
            {
                "fold": fold,
                "seed": seed,
                # No rule keeps so small a limit: such a one never stops a scan.
                "threshold": rules[g].threshold if rules[g].threshold <= 1 else None,
                "patience": rules[g].patience,
            }
            for seed, own in sorted(tried.items())
            if own is not None
            for fold, rules in sorted(own.rules.items())
        ]
        result.append(
            {
                "experiment": experiment,
                "limit": limit,
                "expected": {
                    name: {
                        key: None if pd.isna(figures.loc[name, key]) else figures.loc[name, key]
                        for key in ("value", "low", "high")
                    }
                    for name in FIGURES
                },
                "rules": rules,
            }
        )
    return result


def split_limit(text: str) -> tuple[Path, float | None]:
    """Return file and limit of `FILE[:limit]`.

    Raises
    ------
    UserError
        If what stands behind the name of a file is no number.
    """
    name, colon, tail = text.rpartition(":")
    try:
        return (Path(name), float(tail)) if colon else (Path(text), None)
    except ValueError:
        if Path(name).is_file() and not Path(text).exists():
            raise UserError(f"{name}: {tail!r} is no limit; give a share such as 0.05") from None
        return Path(text), None


def monitor_spec(
    path: Path, limit: float | None, run: Path, meta: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the options of a monitor that keeps a run's rule.

    Parameters
    ----------
    path
        `policy.json`.
    limit
        Share of wrong stops that the rule was chosen for; None: the smallest in the file.
    run, meta
        Folder of the run, and its `model.json`.

    Returns
    -------
    dict
        `stop`, `threshold`, `patience`, `first_line`, as in `MonitorOptions`.

    Raises
    ------
    UserError
        If the file is damaged, knows nothing of the run, or was made with other weights than
        this run's, so that its thresholds mean nothing for it.
    """
    found = read_policy(path)
    own = [p for p in found["policies"] if p["experiment"] == meta["name"]]
    if not own:
        known = sorted({p["experiment"] for p in found["policies"]})
        raise UserError(
            f"{path}: holds no policy for {meta['name']!r}; {did_you_mean(meta['name'], known)}"
            if known
            else f"{path}: holds no policy: no experiment answers before the end of a scan"
        )
    for key in ("store_sha256", "split_sha256"):
        if found[key] != meta[key]:
            raise UserError(
                f"{path}: was made on another data set or division of it than {run} ({key}); give "
                "the policy.json of a comparison with this run"
            )
    if meta["weights_sha256"] not in found["weights"].get(meta["name"], ()):
        raise UserError(
            f"{path}: was made with other weights than those of {run}; predict and evaluate again"
        )
    limits = [p["limit"] for p in own]
    wanted = min(limits) if limit is None else limit
    if wanted not in limits:
        known_limits = ", ".join(f"{value:g}" for value in limits)
        raise UserError(f"{path}:{wanted:g}: no such limit; there are {known_limits}")
    policy = own[limits.index(wanted)]
    mine = [r for r in policy["rules"] if (r["fold"], r["seed"]) == (meta["fold"], meta["seed"])]
    if not mine:
        raise UserError(
            f"{path}: holds no rule for fold {meta['fold']}, seed {meta['seed']} of "
            f"{meta['name']!r}; give a run of this comparison"
        )
    if mine[0]["threshold"] is None:
        raise UserError(
            f"{path}:{wanted:g}: no rule of {meta['name']!r} stops so few good scans; take a "
            "larger limit"
        )
    return _options(found, mine[0])


def _options(document: Mapping[str, Any], rule: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "stop": document["classes"],
        "threshold": rule["threshold"],
        "patience": rule["patience"],
        "first_line": document["first_line"],
    }


def strictest(
    document: Mapping[str, Any], experiment: str, fold: int, seed: int
) -> tuple[float, dict[str, Any]] | None:
    """Return the smallest limit that a run has a rule for, and the options of that rule.

    Parameters
    ----------
    document
        From `read_policy`.
    experiment, fold, seed
        The run.
    """
    found = [
        (float(policy["limit"]), _options(document, rule))
        for policy in document["policies"]
        for rule in policy["rules"]
        if (policy["experiment"], rule["fold"], rule["seed"]) == (experiment, fold, seed)
        and rule["threshold"] is not None
    ]
    return min(found, key=lambda own: own[0], default=None)


def read_policy(path: Path) -> dict[str, Any]:
    """Read a `policy.json`.

    Raises
    ------
    UserError
        If it is none, or of another version.
    """
    document = read_json(path, "give a policy.json")
    if document.get("schema_version") != SCHEMA_VERSION:
        raise UserError(f"{path}: is no policy of schema_version {SCHEMA_VERSION}; evaluate again")
    if error := best_match(_CHECK.iter_errors(document)):
        said = " ".join(f"{error.json_path}: {error.message}".split())
        raise UserError(f"{path}: is no policy ({said}); evaluate again")
    return document
