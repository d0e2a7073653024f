"""torchvision, and what needs it, can be imported beside this torch; asking twice is harmless."""

from __future__ import annotations

import subprocess
import sys

BEGIN = "import sys\nfrom mm_core.model.torchvision_shim import ensure_torchvision as ensure\nensure(); ensure()\n"


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", BEGIN + code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_fresh_process_can_import_what_needs_torchvision():
    run("import torchvision, timm, open_clip\ntorchvision.transforms.Resize(8)\n")


def test_the_compiler_is_imported_when_something_compiles():
    run(
        "import timm, torch\n"
        "model = timm.create_model('test_efficientnet').eval()\n"
        "image = torch.ones(1, 3, 64, 64)\n"
        "first = model(image)\n"
        "assert 'torch._dynamo' not in sys.modules\n"
        "assert torch.equal(torch.compile(model, backend='eager')(image), first)\n"
        "assert sys.modules['torch._dynamo'].is_compiling() is False\n"
    )


def test_a_function_that_timm_excludes_from_compilation_runs_and_stays_excluded():
    run(
        "import torch\n"
        "from mm_core.model.torchvision_shim import _disable_compiler\n"
        "excluded = _disable_compiler(lambda x: torch.compiler.is_compiling())\n"
        "assert excluded(1) is False\n"
        "assert torch.compile(lambda x: (x + 1, excluded(x)), backend='eager')(torch.ones(1))[1] is False\n"
    )
