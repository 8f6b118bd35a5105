"""The models of the study: one file each, found by name, built from the config.

Importing this package imports no model and no torch; `build` imports the one it is asked for.
What a model's file must hold is told in `docs/formats.md`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scanbench.errors import UserError, did_you_mean
from scanbench.tipstate import catalogue
from scanbench.tipstate.catalogue import names

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build", "names", "resolved_options"]


def resolved_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of a model, those not given at their defaults.

    Raises
    ------
    UserError
        If the model or an option does not exist.
    """
    fields = catalogue.option_fields(name)
    for key in options:
        if key not in fields:
            hint = did_you_mean(key, fields) if fields else "this model has no options"
            raise UserError(f"options.{key}: {name} has no such option; {hint}")
    return {key: options.get(key, default) for key, (_, default) in fields.items()}


def build(
    name: str, options: Mapping[str, Any], lines: int, pixels: int, classes: int
) -> nn.Module:
    """Return a new model with random weights.

    Parameters
    ----------
    name
        As in the config, e.g. `cnn-scan`.
    options
        Changes to the defaults of the model's `Options`. Lists are taken for tuples.
    lines, pixels
        Shape of a sample.
    classes
        Number of classes.

    Raises
    ------
    UserError
        If the model or an option does not exist, or a value is not possible.
    """
    given = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in resolved_options(name, options).items()
    }
    module = importlib.import_module(f"{__name__}.{catalogue.source(name).stem}")
    try:
        return module.Model(module.Options(**given), lines=lines, pixels=pixels, classes=classes)
    except (TypeError, ValueError) as error:
        key, colon, why = str(error).partition(": ")
        where = f"options.{key}: {why}" if colon and key in given else f"options: {error}"
        raise UserError(f"{where} (model {name})") from error
