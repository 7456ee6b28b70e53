"""The sample case in Slicer's Sample Data module; it lies in the extension, nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

from slicer.i18n import tr as _

from . import resources

SAMPLE_NAME = "SPDSegmentKidney"


def register() -> None:
    """Register the sample volume and its clicks."""
    import SampleData

    folder = Path(resources.path("SampleData/kidney-mr"))
    if not (folder / "image.nii.gz").is_file():
        return
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="SPDSegment",
        sampleName=SAMPLE_NAME,
        sampleDescription=_("Abdominal MR with rough clicks along the kidney"),
        uris=[(folder / "image.nii.gz").as_uri(), (folder / "clicks.mrk.json").as_uri()],
        fileNames=["image.nii.gz", "clicks.mrk.json"],
        nodeNames=["Kidney MR", "Kidney clicks"],
        loadFileTypes=["VolumeFile", "MarkupsFile"],
        thumbnailFileName=resources.path("Icons/SPDSegment.png"),
    )
