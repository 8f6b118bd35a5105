"""The validator of RO-Crates, without network."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import requests
from requests.adapters import BaseAdapter
from rocrate_validator import models, services

WORKFLOW_RUN = "https://w3id.org/ro/terms/workflow-run"
PROFILE = "provenance-run-crate"


def contexts() -> dict[str, dict[str, Any]]:
    """Give the JSON-LD contexts that crates name.

    That of RO-Crate 1.1 is made of the one of 1.3, which comes with `rocrate`, with Bioschemas'
    addresses as they then were; of the workflow runs' the one term that crates use here.
    """
    text = (resources.files("rocrate") / "data" / "ro-crate.jsonld").read_text("utf-8")
    for then, now in {"": "terms/", "ComputationalWorkflow#": "properties/"}.items():
        text = text.replace(f"https://bioschemas.org/{now}", f"https://bioschemas.org/{then}")
    return {
        "https://w3id.org/ro/crate/1.1/context": json.loads(text),
        f"{WORKFLOW_RUN}/context": {"@context": {"sha256": f"{WORKFLOW_RUN}#sha256"}},
    }


class Shelf(BaseAdapter):
    """Answers requests for the contexts; there is nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.contexts = contexts()

    def send(self, request: requests.PreparedRequest, **_: Any) -> requests.Response:
        response = requests.Response()
        response.request, response.url = request, str(request.url)
        found = self.contexts.get(response.url)
        response.status_code = 404 if found is None else 200
        response._content = json.dumps(found).encode()
        response.headers["Content-Type"] = "application/ld+json"
        return response

    def close(self) -> None:
        pass


def issues(crate: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give what the validator says of a crate: whatever it must or should be and is not."""
    shelf = Shelf()
    monkeypatch.setattr(requests.Session, "get_adapter", lambda self, url: shelf)
    found = services.validate(
        services.ValidationSettings(
            rocrate_uri=str(crate),
            profile_identifier=PROFILE,
            requirement_severity=models.Severity.RECOMMENDED,
            no_cache=True,
        )
    )
    return [
        f"{issue.severity.name} {issue.check.identifier}: {issue.message}"
        for issue in found.get_issues()
    ]
