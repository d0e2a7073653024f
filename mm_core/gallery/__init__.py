"""The gallery page: moments in a browser, with matting on the phone that shows it."""
