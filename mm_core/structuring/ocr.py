"""Read the text in photos with rapidocr (PP-OCR models, included in its wheel) in a separate process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from threading import Timer
from typing import Self, TypedDict

import numpy as np

from mm_core.core.errors import MattingError
from mm_core.structuring.decode import code_version
from mm_core.structuring.rows import Found, Photo

EXTRACTOR = "ocr"
VERSION = f"{code_version(__name__, f'{__name__}_program')}/rapidocr-{metadata.version('rapidocr')}"

PROGRAM = Path(__file__).with_name("ocr_program.py")
PATIENCE = 120.0
"""Seconds per photo after which the program is considered hung and is killed."""
TRIES = 3
"""Failures in a row after which no further program is started: the fault is then not the photo's."""


class OcrAnswer(TypedDict):
    """The program's answer for one photo."""

    texts: list[str]
    """Lines in reading order."""
    scores: list[float]
    """Of each line, in [0, 1]."""
    share: float
    """Share of the photo that text covers."""


class OcrFailed(MattingError):
    """The program ended, hung, or could not read a photo; the text contains its last message."""


class OcrProgram:
    """The running program. It starts at the first photo and ends with the `with` block."""

    def __init__(self, python: Path = Path(sys.executable)) -> None:
        self._python = python
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = 0
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the program

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._errors.close()

    def run(self, photos: Sequence[Photo]) -> list[Found]:
        """Return the text of photos.

        Args:
            photos: Decoded photos.

        Returns:
            Per photo the text `text` (lines) and the numbers `lines`, `confidence` (mean score; 0 without text) and
            `text_share`.

        Raises:
            OcrFailed: The program failed on a photo.
        """
        rows = []
        for photo in photos:
            read = self.read(photo.rgb)
            scores = read["scores"]
            confidence = sum(scores) / len(scores) if scores else 0.0
            numbers = {"lines": float(len(scores)), "confidence": confidence, "text_share": read["share"]}
            rows.append(Found(numbers, {"text": "\n".join(read["texts"])} if scores else {}))
        return rows

    def read(self, rgb: np.ndarray) -> OcrAnswer:
        """Return texts, scores and covered share of one photo (H, W, 3) uint8; raise OcrFailed."""
        # Do not restart the program for every photo if the installation is broken.
        if self._ended >= TRIES:
            raise OcrFailed(f"{self._python} {PROGRAM.name} ended {TRIES} times in a row: run `make setup` again")
        process = self._started()
        assert process.stdin and process.stdout
        # A hung program is killed after a while; reading from it then returns an empty line.
        timer = Timer(PATIENCE, process.kill)
        timer.start()
        try:
            # One request: the size, then the pixels. The answer is one line of JSON.
            process.stdin.write(f"{rgb.shape[0]} {rgb.shape[1]}\n".encode() + rgb.tobytes())
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = b""
        finally:
            timer.cancel()
        if not line:
            self._end()
            self._ended += 1
            raise OcrFailed(f"{self._python} {PROGRAM.name} ended: {self._last_words()}")
        self._ended = 0
        # An error of the program concerns this photo only.
        answer = json.loads(line)
        if "error" in answer:
            raise OcrFailed(f"{PROGRAM.name}: {answer['error']}")
        return answer

    def _started(self) -> subprocess.Popen[bytes]:
        """Return the running program; start it if necessary."""
        if self._process is None:
            threads = str(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
            # PYTHONPATH is removed, because the program must use the libraries of its own environment.
            environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            self._process = subprocess.Popen(
                [str(self._python), str(PROGRAM), threads],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=environment,
            )
        return self._process

    def _end(self) -> None:
        """Kill the program and close its pipes."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                with suppress(OSError):  # data that could not be sent to a dead program
                    pipe.close()

    def _last_words(self) -> str:
        """Return the last line that the program printed to stderr."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "no message")
