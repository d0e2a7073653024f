"""Is a promotion that dies anywhere completed by the next call? 200 processes killed with SIGKILL.

    python benchmarks/promotion_kills.py --kills 200

A child promotes an exported candidate over a champion (real MLflow on sqlite, real bundle) and is killed at a random
moment; some workspaces are killed several times before the next whole run. Afterwards registry, bundle folder
and history must equal the undisturbed ones. Writes benchmarks/promotion_kills.md.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "export"))

from export_cycle import (  # noqa: E402  # pyright: ignore[reportMissingImports]
    PARAMS,
    clone,
    fill_catalog,
    layout_at,
    trained_net,
    verdict_of,
    write_models,
)

from mm_core import stages  # noqa: E402
from mm_core.core.layout import TRAIN_STAGES, Layout  # noqa: E402
from mm_core.core.records import sha256_file  # noqa: E402
from mm_core.export.registry import NAME, Registry  # noqa: E402
from mm_core.pinned_inputs import Run  # noqa: E402

MOVING = ("code_revision", "provenance", "bundle_source")


def prepare(root: Path) -> Layout:
    """A champion, and a second candidate with a recorded PROMOTE and its bundle that is not promoted."""
    layout = layout_at(root / "data")
    fill_catalog(layout, per_category=3)
    stages.pin_inputs(Run(PARAMS, layout))
    stages.snapshot(Run(PARAMS, layout))
    layout.split.mkdir(parents=True)
    for name in ("simple", "hard"):
        shutil.copyfile(layout.snapshot / "train_labeled.parquet", layout.split / f"{name}.parquet")
    net = trained_net()
    for seed in (0, 1):
        champion = sha256_file(layout.model(TRAIN_STAGES[-1])) if seed else None
        write_models(layout, net, seed=seed)
        stages.evaluate(Run(PARAMS, layout))
        verdict_of(layout, champion=champion)
        stages.export(Run(PARAMS, layout))
        if not seed:
            release(layout)
    return layout


def release(layout: Layout) -> None:
    stages.promote(Run(PARAMS, layout))


def state(layout: Layout) -> dict:
    """Everything that a release writes, but for times and measured latencies."""
    registry = Registry(layout.settings)
    model = registry._model()
    assert model is not None
    versions = registry._client.search_model_versions(f"name = '{NAME}'")
    return {
        "aliases": {alias: str(v) for alias, v in sorted(model.aliases.items())},
        "versions": {str(v.version): {k: t for k, t in v.tags.items() if k not in MOVING} for v in versions},
        "moves": [{k: move[k] for k in ("n", "kind", "from", "to", "why")} for move in registry.history()],
        "bundles": sorted(path.name for path in layout.bundles.iterdir() if path.name != ".lock"),
    }


def run_and_kill(layout: Layout, after: float) -> bool:
    """Whether the child died of our kill (False: it had finished before)."""
    child = os.fork()
    if not child:
        code = 1
        try:
            release(layout)
            code = 0
        finally:
            os._exit(code)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    args = parser.parse_args()
    rng, counts = random.Random(0), Counter()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        base = prepare(root / "base")
        release(clone(base, root / "warm"))
        whole = clone(base, root / "whole")
        start = time.perf_counter()
        release(whole)
        seconds = time.perf_counter() - start
        wanted, places = state(whole), Counter()
        gc.collect()
        while counts["kills"] < args.kills:
            # A name of its own: MLflow keeps connections to databases that it has seen.
            layout = clone(base, root / f"killed{counts['workspaces']}")
            for _ in range(rng.choice((1, 1, 1, 2, 3))):
                counts["kills"] += run_and_kill(layout, rng.uniform(0, 1.05 * seconds))
            found = state(layout)
            places["version registered" if len(found["versions"]) == len(wanted["versions"]) else "no version yet"] += 1
            places["champion moved" if found["aliases"] == wanted["aliases"] else "champion not yet"] += 1
            agree = found["aliases"]["champion"] == found["moves"][-1]["to"]
            release(layout)
            counts["workspaces"] += 1
            counts["history agreed at once"] += agree
            counts["equal after the next call"] += state(layout) == wanted
            shutil.rmtree(layout.root)
            print(f"\r{dict(counts)}  ", end="", file=sys.stderr)
    lines = f"""# Promotions killed at random moments

Runner: `benchmarks/promotion_kills.py`, {platform.machine()}, Python {platform.python_version()}, MLflow on sqlite
in a folder. An undisturbed promotion took {seconds:.1f} s; children were killed with SIGKILL after a uniform
share of that.

| | |
|---|---|
| kills that hit a running child | {counts["kills"]} |
| workspaces (one to three tries each) | {counts["workspaces"]} |
| history and alias `champion` agreed right after the kill | {counts["history agreed at once"]} |
| registry, bundles and history equal the undisturbed ones after the next call | {counts["equal after the next call"]} |

Found after the kills: {", ".join(f"{place}: {n}" for place, n in sorted(places.items()))}.
"""
    (HERE / "promotion_kills.md").write_text(lines)


if __name__ == "__main__":
    main()
