"""A server that runs `mm` commands in forks of one interpreter which has loaded the slow packages.

A new interpreter spends 1 to 3 seconds of processor time on imports, and the stages of a few `dvc repro` are dozens of
them. A fork is a process as real: it has its own arguments, environment, folder, streams and exit code. Tests of
imports, signals and of a first start use `mm` itself.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import NoReturn

PRELOAD = (
    "mm_core.model.preloaded",
    "mm_core.cli.app",
    "mm_core.operations",
    "mm_core.stages",
    "great_expectations",
    "matplotlib.backends.backend_svg",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "onnxruntime.quantization",
    "onnxscript.optimizer",
    "timm",
)
"""What most commands import."""
CLIENT = """#!{python} -ISs
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    call = json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(call).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(call)
    sys.exit(int(server.recv(8) or 137))
"""


@contextmanager
def serve_mm(code: Path) -> Iterator[Path]:
    """Start a server and yield the folder of its `mm`, for PATH; `code` is the folder with the package `mm_core`."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(code)}
    # The path of a socket has at most 104 characters, which those of pytest's folders may exceed.
    with tempfile.TemporaryDirectory(prefix="mm-server-") as folder, socket.socket(socket.AF_UNIX) as listening:
        program, address = Path(folder) / "mm", str(Path(folder) / "socket")
        program.write_text(CLIENT.format(python=sys.executable, address=address))
        program.chmod(0o755)
        listening.bind(address)
        # Commands that come before the imports are done wait in the queue of the socket.
        listening.listen()
        number = listening.fileno()
        command = [sys.executable, __file__, str(number)]
        server = subprocess.Popen(command, cwd=code, env=environment, pass_fds=[number])
        listening.close()  # a server that ended then refuses connections
        try:
            yield Path(folder)
        finally:
            server.kill()  # it has nothing to save; SIGTERM is ignored where the tests run with SIGINT ignored
            server.wait()


def _serve(listening: socket.socket) -> None:
    """Run each command in a fork; return only in a fork, with the command's arguments, folder and streams in place."""
    while True:
        caller, _ = listening.accept()
        if os.fork():
            caller.close()
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG) != (0, 0):
                    pass
            continue
        listening.close()
        if command := os.fork():
            _, status = os.waitpid(command, 0)
            code = os.waitstatus_to_exitcode(status)
            # A shell reports a process that a signal killed as 128 and the signal's number.
            caller.sendall(str(code if code >= 0 else 128 - code).encode())
            os._exit(0)
        _take_over(caller)
        return


def _take_over(caller: socket.socket) -> None:
    size, streams, _, _ = socket.recv_fds(caller, 8, 3)
    length, call = int.from_bytes(size, "big"), b""
    while len(call) < length:
        call += caller.recv(length - len(call))
    caller.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    # The streams of the server know properties of its own files, such as a position.
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", buffering=1 if os.isatty(1) else -1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    sys.argv, folder, environment = json.loads(call)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)


def _run() -> NoReturn:
    """Run the command as an interpreter does, and end without the destructors of C++ libraries.

    ONNX Runtime's would wait for a thread that exists in the server only.
    """
    code: object = 1
    try:
        import_module("mm_core.cli").main()
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001  the last place that can report it
        traceback.print_exc()
    if isinstance(code, str):
        print(code, file=sys.stderr)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # as PYTHONPATH has it; this file's folder holds modules with common names
    for module in PRELOAD:
        import_module(module)
    _serve(socket.socket(fileno=int(sys.argv[1])))
    _run()
