"""A decode that crashes, hangs or swallows memory is one unreadable picture; the next one is read."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mm_core.imaging.images import CorruptImage, NotAnImage, TooManyPixels, load_rgb, read_header
from mm_core.ingest import decode_sandbox
from mm_core.ingest.decode_sandbox import risky, safely


def process_of(path: Path) -> int:
    return os.getpid()


def crash(path: Path) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(path: Path) -> None:
    signal.alarm(1)  # the worker's own limit, sooner
    time.sleep(30)


def swallow(path: Path, size: int) -> int:
    return np.ones(size, np.uint8).size


def complain(path: Path) -> None:
    raise TooManyPixels(f"{path}: claims 7 pixels", 7)


class Hostile:
    """What a decoder that was taken over might answer."""

    def __init__(self, call: str, *args: Any):
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return {"system": os.system, "remove": Path.unlink, "eval": eval, "own": safely}[self.call], self.args


def take_over(path: Path, call: str, argument: Any) -> Hostile:
    return Hostile(call, argument)


@pytest.fixture
def webp(tmp_path: Path, make: Any) -> Path:
    path = tmp_path / "a.webp"
    path.write_bytes(make.encoded(make.photo(1), "WEBP"))
    return path


@pytest.mark.parametrize("format", ["WEBP", "AVIF", "TIFF", "BMP", "GIF", "JPEG2000", "HEIF"])
def test_formats_but_two_are_read_by_a_worker(tmp_path: Path, make: Any, format: str) -> None:
    from pillow_heif import register_heif_opener

    register_heif_opener()
    path = tmp_path / "a"
    path.write_bytes(make.encoded(make.photo(1), format))
    assert risky(path)
    assert safely(process_of, path) != os.getpid()
    assert np.array_equal(safely(load_rgb, path, 32), load_rgb(path, 32)) and safely(read_header, path).width == 64


def test_jpeg_and_png_are_read_here_unless_huge(tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for format in ("JPEG", "PNG"):
        path = tmp_path / format
        path.write_bytes(make.encoded(make.photo(1), format))
        assert safely(process_of, path) == os.getpid()
        with monkeypatch.context() as patch:
            patch.setattr(decode_sandbox, "HUGE", 64 * 48 - 1)
            assert safely(process_of, path) != os.getpid()
    (tmp_path / "page").write_text("<html>")
    with pytest.raises(NotAnImage):
        safely(read_header, tmp_path / "page")


@pytest.mark.parametrize(("fault", "words"), [(crash, "crashed.*SIGSEGV"), (hang, "more than 60 s")])
def test_what_ends_the_worker_is_one_corrupt_picture(webp: Path, fault: Any, words: str) -> None:
    with pytest.raises(CorruptImage, match=f"^{webp}: its decoder .*{words}"):
        safely(fault, webp)
    assert safely(load_rgb, webp).shape == (48, 64, 3), "by a new worker"


def test_memory_is_limited(webp: Path) -> None:
    assert safely(swallow, webp, 100 << 20) == 100 << 20
    with pytest.raises(CorruptImage, match="more than 2 GiB to decode: send a smaller picture"):
        safely(swallow, webp, 3 << 30)
    worker = safely(process_of, webp)
    assert safely(process_of, webp) == worker, "it went on"


def test_errors_arrive_as_they_were(webp: Path) -> None:
    with pytest.raises(TooManyPixels, match="claims 7") as raised:
        safely(complain, webp)
    assert raised.value.pixels == 7


def test_a_strip_of_a_hundred_million_pixels_is_refused_or_read(tmp_path: Path) -> None:
    """120 megapixels of float stand in memory once, or end as one refused file."""
    path = tmp_path / "strip.tiff"
    Image.new("F", (100, 1_000_000)).save(path, compression="tiff_deflate")
    assert safely(load_rgb, path, 64).shape == (64, 1, 3)


@pytest.mark.parametrize("call", ["system", "remove", "eval", "own"])
def test_a_worker_that_was_taken_over_runs_nothing_here(webp: Path, call: str) -> None:
    trace = webp.with_name("trace")
    trace.touch()
    argument = {"system": f"rm {trace}", "remove": trace, "eval": f"__import__('os').unlink({str(trace)!r})"}
    with pytest.raises(CorruptImage):
        safely(take_over, webp, call, argument.get(call, trace))
    assert trace.exists()
    assert safely(load_rgb, webp, 32).shape[1] == 32  # by a new worker
