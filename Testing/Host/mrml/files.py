"""Reading and writing of nodes and scenes: the behavior of Slicer's IO manager."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..runtime import slicer, vtk

# Longest extensions first: ".seg.nrrd" is a segmentation, ".nrrd" a volume.
FILE_TYPES = {
    ".seg.nrrd": "SegmentationFile",
    ".seg.nhdr": "SegmentationFile",
    ".mrk.json": "MarkupsFile",
    ".nii.gz": "VolumeFile",
    ".fcsv": "MarkupsFile",
    ".mrb": "SceneFile",
    ".mrml": "SceneFile",
    ".nrrd": "VolumeFile",
    ".nhdr": "VolumeFile",
    ".nii": "VolumeFile",
    ".mha": "VolumeFile",
    ".mhd": "VolumeFile",
    ".dcm": "VolumeFile",
    ".vtk": "ModelFile",
    ".vtp": "ModelFile",
    ".stl": "ModelFile",
    ".obj": "ModelFile",
    ".ply": "ModelFile",
    ".h5": "TransformFile",
    ".tfm": "TransformFile",
    ".csv": "TableFile",
    ".tsv": "TableFile",
    ".txt": "TextFile",
    ".json": "TextFile",
}

_WRITER_TYPES = {
    "vtkMRMLSegmentationNode": "SegmentationFile",
    "vtkMRMLMarkupsNode": "MarkupsFile",
    "vtkMRMLVolumeNode": "VolumeFile",
    "vtkMRMLModelNode": "ModelFile",
    "vtkMRMLTransformNode": "TransformFile",
    "vtkMRMLTableNode": "TableFile",
    "vtkMRMLTextNode": "TextFile",
}

_LABELMAP_OPTION = 1
_SINGLE_FILE_OPTION = 8

Properties = dict[str, Any]


class NodeFiles:
    """Loads and saves the nodes of one scene."""

    def __init__(self, scene: Any, logics: dict[str, Any]) -> None:
        self._scene = scene
        self._logics = logics
        self._readers: dict[str, Callable[[str, str, Properties], Any]] = {
            "VolumeFile": self._read_volume,
            "SegmentationFile": lambda path, name, _: logics["Segmentations"].LoadSegmentationFromFile(
                path, True, name
            ),
            "MarkupsFile": self._read_markups,
            "ModelFile": lambda path, name, _: logics["Models"].AddModel(path),
            "TransformFile": lambda path, name, _: logics["Transforms"].AddTransform(path, scene),
            "TableFile": lambda path, name, _: logics["Tables"].AddTable(path, name),
            "TextFile": self._read_text,
        }

    def known_extension(self, path: str) -> str:
        """Return the extension with its dots, `.nii.gz` as one."""
        lower = str(path).lower()
        return next((e for e in FILE_TYPES if lower.endswith(e)), os.path.splitext(lower)[1])

    def file_type(self, path: str) -> str:
        """Return the name of the file type, `NoFile` if unknown."""
        return FILE_TYPES.get(self.known_extension(path), "NoFile")

    def load(self, file_type: str, properties: Properties, nodes: Any, messages: Any) -> bool:
        """Load a file into the scene and add the node to a vtkCollection."""
        path = str(properties["fileName"])
        if not os.path.exists(path):
            messages.AddMessage(vtk.vtkCommand.ErrorEvent, f"File not found: {path}")
            return False
        if file_type == "SceneFile":
            return self.load_scene(path, bool(properties.get("clear", False)))
        if file_type not in self._readers:
            messages.AddMessage(vtk.vtkCommand.ErrorEvent, f"No reader for {path}")
            return False
        name = properties.get("name") or os.path.basename(path).split(".")[0]
        node = self._readers[file_type](path, name, properties)
        if node is None:
            return False
        nodes.AddItem(node)
        return True

    def load_scene(self, path: str, clear: bool) -> bool:
        """Open or import a scene: .mrb or .mrml."""
        if path.lower().endswith(".mrb"):
            return bool(self._scene.ReadFromMRB(path, clear))
        self._scene.SetURL(path)
        self._scene.SetRootDirectory(os.path.dirname(path))
        return bool(self._scene.Connect() if clear else self._scene.Import())

    def save_scene(self, path: str, messages: Any = None) -> bool:
        """Save the scene as a bundle, as .mrml alone, or with all data in a folder."""
        if path.lower().endswith(".mrb"):
            return bool(self._scene.WriteToMRB(path))
        if path.lower().endswith(".mrml"):
            self._scene.SetURL(path)
            self._scene.SetRootDirectory(os.path.dirname(path))
            return bool(self._scene.Commit())
        Path(path).mkdir(parents=True, exist_ok=True)
        return bool(self._scene.SaveSceneToSlicerDataBundleDirectory(path))

    def writer_type(self, node: Any) -> str:
        """Return the file type that a node is written as."""
        return next((kind for cls, kind in _WRITER_TYPES.items() if node.IsA(cls)), "NodeFile")

    def save(self, file_type: str, properties: Properties, messages: Any) -> bool:
        """Write a node or the scene; messages of the writer go into a vtkMRMLMessageCollection."""
        path = str(properties["fileName"])
        if file_type == "SceneFile":
            return self.save_scene(path, messages)
        node = self._scene.GetNodeByID(properties["nodeID"])
        storage = node.GetStorageNode()
        if storage is None:
            if not node.AddDefaultStorageNode(path):
                return False
            storage = node.GetStorageNode()
        storage.SetFileName(path)
        storage.SetUseCompression(int(properties.get("useCompression", 1)))
        written = bool(storage.WriteData(node))
        if not written and messages is not None:
            messages.AddMessages(storage.GetUserMessages())
        return written

    def export(self, node_ids: list[str], paths: list[str], properties: Properties, harden: bool) -> bool:
        """Write nodes without touching their storage nodes; `harden` applies parent transforms to a copy."""
        return all(self._export_one(i, str(p), properties, harden) for i, p in zip(node_ids, paths, strict=True))

    def writable_formats(self, node: Any) -> list[str]:
        """Return the formats as `Description (.extension)`."""
        storage = node.CreateDefaultStorageNode()
        storage.SetScene(self._scene)
        formats = storage.GetSupportedWriteFileTypes()
        return [formats.GetValue(index) for index in range(formats.GetNumberOfValues())]

    def _export_one(self, node_id: str, path: str, properties: Properties, harden: bool) -> bool:
        node = self._scene.GetNodeByID(node_id)
        copy = None
        if harden and node.GetParentTransformNode() is not None:
            copy = self._hardened_copy(node)
        storage = node.CreateDefaultStorageNode()
        storage.SetScene(self._scene)
        storage.SetFileName(path)
        storage.SetUseCompression(int(properties.get("useCompression", 1)))
        written = bool(storage.WriteData(copy or node))
        if copy is not None:
            self._scene.RemoveNode(copy)
        return written

    def _hardened_copy(self, node: Any) -> Any:
        copy = self._scene.AddNewNodeByClass(node.GetClassName(), node.GetName())
        copy.CopyContent(node)
        copy.SetAndObserveTransformNodeID(node.GetTransformNodeID())
        copy.HardenTransform()
        return copy

    def _read_volume(self, path: str, name: str, properties: Properties) -> Any:
        options = _LABELMAP_OPTION if properties.get("labelmap") else 0
        options |= _SINGLE_FILE_OPTION if properties.get("singleFile") else 0
        node = self._logics["Volumes"].AddArchetypeVolume(path, name, options)
        if node is not None and properties.get("show", True) and not properties.get("labelmap"):
            slicer.util.setSliceViewerLayers(background=node, fit=True)
        return node

    def _read_markups(self, path: str, name: str, _properties: Properties) -> Any:
        ids = self._logics["Markups"].LoadMarkups(path, name)
        return self._scene.GetNodeByID(ids.split(",")[0]) if ids else None

    def _read_text(self, path: str, name: str, _properties: Properties) -> Any:
        node = self._scene.AddNewNodeByClass("vtkMRMLTextNode", name)
        storage = self._scene.AddNewNodeByClass("vtkMRMLTextStorageNode")
        storage.SetFileName(path)
        storage.ReadData(node)
        node.SetAndObserveStorageNodeID(storage.GetID())
        return node
