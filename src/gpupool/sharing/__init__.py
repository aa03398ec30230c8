"""What several models have because it has the same bytes: pages on the device, and host memory."""
