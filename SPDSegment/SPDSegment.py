"""The 3D Slicer module SPDSegment: what Slicer loads. It only wires; the work is in SPDSegmentLib."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

for _folder in (Path(__file__).resolve().parent, Path(__file__).resolve().parents[1]):
    if (_folder / "SPDSegmentLib").is_dir():
        if str(_folder) not in sys.path:
            sys.path.insert(0, str(_folder))
        break

import qt  # noqa: E402
import slicer  # noqa: E402
from slicer.i18n import translate  # noqa: E402
from slicer.ScriptedLoadableModule import (  # noqa: E402
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)

from SPDSegmentLib.gui.panel import about, panel  # noqa: E402
from SPDSegmentLib.gui.run import console  # noqa: E402


class SPDSegment(ScriptedLoadableModule):
    """Describes the module."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = "SPDSegment"
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = []
        self.parent.contributors = ["SPDSegment contributors"]
        self.parent.helpText = about.helpText()
        self.parent.acknowledgementText = about.acknowledgement()
        self.parent.icon = qt.QIcon(about.resourcePath("Icons/SPDSegment.png"))
        slicer.app.connect("startupCompleted()", about.registerSampleData)
        slicer.app.connect("startupCompleted()", registerEffect)


def registerEffect() -> None:
    """Add the effect *SPD* to the Segment Editor."""
    import qSlicerSegmentationsEditorEffectsPythonQt as effects

    effect = effects.qSlicerSegmentEditorScriptedEffect(None)
    effect.setPythonSource(
        (Path(__file__).resolve().parent / "SegmentEditorSPDLib" / "SegmentEditorEffect.py").as_posix()
    )
    effect.self().register()


class SPDSegmentWidget(ScriptedLoadableModuleWidget):
    """The panel."""

    def __init__(self, parent: Any = None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        self.logic: Any = None
        self.ui: Any = None
        self.panel: Any = None

    def setup(self) -> None:
        """Build the panel."""
        ScriptedLoadableModuleWidget.setup(self)
        widget = slicer.util.loadUI(about.resourcePath("UI/SPDSegment.ui"))
        self.layout.addWidget(widget)
        self.ui = slicer.util.childWidgetVariables(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        self.logic = SPDSegmentLogic()
        self.panel = panel.ModulePanel(widget, self.ui, self.logic)

    def onReload(self) -> None:
        """Load the library again as well, and the effect for new editors; Slicer itself reloads this file only."""
        own = ("SPDSegmentLib", "SegmentEditorSPDLib")
        for name in [name for name in sys.modules if name.partition(".")[0] in own]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)

    def enter(self) -> None:
        """Show what the scene has now."""
        self.panel.enter()

    def exit(self) -> None:
        """Stop placing points."""
        self.panel.exit()

    def cleanup(self) -> None:
        """Let go of the scene and end the worker."""
        if self.panel is not None:
            self.panel.cleanup()
        if self.logic is not None:
            self.logic.close()


class SPDSegmentLogic(console.Console, ScriptedLoadableModuleLogic):
    """Segmentation for scripts, see ``console.Console``; the panel uses the same calls.

    Slicer's base class builds whatever follows it in the list of bases: it comes last, or the worker is made twice.
    """

    def __init__(self) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        console.Console.__init__(self)


class SPDSegmentTest(ScriptedLoadableModuleTest):
    """What Slicer's Reload and Test runs."""

    def runTest(self) -> None:
        """Run all checks."""
        about.selfTest(self, SPDSegmentLogic, self.delayDisplay)
