"""Texts about the module."""

from __future__ import annotations

from slicer.i18n import tr as _


def helpText() -> str:
    """Return the help text."""
    return _(
        "Segments a structure from rough clicks along its centerline. Choose a volume, click along the structure, "
        "choose a model and press Segment. Corrections of yours are kept when clicks change.<br><br>"
        "<b>For research only: this is not a medical device.</b> Images stay on this computer, "
        "unless you set a worker command that names another one."
    )


def acknowledgement() -> str:
    """Return whom to thank."""
    return _("Builds on Segment Anything, LiteMedSAM and PEFT; the model cards name the data of each model.")
