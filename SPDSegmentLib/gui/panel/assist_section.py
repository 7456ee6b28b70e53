"""What the model offers: the next click as a ghost point, and learning from corrections; nothing happens by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slicer.i18n import tr as _

from SPDSegmentLib.errors import Cancelled, SPDError
from SPDSegmentLib.geometry.slices import slice_ranges
from SPDSegmentLib.worker.client import Request
from SPDSegmentLib.worker.messages import Answer, Learned, Progress, Suggested

from ..run.segmenter import Segmenter
from ..run.task import Task
from ..scene.centerlines import GhostClick, addClick
from ..scene.volumes import jumpTo
from ..scene.write_record import Position, WriteRecord
from .run_section import RunSection, progressText


class AssistSection:
    """Buttons among the clicks (suggest, accept, dismiss) and below the editor (learn, apply, forget)."""

    def __init__(self, ui: Any, segmenter: Segmenter, task: Callable[[], Task | None], run: RunSection) -> None:
        self.ui = ui
        self.ghost = GhostClick()
        self._segmenter = segmenter
        self._task = task
        self._run = run
        self._request: Request | None = None
        self._lesson: Learned | None = None
        self._record = WriteRecord()
        self._dismissed: dict[tuple[str, str], list[Position]] = {}
        for button, action in (
            (ui.suggestButton, self._suggest),
            (ui.acceptButton, self._accept),
            (ui.dismissButton, self._dismiss),
            (ui.learnButton, self._learn),
            (ui.applyLearnedButton, lambda: self._apply()),
            (ui.forgetLearnedButton, self._forget),
        ):
            button.connect("clicked(bool)", lambda checked, action=action: action())

    def show(self, record: WriteRecord) -> None:
        """Show what can be asked for now; what was offered for another state is withdrawn."""
        if record.written != self._record.written or record.owned != self._record.owned:
            self.withdraw()
        self._record = record.copy()
        self._refresh()

    def withdraw(self) -> None:
        """Take back what was offered, and ask no more."""
        request, self._request, self._lesson = self._request, None, None
        if request is not None and not request.finished:
            self._segmenter.workerHost.client.cancel(request, urgent=False)
        self.ghost.remove()
        self.ui.suggestLabel.text = ""
        self.ui.learnLabel.text = ""

    def _refresh(self) -> None:
        ui, record = self.ui, self._record
        isIdle = self._request is None and not self._run.isRunning
        hasResult = bool(record.model) and self._task() is not None
        ui.suggestButton.enabled = hasResult and isIdle
        for button in (ui.acceptButton, ui.dismissButton):
            button.enabled = self.ghost.positionRas is not None
        isLearning = self._request is not None and self.ghost.node is None and bool(ui.learnLabel.text)
        ui.learnButton.text = _("Cancel") if isLearning else _("Learn from corrections")
        ui.learnButton.enabled = isLearning or (hasResult and isIdle and len(record.owned) > 1)
        ui.applyLearnedButton.enabled = isIdle and self._lesson is not None and bool(self._lesson.name)
        ui.forgetLearnedButton.enabled = isIdle and bool(record.learned)
        if record.learned and not ui.learnLabel.text:
            ui.learnLabel.text = _("The masks are those of the model as it was adapted to your corrections.")

    def _suggest(self) -> None:
        task = self._task()
        if task is None:
            return
        self.withdraw()
        dismissed = self._dismissed.get(task.key, [])
        try:
            self._request = self._segmenter.suggest(task, dismissed, lambda answer: self._offer(task, answer))
        except SPDError as error:
            self.ui.suggestLabel.text = error.sentence
        else:
            self.ui.suggestLabel.text = (
                _("Looking where the model is unsure...")
                if self._request is not None
                else _("The background process does not know this result. Press Segment first.")
            )
        self._refresh()

    def _offer(self, task: Task, answer: Answer | SPDError) -> None:
        self._request = None
        text = ""
        if isinstance(answer, Suggested) and len(answer.slices):
            r, a, s = answer.places_ras[0].tolist()
            self.ghost.show((r, a, s), _("Suggested click"))
            jumpTo((r, a, s))
            why = (
                _("Slice {number} is empty, {distance} mm from the nearest click. Does the structure pass there?")
                if answer.measures[0, 0] < 0
                else _("Slice {number}: the model's masks differ in {share} %, {distance} mm from the nearest click.")
            )
            how = _("Drag the point on to the structure if it lies beside it; accept it, or dismiss it.")
            text = f"{why} {how}".format(
                number=task.view.snapshot().stack.slice_number(answer.slices[0]),
                share=round(100 * float(answer.measures[0, 0])),
                distance=round(float(answer.measures[0, 1])),
            )
        elif isinstance(answer, Suggested):
            text = _(
                "No click is suggested: no slice is missing, and the model agrees with itself wherever it has looked."
            )
        elif isinstance(answer, SPDError) and not isinstance(answer, Cancelled):
            text = answer.sentence
        self.ui.suggestLabel.text = text
        self._refresh()

    def _accept(self) -> None:
        task, place = self._task(), self.ghost.positionRas
        self.withdraw()
        if task is not None and place is not None:
            addClick(task.centerlineNodes[0], place)
        self._refresh()

    def _dismiss(self) -> None:
        task, place = self._task(), self.ghost.positionRas
        if task is not None and place is not None:
            self._dismissed.setdefault(task.key, []).append(place)
        self.withdraw()
        self._refresh()

    def _learn(self) -> None:
        if self._request is not None:
            self.withdraw()
            self.ui.learnLabel.text = _("Cancelled; nothing was learned.")
            self._refresh()
            return
        task = self._task()
        if task is None:
            return
        self.withdraw()
        self.ui.learnLabel.text = _("Learning...")
        try:
            self._request = self._segmenter.learn(task, lambda answer: self._taught(task, answer), self._onProgress)
        except SPDError as error:
            self.ui.learnLabel.text = error.sentence
        self._refresh()

    def _onProgress(self, progress: Progress) -> None:
        self.ui.learnLabel.text = progressText(progress)

    def _taught(self, task: Task, answer: Answer | SPDError) -> None:
        self._request = None
        if isinstance(answer, Learned):
            self._lesson = answer
            number = task.view.snapshot().stack.slice_number
            changed = slice_ranges(number(int(t)) for t in answer.changed_table[:, 0])
            parts = [answer.sentence]
            if answer.name:
                parts += [_("Slices: {ranges}.").format(ranges=changed)] if changed else []
                parts += [_("Press Apply to take it over; nothing has changed yet.")]
            self.ui.learnLabel.text = " ".join(parts)
        elif isinstance(answer, SPDError) and not isinstance(answer, Cancelled):
            self.ui.learnLabel.text = answer.sentence
        self._refresh()

    def _apply(self) -> None:
        lesson = self._lesson
        if lesson is not None and lesson.name:
            self._run.start(learned=lesson.name)

    def _forget(self) -> None:
        self.withdraw()
        self._run.start(learned="")
