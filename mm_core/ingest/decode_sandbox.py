"""Decodes that may crash or swallow the machine's memory run in a process of their own.

JPEG and PNG of usual size are decoded here, their libraries have seen every broken file there is. All else (HEIC,
AVIF, WebP, TIFF, …) and what is huge goes to a worker with limits on memory and time: what kills it is one
unreadable picture, and the next one gets a new worker.
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
from typing import Any, BinaryIO, ParamSpec, TypeVar

from mm_core.imaging.images import CorruptImage, UnreadableImage, read_header

PLAIN = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
"""How JPEG and PNG begin."""
OTHERS = (b"II", b"MM", b"BM", b"GIF8", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP")
"""How TIFF, BMP, GIF and JPEG 2000 begin; WebP, HEIC and AVIF say it at other places."""
HUGE = 32_000_000
"""Pixels from which a JPEG or PNG goes to the worker too."""
MEMORY = 2 << 30
"""Bytes that a decode may take, above what the worker has when it starts."""
SECONDS = 60
"""That a decode may take."""

ARRAYS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
}
"""What pickled arrays are made by."""

_P = ParamSpec("_P")
_R = TypeVar("_R")
_idle: dict[int, LifoQueue[subprocess.Popen[bytes]]] = {}
"""Workers without work, by the process whose they are: one that was forked has none of its parent's."""


def safely(function: Callable[_P, _R], *args: _P.args, **more: _P.kwargs) -> _R:
    """`function(path, …)`, in a worker where the file's content calls for it; `risky` says when.

    Function, arguments and result have to go through pickle. Raises what the function raises, and CorruptImage
    where the decode crashes or breaks the limits.
    """
    path = args[0]
    assert isinstance(path, Path)
    return _in_worker(path, function, args, more) if risky(path) else function(*args, **more)


def risky(path: Path) -> bool:
    """Whether a picture is to be decoded by a worker."""
    with path.open("rb") as stream:
        start = stream.read(32)
    if start.startswith(PLAIN):
        return _pixels(path, start) > HUGE
    return start.startswith(OTHERS) or start[4:8] == b"ftyp" or start[8:12] == b"WEBP"


def _pixels(path: Path, start: bytes) -> int:
    """As the header claims; 0 where it cannot be read."""
    if start.startswith(PLAIN[1]):
        return int.from_bytes(start[16:20]) * int.from_bytes(start[20:24])
    try:
        return read_header(path).pixels
    except UnreadableImage:
        return 0


def _in_worker(path: Path, function: Callable[..., _R], args: tuple[Any, ...], more: dict[str, Any]) -> _R:
    idle = _idle.setdefault(os.getpid(), LifoQueue())
    try:
        worker = idle.get_nowait()
    except Empty:
        worker = _start()
    assert worker.stdin and worker.stdout
    try:
        pickle.dump((function, args, more), worker.stdin)
        worker.stdin.flush()
        well, answer = _Answer(worker.stdout).load()
    except (OSError, EOFError, pickle.UnpicklingError):
        worker.kill()
        raise CorruptImage(f"{path}: {_end(worker.wait())}: send the picture again") from None
    except BaseException:  # an answer may still come, for a question that nobody asks any more
        worker.kill()
        worker.wait()
        raise
    idle.put(worker)
    if well:
        return answer
    raise answer


class _Answer(pickle.Unpickler):
    """Values only: a decoder that a hostile picture has taken over answers to us, and must not run code here."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] in ("mm_core", "builtins", "pathlib") or (module, name) in ARRAYS:
            found = super().find_class(module, name)
            if (module, name) in ARRAYS or _is_value(found):
                return found
        raise pickle.UnpicklingError(f"the worker answered with {module}.{name}")


def _is_value(kind: Any) -> bool:
    """Whether making one does nothing else: data of our own, errors, paths."""
    return isinstance(kind, type) and (is_dataclass(kind) or issubclass(kind, (Exception, PurePath, Enum)))


def _start() -> subprocess.Popen[bytes]:
    # One thread and one heap: each more would count as memory.
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
    """The worker: answers until its owner is gone."""
    questions = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not fall among the answers
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    work(questions, answers)


def work(questions: BinaryIO, answers: BinaryIO) -> None:
    limited = False
    while True:
        try:
            function, args, more = pickle.load(questions)  # noqa: S301 - our owner's
        except EOFError:
            return
        if not limited:
            _limit_memory()
            limited = True
        signal.alarm(SECONDS)
        try:
            answer = True, function(*args, **more)
        # The boundary of a process: the owner raises it (`safely`), whatever a decoder threw.
        except Exception as error:  # noqa: BLE001
            answer = False, _told(args[0], error)
        signal.alarm(0)
        pickle.dump(answer, answers)
        answers.flush()


def _told(path: Path, error: Exception) -> Exception:
    """The error; a lack of memory, of which every library has its own words, in ours."""
    words = f"{type(error).__name__} {error}".lower()
    if "memory" in words or "allocate" in words:
        return CorruptImage(f"{path}: takes more than {MEMORY >> 30} GiB to decode: send a smaller picture")
    return error


def _limit_memory() -> None:
    """Where the system tells how much there is already; elsewhere time alone is limited."""
    statistics = Path("/proc/self/statm")
    if statistics.exists():
        now = int(statistics.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
