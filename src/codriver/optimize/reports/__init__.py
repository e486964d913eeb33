"""What was measured of artifacts, on a page and in a plot."""
