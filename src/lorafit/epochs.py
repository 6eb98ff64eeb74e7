"""What happens at the end of an epoch: the best weights so far are kept, and the guards look."""

import json
import math
import shutil
from pathlib import Path
from warnings import warn

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from lorafit import adapter
from lorafit.errors import LorafitWarning
from lorafit.files import storing, write_text

SMALLEST_MOVE = 1e-6  # a weight that learns moves by about the learning rate at every step


class Best:
    """The best weights so far, on disk: by validation accuracy, then by lower loss."""

    def __init__(self, folder: Path, *, keep: bool) -> None:
        self._folder = folder
        self._facts: dict[str, float] = {}
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        elif (folder / "best.json").is_file():
            self._facts = json.loads((folder / "best.json").read_text(encoding="utf-8"))

    @property
    def accuracy(self) -> float:
        """Validation accuracy of the best epoch."""
        return self._facts["accuracy"]

    @property
    def epoch(self) -> int:
        """Number of the best epoch, from 1."""
        return int(self._facts["epoch"])

    def offer(self, model: torch.nn.Module, accuracy: float, loss: float, epoch: int) -> None:
        """Keep these weights if they are better than what is kept."""
        if self._facts and (accuracy, -loss) <= (self._facts["accuracy"], -self._facts["loss"]):
            return
        with storing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            save_file(
                {k: v.contiguous().cpu() for k, v in adapter.trained_weights(model).items()},
                self._weights(epoch),
            )
            facts = {"accuracy": accuracy, "loss": loss, "epoch": epoch}
            write_text(self._folder / "best.json", json.dumps(facts))
            for other in self._folder.glob("epoch-*"):
                if other != self._weights(epoch):
                    other.unlink()
        self._facts = facts

    def restore(self, model: torch.nn.Module) -> None:
        """Put the best weights back into the model."""
        model.load_state_dict(load_file(self._weights(self.epoch)), strict=False)

    def _weights(self, epoch: int) -> Path:
        return self._folder / f"epoch-{epoch}.safetensors"


class Guard:
    """Speaks up at the end of an epoch when training does not do what training should."""

    def __init__(self, label_ids: np.ndarray, start: dict[str, torch.Tensor]) -> None:
        texts = len(label_ids)
        chance = np.bincount(label_ids).max() / texts
        # Two standard errors above always guessing the commonest class: less is within luck.
        self._chance = chance + 2 * math.sqrt(chance * (1 - chance) / texts)
        self._start = start

    def look(self, model: torch.nn.Module, accuracy: float, epoch: int) -> None:
        """Warn if accuracy is still at chance, or if no trainable weight has moved."""
        now = adapter.trained_weights(model)
        moved = max(float((now[name] - self._start[name].to(now[name])).abs().max()) for name in now)
        if moved < SMALLEST_MOVE:
            warn(
                f"After epoch {epoch} no trainable weight has moved. Is training.learning_rate too small?",
                LorafitWarning,
                stacklevel=2,
            )
        elif accuracy <= self._chance:
            warn(
                f"After epoch {epoch} validation accuracy is {accuracy:.3f}, no better than guessing the commonest "
                "label. LoRA often needs a higher training.learning_rate (about 1e-3); check the labels too.",
                LorafitWarning,
                stacklevel=2,
            )
