"""Decode risky pictures in a separate process with limits on memory and time.

JPEG and PNG files of usual size are decoded in this process, because their libraries are robust against broken files.
Other formats (HEIC, AVIF, WebP, TIFF, …) and very large pictures are decoded by a worker process. If a picture kills
the worker, that picture counts as unreadable and the next picture gets a new worker.
"""

from __future__ import annotations

import os
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import is_dataclass
from enum import Enum
from pathlib import Path, PurePath
from queue import Empty, LifoQueue
from typing import BinaryIO, ParamSpec, TypeVar

from mm_core.imaging.images import CorruptImage, UnreadableImage, read_header

PLAIN = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
"""First bytes of JPEG and PNG files."""
OTHERS = (b"II", b"MM", b"BM", b"GIF8", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP")
"""First bytes of TIFF, BMP, GIF and JPEG 2000 files; WebP, HEIC and AVIF have their mark at other offsets."""
HUGE = 32_000_000
"""Largest number of pixels of a JPEG or PNG that is decoded in this process."""
MEMORY = 2 << 30
"""Bytes that a decode may use in addition to the worker's memory at its start."""
SECONDS = 60
"""Time limit of one decode, in seconds."""

ARRAYS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
}
"""Functions and classes that a pickled array refers to."""

_P = ParamSpec("_P")
_R = TypeVar("_R")
_idle: dict[int, LifoQueue[subprocess.Popen[bytes]]] = {}
"""Process id → its idle workers; a forked process must not use the workers of its parent."""


def safely(function: Callable[_P, _R], *args: _P.args, **more: _P.kwargs) -> _R:
    """Return `function(path, …)`, called in a worker if `risky(path)`.

    Args:
        function: A picklable function with the path of a picture as its first argument.
        *args: Its positional arguments, picklable; the first is the path.
        **more: Its keyword arguments, picklable.

    Returns:
        The result of the function: dataclasses, arrays, paths and plain values only.

    Raises:
        CorruptImage: The decoder crashed or exceeded the limits. Errors of the function are raised unchanged.
    """
    path = args[0]
    assert isinstance(path, Path)
    return _in_worker(path, function, args, more) if risky(path) else function(*args, **more)


def risky(path: Path) -> bool:
    """Return whether a worker must decode this picture."""
    with path.open("rb") as stream:
        start = stream.read(32)
    if start.startswith(PLAIN):
        return _pixels(path, start) > HUGE
    # `ftyp` marks HEIC and AVIF. The reader rejects unknown formats without decoding them.
    return start.startswith(OTHERS) or start[4:8] == b"ftyp" or start[8:12] == b"WEBP"


def _pixels(path: Path, start: bytes) -> int:
    """Return the number of pixels in the header; 0 for an unreadable header."""
    if start.startswith(PLAIN[1]):
        # The IHDR chunk of a PNG has a fixed position: width and height as 4 bytes each.
        return int.from_bytes(start[16:20]) * int.from_bytes(start[20:24])
    try:
        return read_header(path).pixels
    except UnreadableImage:
        return 0


def _in_worker(path: Path, function: Callable[..., _R], args: tuple[object, ...], more: dict[str, object]) -> _R:
    # The most recently used worker is the most likely to be in memory, so the queue is last in, first out.
    idle = _idle.setdefault(os.getpid(), LifoQueue())
    try:
        worker = idle.get_nowait()
    except Empty:
        worker = _start()
    assert worker.stdin and worker.stdout
    try:
        # A worker answers one call at a time over its pipes.
        pickle.dump((function, args, more), worker.stdin)
        worker.stdin.flush()
        well, answer = _Answer(worker.stdout).load()
    # The worker died, or its answer is not acceptable. The exit code gives the reason for a death.
    except (OSError, EOFError, pickle.UnpicklingError):
        worker.kill()
        raise CorruptImage(f"{path}: {_end(worker.wait())}: send the picture again") from None
    except BaseException:  # a late answer would be read as the answer to the next picture
        worker.kill()
        worker.wait()
        raise
    idle.put(worker)
    if well:
        return answer
    raise answer


class _Answer(pickle.Unpickler):
    """Unpickler that accepts plain values only.

    A hostile picture may control the worker. Its answer must not run code in this process.
    """

    def find_class(self, module: str, name: str) -> object:
        if module.split(".")[0] in ("mm_core", "builtins", "pathlib") or (module, name) in ARRAYS:
            found = super().find_class(module, name)
            if (module, name) in ARRAYS or _is_value(found):
                return found
        raise pickle.UnpicklingError(f"the worker answered with {module}.{name}")


def _is_value(kind: object) -> bool:
    """Return whether creating an instance has no side effects: our dataclasses, errors, enums and paths."""
    return isinstance(kind, type) and (is_dataclass(kind) or issubclass(kind, (Exception, PurePath, Enum)))


def _start() -> subprocess.Popen[bytes]:
    # Use one thread and two heaps: each additional one counts towards the memory limit.
    quiet = {"MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | quiet | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def _end(code: int) -> str:
    if code == -signal.SIGALRM:
        return f"its decoder took more than {SECONDS} s"
    return f"its decoder crashed ({signal.Signals(-code).name if code < 0 else code})"


def main() -> None:
    """Run the worker until its owner closes the pipe."""
    questions = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output of a library must not mix with the answers
    # A crash must not write a core dump.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    work(questions, answers)


def work(questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer pickled calls (function, args, keyword args) with pickled pairs (success, result or error).

    Args:
        questions: Stream of calls.
        answers: Stream of results.
    """
    limited = False
    while True:
        try:
            function, args, more = pickle.load(questions)  # noqa: S301 - our owner's
        except EOFError:
            return
        # Set the limit after the first load, which imports the libraries of the function.
        if not limited:
            _limit_memory()
            limited = True
        # An unhandled SIGALRM ends the process, also inside a C library.
        signal.alarm(SECONDS)
        try:
            answer = True, function(*args, **more)
        # Process boundary: send any error of a decoder to the owner, which raises it (`safely`).
        except Exception as error:  # noqa: BLE001
            answer = False, _told(args[0], error)
        signal.alarm(0)
        pickle.dump(answer, answers)
        answers.flush()


def _told(path: Path, error: Exception) -> Exception:
    """Return the error, or a CorruptImage for a lack of memory, which each library reports differently."""
    words = f"{type(error).__name__} {error}".lower()
    if "memory" in words or "allocate" in words:
        return CorruptImage(f"{path}: takes more than {MEMORY >> 30} GiB to decode: send a smaller picture")
    return error


def _limit_memory() -> None:
    """Limit the address space if /proc gives its current size; other systems have the time limit only."""
    statistics = Path("/proc/self/statm")
    if statistics.exists():
        # The first field is the size of the address space, in pages.
        now = int(statistics.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
