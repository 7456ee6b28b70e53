"""A small scripted module with which the host is tested: threshold a volume, in another process."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import numpy as np
import qt
import slicer
import vtk
from slicer import vtkMRMLMarkupsFiducialNode, vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

_CHILD = "for percent in (50, 100):\n    print('progress', percent, flush=True)\n"


class HostDemo(ScriptedLoadableModule):
    """Describes the module."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("Host demo")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]


@parameterNodeWrapper
class HostDemoParameters:
    """Parameters kept in the scene."""

    inputVolume: vtkMRMLScalarVolumeNode
    points: vtkMRMLMarkupsFiducialNode
    segmentation: vtkMRMLSegmentationNode
    threshold: Annotated[float, WithinRange(-1000, 1000)] = 100.0
    invert: bool = False


class HostDemoWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel."""

    def __init__(self, parent: Any = None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic: Any = None
        self.parameters: Any = None
        self.process: Any = None

    def setup(self) -> None:
        """Load the .ui file and connect it."""
        ScriptedLoadableModuleWidget.setup(self)
        panel = slicer.util.loadUI(self.resourcePath("UI/HostDemo.ui"))
        self.layout.addWidget(panel)
        self.ui = slicer.util.childWidgetVariables(panel)
        panel.setMRMLScene(slicer.mrmlScene)
        self.logic = HostDemoLogic()
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.ui.applyButton.connect("clicked(bool)", self.onApply)
        self.ui.failButton.connect("clicked()", self.onFail)
        self.initializeParameters()

    def cleanup(self) -> None:
        """Let go of the scene."""
        self.removeObservers()

    def enter(self) -> None:
        """The user came back."""
        self.initializeParameters()

    def onSceneEndClose(self, caller: Any, event: str) -> None:
        """Take the new scene's parameters."""
        self.initializeParameters()

    def initializeParameters(self) -> None:
        """Connect the scene's parameters with the panel."""
        if self.parameters is not None:
            self.removeObserver(self.parameters, vtk.vtkCommand.ModifiedEvent, self.check)
        self.parameters = self.logic.getParameterNode()
        if self.parameters.inputVolume is None:
            self.parameters.inputVolume = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode")
        self.parameters.connectGui(self.ui)
        self.addObserver(self.parameters, vtk.vtkCommand.ModifiedEvent, self.check)
        self.check()

    def check(self, caller: Any = None, event: str = "") -> None:
        """Allow what is possible now."""
        self.ui.applyButton.enabled = self.parameters.inputVolume is not None

    def onApply(self, checked: bool) -> None:
        """Start the other process."""
        self.process = qt.QProcess()
        self.process.connect("readyReadStandardOutput()", self.onOutput)
        self.process.connect("finished(int,QProcess::ExitStatus)", self.onFinished)
        self.ui.applyButton.enabled = False
        self.process.start(sys.executable, ["-c", _CHILD])

    def onOutput(self) -> None:
        """Show progress."""
        while self.process.canReadLine():
            self.ui.progressBar.value = int(self.process.readLine().data().split()[1])

    def onFinished(self, exitCode: int, status: Any) -> None:
        """Write the segment."""
        if exitCode != 0 or status != qt.QProcess.NormalExit:
            slicer.util.errorDisplay(_("The process failed."))
            return
        self.parameters.segmentation = self.logic.threshold(
            self.parameters.inputVolume, self.parameters.threshold, self.parameters.invert
        )
        self.ui.segmentsTable.setSegmentationNode(self.parameters.segmentation)
        self.check()

    def onFail(self) -> None:
        """Fail, as a slot with a bug does."""
        raise ValueError("This slot has a bug.")


class HostDemoLogic(ScriptedLoadableModuleLogic):
    """The computation."""

    def getParameterNode(self) -> Any:
        """Return the typed parameters."""
        return HostDemoParameters(super().getParameterNode())  # type: ignore[call-arg]

    def threshold(self, volume: Any, threshold: float, invert: bool = False) -> Any:
        """Return a segmentation node with one segment of what is brighter than a threshold."""
        mask = (slicer.util.arrayFromVolume(volume) > threshold) != invert
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Bright")
        node.CreateDefaultDisplayNodes()
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        segment = node.GetSegmentation().AddEmptySegment("", "Bright", (0.9, 0.4, 0.2))
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask.astype(np.uint8), node, segment, volume)
        return node


class HostDemoTest(ScriptedLoadableModuleTest):
    """What Slicer's Reload and Test runs."""

    def runTest(self) -> None:
        """Threshold a small volume."""
        array = np.arange(27, dtype=np.int16).reshape(3, 3, 3)
        node = HostDemoLogic().threshold(slicer.util.addVolumeFromArray(array), 13)
        segment = node.GetSegmentation().GetNthSegmentID(0)
        self.assertEqual(int(slicer.util.arrayFromSegmentBinaryLabelmap(node, segment).sum()), 13)
