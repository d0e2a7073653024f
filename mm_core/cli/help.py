"""Layout of `mm --help`: the verbs in six panels, with an example for each."""

from __future__ import annotations

import typer
from typer.core import TyperGroup

HELP = """Turn photos that keep arriving into better matting models.

Results go to stdout (as one JSON object with `--json`), progress to stderr. Bad input exits with 2 and a remedy.
`mm VERB --help` explains a verb; `mm --install-completion` completes verbs and options in your shell.
"""
OTHER = "Other"
"""Panel of verbs without an entry in `EXAMPLES`; tests/cli/test_cli.py checks that it is empty."""

EXAMPLES: dict[str, dict[str, str]] = {
    "Data": {
        "drop": "mm drop ~/photos --kind unlabeled --batch 2026-w48",
        "ingest": "mm ingest --inbox s3://bucket/inbox",
        "status": "mm status",
        "quarantine": "mm quarantine show 3f2a",
        "browse": "mm browse",
        "export-data": "mm export-data exported --as coco",
        "forget": "mm forget --group wedding-2026",
    },
    "Cycle": {
        "run": "mm run",
        "demo": "mm demo --cycles 1",
        "pin-inputs": "mm pin-inputs",
        "snapshot": "mm snapshot",
        "split": "mm split",
        "train-simple": "mm train-simple",
        "train-hard": "mm train-hard",
        "train-semi": "mm train-semi",
        "train-multimodal": "mm train-multimodal",
        "evaluate": "mm evaluate --truth manifest.csv --pred mattes",
        "gate": "mm gate show",
        "report": "mm report",
    },
    "Labels": {"label": "mm label push"},
    "Release": {
        "rollback": 'mm rollback --reason "halos around hair"',
        "verify": "mm verify data/bundle/3f2a90c1d4e5",
        "export": "mm export",
        "promote": 'mm promote candidate --override "needed on Friday" --days 3',
        "anchor": 'mm anchor 7 --reason "the first model on phones"',
        "keys": "mm keys signing.pem",
        "bench-bundle": "mm bench-bundle data/bundle/3f2a90c1d4e5 --runtime onnx",
        "lineage": "mm lineage 7",
        "reproduce": "mm reproduce champion",
    },
    "Use": {
        "predict": "mm predict holiday.jpg -o out --cutout",
        "compare": "mm compare champion candidate ~/photos",
        "moments": "mm moments ~/photos -o moments",
        "gallery": "mm gallery ~/photos",
        "ui": "mm ui",
    },
    "Care": {
        "backup": "mm backup s3://bucket/backups --keep 8",
        "restore": "MM_WORKSPACE=restored mm restore s3://bucket/backups",
        "check": "mm check --repair",
        "catalog": "mm catalog compact",
        "params": "mm params",
    },
}
"""Panel → verb → example. A panel's title shows its first example."""
SUB_EXAMPLES: dict[str, dict[str, str]] = {
    "quarantine": {
        "list": "mm quarantine list",
        "show": "mm quarantine show 3f2a",
        "accept": 'mm quarantine accept 3f2a --why "the hair is right"',
        "retry": "mm quarantine retry 2026-w48",
    },
    "catalog": {"compact": "mm catalog compact"},
    "label": {
        "serve": "mm label serve --port 8080",
        "push": "mm label push",
        "pull": "mm label pull",
        "value": "mm label value",
        "compare": "mm label compare --seeds 3",
        "status": "mm label status",
        "webhook": "mm label webhook --address http://engine:8081",
    },
    "gate": {
        "show": "mm gate show",
        "simulate": "mm gate simulate --photos 60",
        "noise": "mm gate noise --seeds 3",
        "crossfit": "mm gate crossfit --folds 3",
    },
}
"""Group → verb → example."""


class OrderedGroup(TyperGroup):
    """A command group that lists its verbs in the order of `EXAMPLES`, other verbs last."""

    def list_commands(self, ctx: typer.Context) -> list[str]:
        """Return the names of the verbs in the order of `mm --help`."""
        # Sorting is stable, so unnamed verbs keep their order of registration.
        order = [verb for verbs in EXAMPLES.values() for verb in verbs]
        return sorted(super().list_commands(ctx), key=lambda name: order.index(name) if name in order else len(order))


def arrange(app: typer.Typer) -> None:
    """Set the panel of each verb of `app`, and its example as the last line of its help.

    Call it after all verbs are registered. A panel that a verb sets itself is kept.
    """
    for info in (*app.registered_commands, *app.registered_groups):
        # Typer derives a missing name from the function in the same way.
        name = info.name or getattr(info.callback, "__name__", "").replace("_", "-")
        # The first panel that names the verb; None for an unnamed verb.
        panel = next((title for title, verbs in EXAMPLES.items() if name in verbs), None)
        # Unset options of typer are placeholder objects, not None.
        if not isinstance(info.rich_help_panel, str):
            info.rich_help_panel = _title(panel) if panel else OTHER
        if panel and not isinstance(info.epilog, str):
            info.epilog = _epilog(EXAMPLES[panel][name])
    for group in app.registered_groups:
        for info in group.typer_instance.registered_commands if group.typer_instance else ():
            name = info.name or getattr(info.callback, "__name__", "").replace("_", "-")
            if example := SUB_EXAMPLES.get(group.name or "", {}).get(name):
                info.epilog = _epilog(example)


def _epilog(example: str) -> str:
    return f"Example: {example}"


def _title(panel: str) -> str:
    return f"{panel}: {next(iter(EXAMPLES[panel].values()))}"
