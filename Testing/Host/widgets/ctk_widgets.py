"""Behavior of the ctk widgets that modules use most."""

from __future__ import annotations

import os
from typing import Any

from ..runtime import qt
from .behavior import Behavior

_HEADER_HEIGHT = 24
_NO_LIMIT = 16777215
_SLIDER_STEPS = 1000


class ctkCollapsibleButton(Behavior):
    """A header that folds and unfolds its contents."""

    _defaults_ = {
        "collapsedHeight": 14,
        "buttonTextAlignment": 129,
        "indicatorAlignment": 129,
        "contentsLineWidth": 1,
    }

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self.setCheckable(True)
        self.setChecked(True)
        self.setContentsMargins(4, _HEADER_HEIGHT + 2, 4, 4)
        policy = qt.QSizePolicy.Policy
        self.setSizePolicy(policy.Preferred, policy.Minimum)
        self.toggled.connect(self._follow_check)

    def _follow_check(self, checked: bool) -> None:
        if self.collapsed == checked:
            self.setProperty("collapsed", not checked)

    def _changed_collapsed(self, collapsed: bool) -> None:
        was_open = self.isChecked()
        self.setChecked(not collapsed)
        for child in self.children():
            if isinstance(child, qt.QWidget):
                child.setVisible(not collapsed)
        self.setMaximumHeight(_HEADER_HEIGHT if collapsed else _NO_LIMIT)
        self.updateGeometry()
        if was_open == collapsed or self._folded() != collapsed:
            self.__dict__["_folded_"] = collapsed
            self.contentsCollapsed.emit(collapsed)

    def _folded(self) -> bool:
        return self.__dict__.get("_folded_", False)

    def childEvent(self, event: qt.QChildEvent) -> None:
        """Hide a child that is added while the contents are folded."""
        if event.added() and event.child().isWidgetType() and self.collapsed:
            event.child().hide()

    def hitButton(self, position: qt.QPoint) -> bool:
        """Only the header is the button."""
        return position.y() < _HEADER_HEIGHT

    def sizeHint(self) -> qt.QSize:
        """Height of the header, or of header and contents."""
        layout = self.layout()
        header = qt.QSize(120, _HEADER_HEIGHT)
        if layout is None or self.collapsed:
            return header
        return layout.totalSizeHint().expandedTo(header)

    def minimumSizeHint(self) -> qt.QSize:
        """The contents need their minimum when they are shown."""
        layout = self.layout()
        header = qt.QSize(120, _HEADER_HEIGHT)
        return header if layout is None or self.collapsed else layout.totalMinimumSize().expandedTo(header)

    def paintEvent(self, event: qt.QPaintEvent) -> None:
        """Draw the header with its arrow."""
        painter = qt.QPainter(self)
        option = qt.QStyleOptionButton()
        option.initFrom(self)
        style = qt.QStyle
        option.rect = qt.QRect(0, 0, self.width, _HEADER_HEIGHT)
        self.style().drawControl(style.ControlElement.CE_PushButtonBevel, option, painter, self)
        text = qt.QRect(24, 0, self.width - 24, _HEADER_HEIGHT)
        painter.drawText(text, int(qt.Qt.AlignmentFlag.AlignVCenter), self.text.replace("&&", "&"))
        option.rect = qt.QRect(6, 7, 10, 10)
        arrow = style.PrimitiveElement
        self.style().drawPrimitive(
            arrow.PE_IndicatorArrowRight if self.collapsed else arrow.PE_IndicatorArrowDown,
            option,
            painter,
            self,
        )
        painter.end()


class ctkCollapsibleGroupBox(Behavior):
    """A group box that folds its contents away."""

    _defaults_ = {"collapsedHeight": 14}

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self.setCheckable(True)
        self.setChecked(True)
        self.toggled.connect(self._follow_check)

    def _follow_check(self, checked: bool) -> None:
        if self.collapsed == checked:
            self.setProperty("collapsed", not checked)

    def _changed_collapsed(self, collapsed: bool) -> None:
        self.setChecked(not collapsed)
        for child in self.children():
            if isinstance(child, qt.QWidget):
                child.setVisible(not collapsed)


