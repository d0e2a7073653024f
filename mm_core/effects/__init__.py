"""Functions on one photo and its matte: cut-out, sky, eraser, style, document."""
