"""Classification as a task of the training loop: its loss, and the figures of an epoch.

Shape suffixes: B batch, T answers, C classes, O outputs of the model (the classes first).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAUROC, MulticlassConfusionMatrix

from scanbench.augment import Augmentation, augment
from scanbench.distillation import Distillation, soft_loss
from scanbench.runs import AnswerTimes
from scanbench.samples import Batch
from scanbench.settings import Settings


class Classification(nn.Module):
    """Cross-entropy of a model's answers, and the figures at its last one.

    The loss of a sample is that of its last valid answer, or the mean over its valid answers. The
    loss of a batch is the mean over its samples, weighted by the weights of their classes.

    Parameters
    ----------
    times
        When the model answers.
    class_weights_C
        Weight of each class in the loss.
    settings
        `answers` and `label_smoothing` count.
    augmentation
        How training samples are changed.
    distillation
        How much the answers of a teacher count in the loss of batches that have them.
    """

    class_weights_C: Tensor

    def __init__(
        self,
        times: AnswerTimes,
        class_weights_C: np.ndarray,
        settings: Settings,
        augmentation: Augmentation,
        distillation: Distillation | None = None,
    ) -> None:
        super().__init__()
        self.times = times
        self.settings, self.augmentation = settings, augmentation
        self.distillation = distillation
        self.register_buffer("class_weights_C", torch.tensor(class_weights_C, dtype=torch.float32))
        # A NaN must show, not be left out; and validation is each process's own.
        self.train_loss = MeanMetric(nan_strategy="disable")
        self.val_loss = MeanMetric(nan_strategy="disable", sync_on_compute=False)
        self.train_accuracy = MeanMetric(nan_strategy="disable")
        classes = len(class_weights_C)
        self.confusion = MulticlassConfusionMatrix(
            classes, validate_args=False, sync_on_compute=False
        )
        self.auroc = MulticlassAUROC(
            classes, average="none", validate_args=False, sync_on_compute=False
        )

    def augment(self, batch: Batch, generator: Generator) -> Batch:
        """Return a training batch changed at random."""
        x_BLP = augment(batch.x_BLP, batch.n_lines_B, self.augmentation, generator)
        return batch._replace(x_BLP=x_BLP)

    def step(self, model: nn.Module, batch: Batch, stage: str) -> Tensor:
        """Return the loss of a batch, and note the figures."""
        logits_BTO = model(batch.x_BLP, batch.n_lines_B)
        valid_BT = self.times.valid(batch.n_lines_B)
        last_B = valid_BT.sum(1) - 1
        final_BO = logits_BTO[torch.arange(len(last_B), device=last_B.device), last_B]
        loss_BT = self._losses(logits_BTO, batch)
        if self.settings.answers == "last":
            loss_B = loss_BT[torch.arange(len(last_B), device=last_B.device), last_B]
        else:
            loss_B = loss_BT.where(valid_BT, 0.0).sum(1) / valid_BT.sum(1)
        weight_B = self.class_weights_C[batch.label_B]
        with torch.no_grad():
            loss = self.train_loss if stage == "train" else self.val_loss
            loss.update(loss_B, weight_B)
            if stage == "train":
                self.train_accuracy.update((final_BO.argmax(1) == batch.label_B).float())
            else:
                self.confusion.update(final_BO, batch.label_B)
                self.auroc.update(final_BO.softmax(1), batch.label_B)
        return (weight_B * loss_B).sum() / weight_B.sum()

    def _losses(self, logits_BTO: Tensor, batch: Batch) -> Tensor:
        """Return the unweighted loss of each answer, [B, T], also of those that are not valid."""
        loss_BT = F.cross_entropy(
            logits_BTO.transpose(1, 2),
            batch.label_B[:, None].expand(logits_BTO.shape[:2]),
            reduction="none",
            label_smoothing=self.settings.label_smoothing,
        )
        how = self.distillation
        if how is None or batch.teacher_BTC is None:
            return loss_BT
        soft_BT = soft_loss(logits_BTO, batch.teacher_BTC, how.temperature)
        return (1 - how.weight) * loss_BT + how.weight * soft_BT

    def figures(self, stage: str) -> dict[str, float]:
        """Return loss and accuracy and, of the validation, balanced accuracy and macro AUROC.

        Classes without a validation scan do not count in the last two.
        """
        loss = self.train_loss if stage == "train" else self.val_loss
        figures = {"loss": float(loss.compute())}
        loss.reset()
        if stage == "train":
            figures["accuracy"] = float(self.train_accuracy.compute())
            self.train_accuracy.reset()
            return figures
        confusion_CC = self.confusion.compute().double()
        self.confusion.reset()
        count_C, right_C = confusion_CC.sum(1), confusion_CC.diag()
        present_C = count_C > 0
        figures["accuracy"] = float(right_C.sum() / count_C.sum())
        figures["balanced_accuracy"] = float((right_C[present_C] / count_C[present_C]).mean())
        auroc_C = self.auroc.compute()
        # With one class only there is nothing to rank.
        figures["auroc"] = float(auroc_C[present_C].mean()) if present_C.sum() > 1 else math.nan
        self.auroc.reset()
        return figures
