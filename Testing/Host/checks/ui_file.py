"""Check of a .ui file: classes, properties, enumerations, connections, for several versions of Slicer."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..widget_api import VERSIONS, WidgetApi
from .members import Members


def widget_classes(path: Path | str) -> dict[str, str]:
    """Return the class of every named widget and action of a .ui file."""
    root = ET.parse(path).getroot()
    classes = {str(entry.get("name")): str(entry.get("class")) for entry in root.iter("widget")}
    classes.update({str(entry.get("name")): "QAction" for entry in root.iter("action")})
    return {name: "QFrame" if cls == "Line" else cls for name, cls in classes.items()}


def check_ui_file(path: Path | str, api: WidgetApi, versions: Sequence[str] = VERSIONS) -> list[str]:
    """Return one sentence for everything in the file that a version of Slicer lacks; empty if all is well."""
    root = ET.parse(path).getroot()
    faults = list(_check_custom_widgets(root, api))
    names: set[str] = set()
    for entry in root.iter("widget"):
        name = str(entry.get("name"))
        if name in names:
            faults.append(f"The name '{name}' is used twice.")
        names.add(name)
        faults.extend(_check_widget(entry, api, versions))
    faults.extend(_check_connections(root, api, widget_classes(path), versions))
    return faults


def _check_widget(entry: ET.Element, api: WidgetApi, versions: Sequence[str]) -> Iterator[str]:
    name, cls = entry.get("name"), str(entry.get("class"))
    members = Members(api, "QFrame" if cls == "Line" else cls)
    if not members.known:
        yield f"'{name}': neither Slicer nor Qt has the class {cls}."
        return
    for version in members.missing_versions(versions):
        yield f"'{name}': Slicer {version} has no class {cls}."
    for prop in entry.findall("property"):
        key = str(prop.get("name"))
        if prop.get("stdset") == "0" and members.property_writable(key) is None:
            continue  # A dynamic property, such as SlicerParameterName.
        if members.property_writable(key) is None and not (cls == "Line" and key == "orientation"):
            yield f"'{name}': {cls} has no property {key}."
            continue
        for version in members.lacking_versions(key, versions):
            yield f"'{name}': {cls} has no property {key} in Slicer {version}."
        if members.property_writable(key) is False:
            yield f"'{name}': property {key} of {cls} cannot be set."
        yield from _check_enum(prop[0], members, f"'{name}': {key} of {cls}")


def _check_enum(value: ET.Element, members: Members, where: str) -> Iterator[str]:
    if value.tag in ("enum", "set"):
        for part in (value.text or "").split("|"):
            if part and not members.has_enum_value(part):
                yield f"{where}: there is no value {part}."


def _check_custom_widgets(root: ET.Element, api: WidgetApi) -> Iterator[str]:
    declared = {str(entry.findtext("class")) for entry in root.iter("customwidget")}
    for cls in sorted({str(entry.get("class")) for entry in root.iter("widget")}):
        if cls in api and cls not in declared:
            yield f"{cls} is used and not declared under <customwidgets>; Qt Designer cannot open the file."


def _check_connections(
    root: ET.Element, api: WidgetApi, classes: dict[str, str], versions: Sequence[str]
) -> Iterator[str]:
    for entry in root.iter("connection"):
        sender, signal, receiver, slot = (
            str(entry.findtext(part)) for part in ("sender", "signal", "receiver", "slot")
        )
        for end in (sender, receiver):
            if end not in classes:
                yield f"A connection names '{end}', which the file does not have."
        if sender in classes:
            members = Members(api, classes[sender])
            if not members.has_signal(signal):
                yield f"'{sender}': {classes[sender]} has no signal {signal}."
            for version in members.lacking_versions(signal.split("(")[0], versions):
                yield f"'{sender}': {classes[sender]} has no signal {signal} in Slicer {version}."
        if receiver in classes and not Members(api, classes[receiver]).has_slot(slot):
            yield f"'{receiver}': {classes[receiver]} has no slot {slot}."
