"""Checkpoints that a kill or a damaged disk cannot spoil unseen."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from scanbench.errors import UserError, first_line
from scanbench.files import replacing


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that are written whole or not at all, in the file system where they stay.

    A checkpoint begins with its own SHA-256, so that a damaged one is not trained on with.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write a checkpoint; an `OSError` names the file."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        content = buffer.getbuffer()
        try:
            with replacing(Path(path)) as part, part.open("wb") as file:
                file.write(hashlib.sha256(content).hexdigest().encode())
                file.write(content)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = "cpu", weights_only: Any = True
    ) -> dict[str, Any]:
        """Read a checkpoint; nothing is ever unpickled.

        Raises
        ------
        UserError
            If it is not what was written.
        """
        content = Path(path).read_bytes()
        told, content = content[:64], content[64:]
        if hashlib.sha256(content).hexdigest().encode() != told:
            raise UserError(
                f"{path}: does not match its own SHA-256: the checkpoint is damaged; remove it, "
                "and the training begins anew"
            )
        try:
            checkpoint: dict[str, Any] = torch.load(
                io.BytesIO(content), map_location=map_location, weights_only=True
            )
        except Exception as error:  # of as many kinds as there are things that a file can hold
            raise UserError(
                f"{path}: is no checkpoint ({first_line(error)}); remove it, and the training "
                "begins anew"
            ) from None
        return checkpoint
