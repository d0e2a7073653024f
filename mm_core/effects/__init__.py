"""Effects on one photo and its matte: cutout, sky, eraser, style, document."""
