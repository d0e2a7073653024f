"""The real program in its own process, and what happens where it breaks."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from mm_core.structuring import ocr
from mm_core.structuring.ocr import OcrFailed, OcrProgram
from mm_core.structuring.rows import Photo

PROJECT = Path(__file__).resolve().parents[2]


def page(text: str) -> Photo:
    rgb = np.full((120, 360, 3), 245, np.uint8)
    cv2.putText(rgb, text, (20, 75), cv2.FONT_HERSHEY_SIMPLEX, 1.6, (20, 20, 40), 3, cv2.LINE_AA)
    return Photo("s", None, Path("unused"), rgb, rgb)


def test_it_reads_what_is_written_in_one_start() -> None:
    with OcrProgram() as program:
        hello, empty, tiny = program.run([page("HELLO 42"), page(""), Photo("t", None, Path(), *2 * [NOTHING])])
        first = program._process
        (again,) = program.run([page("GOOD DAY")])
        assert first is program._process is not None
    assert first.returncode is not None
    assert hello.texts["text"].split() == ["HELLO", "42"] and 1 <= hello.numbers["lines"] <= 2
    assert hello.numbers["confidence"] > 0.8 and 0.05 < hello.numbers["text_share"] < 0.8
    assert again.texts["text"].split() == ["GOOD", "DAY"]
    assert not empty.texts and not tiny.texts and empty.numbers == {"lines": 0, "confidence": 0, "text_share": 0}


NOTHING = np.zeros((1, 1, 3), np.uint8)


def fake(tmp_path: Path, body: str) -> Path:
    """A `python` that does something else than reading text."""
    path = tmp_path / "python"
    path.write_text(f"#!{sys.executable}\n{body}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_a_program_that_ends_is_started_anew_and_then_given_up(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    body = f"open({str(starts)!r}, 'a').write('x')\nraise SystemExit('No module named rapidocr')\n"
    with OcrProgram(fake(tmp_path, body)) as program:
        for _ in range(ocr.TRIES):
            with pytest.raises(OcrFailed, match="No module named rapidocr"):
                program.run([page("a")])
        with pytest.raises(OcrFailed, match="make setup"):
            program.run([page("a")])
    assert starts.read_text() == "x" * ocr.TRIES


def test_a_program_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocr, "PATIENCE", 0.3)
    body = "import sys, time\nsys.stdin.buffer.read(120 * 360 * 3)\ntime.sleep(60)\n"
    with OcrProgram(fake(tmp_path, body)) as program, pytest.raises(OcrFailed, match="ended"):
        program.run([page("a")])


def test_a_photo_that_cannot_be_read_leaves_the_program_running(tmp_path: Path) -> None:
    body = "import sys\nfor line in sys.stdin.buffer:\n"
    body += '    sys.stdin.buffer.read(120 * 360 * 3)\n    print(\'{"error": "RuntimeError: bad"}\', flush=True)\n'
    with OcrProgram(fake(tmp_path, body)) as program:
        for _ in range(2):
            with pytest.raises(OcrFailed, match="RuntimeError: bad"):
                program.run([page("a")])
        assert program._process is not None and program._process.poll() is None


def test_the_version_is_that_of_the_lock() -> None:
    assert ocr.VERSION.split("/")[1].replace("-", "==") in (PROJECT / "requirements.lock").read_text().split()
