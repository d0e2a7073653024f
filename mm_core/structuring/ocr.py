"""The text in photos, read by rapidocr (PP-OCR models, carried in its wheel) in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Timer
from typing import Any, Self

import numpy as np

from mm_core.core.errors import MattingError
from mm_core.structuring.rows import Found, Photo

EXTRACTOR = "ocr"
VERSION = "1/rapidocr-3.10.0"
"""Rises whenever the text may come out differently: with our code, and with the version in infra/ocr.lock."""

PROGRAM = Path(__file__).with_name("ocr_program.py")
PATIENCE = 120.0
"""Seconds that one photo may take; a program that hangs is ended."""
TRIES = 3
"""Programs that may end in a row before it is given up: the fault is then not the photo's."""


class OcrFailed(MattingError):
    """The program ended, hung, or could not read a photo; the text says what it printed."""


class OcrProgram:
    """The running program; starts at the first photo, ends with the `with` block."""

    def __init__(self, python: Path):
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
        """`text` (lines), and as numbers `lines`, `confidence` (mean score; 0 without text) and `text_share`.

        Raises OcrFailed.
        """
        found = []
        for photo in photos:
            read = self.read(photo.rgb)
            scores = read["scores"]
            confidence = sum(scores) / len(scores) if scores else 0.0
            numbers = {"lines": float(len(scores)), "confidence": confidence, "text_share": read["share"]}
            found.append(Found(numbers, {"text": "\n".join(read["texts"])} if scores else {}))
        return found

    def read(self, rgb: np.ndarray) -> dict[str, Any]:
        """Texts, scores and covered share of one photo (H, W, 3) uint8. Raises OcrFailed."""
        if self._ended >= TRIES:
            raise OcrFailed(f"{self._python} {PROGRAM.name} ended {TRIES} times in a row: run `make ocr` again")
        process = self._started()
        assert process.stdin and process.stdout
        timer = Timer(PATIENCE, process.kill)
        timer.start()
        try:
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
        answer = json.loads(line)
        if "error" in answer:
            raise OcrFailed(f"{PROGRAM.name}: {answer['error']}")
        return answer

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            threads = str(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
            # Not our PYTHONPATH: the program's own libraries are the point of its environment.
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
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                with suppress(OSError):  # what could not be sent to a dead program
                    pipe.close()

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "no message")
