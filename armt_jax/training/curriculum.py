"""Where a run stands in its curriculum. Plain numbers that go into every checkpoint: with them, resuming is arithmetic."""

import dataclasses
from typing import Any

from armt_jax.settings import Stage

# Exact match saturates: among equals the lower validation loss wins. Less than one answer in ten thousand.
TIE = 1e-4


@dataclasses.dataclass(frozen=True)
class Standing:
    """After `step` optimizer steps in all.

    Attributes:
        stage: index of the current stage. stage_step: steps done in it.
        best, best_step: best validation score of the stage so far, above -1 (-1: none yet), and the step it was reached at.
        waited: validations since then. finished: the stage is over.
        due: the validation of this step was interrupted, and is to be done again.
    """

    step: int = 0
    stage: int = 0
    stage_step: int = 0
    best: float = -1.0
    best_step: int = -1
    waited: int = 0
    finished: bool = False
    due: bool = False

    def stepped(self, stage: Stage) -> "Standing":
        done = self.stage_step + 1 >= stage.steps
        return dataclasses.replace(self, step=self.step + 1, stage_step=self.stage_step + 1, finished=done)

    def validated(self, stage: Stage, exact_match: float | None, loss: float) -> "Standing":
        """After a validation. Without an exact match (of text) the loss alone counts."""
        score = -loss / (1.0 + loss) if exact_match is None else exact_match - TIE * loss / (1.0 + loss)
        if score > self.best:
            new = dataclasses.replace(self, best=score, best_step=self.step, waited=0)
        else:
            new = dataclasses.replace(self, waited=self.waited + 1)
        passed = stage.stop_at is not None and exact_match is not None and exact_match >= stage.stop_at
        patient = stage.patience is None or new.waited < stage.patience
        return dataclasses.replace(new, finished=self.finished or passed or not patient, due=False)

    def next_stage(self) -> "Standing":
        return Standing(step=self.step, stage=self.stage + 1)

    @property
    def rank(self) -> float | None:
        """For keeping the best checkpoint: a later stage beats an earlier one, then the score counts. None: this step is not the best."""
        return 2.0 * self.stage + self.best if self.best_step == self.step else None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
