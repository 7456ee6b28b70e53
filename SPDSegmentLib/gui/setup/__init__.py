"""What has to be there before a segmentation can start."""