class _NumberWidget(Behavior):
    """A slider and a spin box that show one number."""

    _defaults_ = {
        "minimum": 0.0,
        "maximum": 99.99,
        "value": 0.0,
        "singleStep": 1.0,
        "pageStep": 10.0,
        "decimals": 2,
        "tracking": True,
        "spinBoxVisible": True,
    }
    _slider_shown = True

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        layout = qt.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._slider = qt.QSlider(qt.Qt.Orientation.Horizontal)
        self._slider.setRange(0, _SLIDER_STEPS)
        self._slider.setVisible(self._slider_shown)
        self._box = qt.QDoubleSpinBox()
        layout.addWidget(self._slider, 1)
        layout.addWidget(self._box)
        self._box.connect("valueChanged(double)", lambda value: setattr(self, "value", value))
        self._slider.connect("sliderMoved(int)", self._follow_slider)
        self._shown = 0.0
        self._refresh()

    def _follow_slider(self, step: int) -> None:
        self.value = self.minimum + (self.maximum - self.minimum) * step / _SLIDER_STEPS

    def _refresh(self, *_: Any) -> None:
        values = self.__dict__.setdefault("_values_", dict(self._defaults_))
        values["value"] = min(max(values["value"], values["minimum"]), values["maximum"])
        for widget in (self._box, self._slider):
            widget.blockSignals(True)
        self._box.setDecimals(values["decimals"])
        self._box.setRange(values["minimum"], values["maximum"])
        self._box.setSingleStep(values["singleStep"])
        self._box.setSuffix(values.get("suffix", ""))
        self._box.setPrefix(values.get("prefix", ""))
        self._box.setVisible(values["spinBoxVisible"])
        self._box.setValue(values["value"])
        span = values["maximum"] - values["minimum"]
        self._slider.setValue(round(_SLIDER_STEPS * (values["value"] - values["minimum"]) / span) if span > 0 else 0)
        for widget in (self._box, self._slider):
            widget.blockSignals(False)
        if values["value"] != self._shown:
            self._shown = values["value"]
            self.valueChanged.emit(self._shown)

    _changed_minimum = _changed_maximum = _changed_singleStep = _changed_decimals = _refresh
    _changed_value = _changed_suffix = _changed_prefix = _changed_spinBoxVisible = _refresh


class ctkSliderWidget(_NumberWidget):
    """A slider with a spin box."""

    def reset(self) -> None:
        """Go back to the smallest value."""
        self.value = self.minimum


class ctkDoubleSpinBox(_NumberWidget):
    """A spin box for a real number."""

    _slider_shown = False

    def stepUp(self) -> None:
        """Add one step."""
        self.value += self.singleStep

    def stepDown(self) -> None:
        """Take one step away."""
        self.value -= self.singleStep


class ctkPathLineEdit(Behavior):
    """A path with a browse button."""

    _defaults_ = {
        "showBrowseButton": True,
        "showHistoryButton": True,
        "filters": 24663,
        "sizeAdjustPolicy": 2,
    }

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        layout = qt.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._combo = qt.QComboBox()
        self._combo.setEditable(True)
        button = qt.QToolButton()
        button.text = "..."
        layout.addWidget(self._combo, 1)
        layout.addWidget(button)
        self._path = ""
        button.connect("clicked()", self.browse)
        self._combo.connect("editTextChanged(QString)", lambda text: setattr(self, "currentPath", text))

    def comboBox(self) -> qt.QComboBox:
        """Return the inner combo box."""
        return self._combo

    def browse(self) -> None:
        """Ask for a file or folder."""
        folders = bool(self.filters & 1) and not self.filters & 2
        ask = qt.QFileDialog.getExistingDirectory if folders else qt.QFileDialog.getOpenFileName
        chosen = ask(self, "Select")
        if chosen:
            self.currentPath = chosen

    def _changed_currentPath(self, path: str) -> None:
        if self._combo.currentText != path:
            self._combo.setEditText(path)
        if path != self._path:
            self._path = path
            self.currentPathChanged.emit(path)
            self.validInputChanged.emit(os.path.exists(path))


class ctkComboBox(Behavior):
    """A combo box that can show a default text."""

    _defaults_ = {"scrollWheelEffect": 1, "elideMode": 3}

    def _read_currentUserDataAsString(self) -> str:
        return str(self.itemData(self.currentIndex) or "")

    def _changed_currentUserDataAsString(self, data: str) -> None:
        self.setCurrentIndex(self.findData(data))


class ctkFittedTextBrowser(Behavior):
    """A text browser that takes the height of its text."""

    _defaults_ = {"collapsed": True, "showDetailsText": "Show details...", "hideDetailsText": "Hide details."}

    def setCollapsibleText(self, text: str) -> None:
        """Show a text of which all but the first paragraph can be folded."""
        self.setText(text)
