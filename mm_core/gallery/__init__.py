"""The page: a gallery of moments, whose matting runs on the phone that looks at it."""
