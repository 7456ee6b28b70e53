"""The background worker on Slicer's own Qt."""

from __future__ import annotations

import qt

from SPDSegmentLib.worker.transports import QProcessTransport


def slicerTransport() -> QProcessTransport:
    """Return a transport that starts its process with Slicer's QProcess."""
    return QProcessTransport(qt.QProcess, qt.QTimer.singleShot)
