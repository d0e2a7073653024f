"""The verbs of `mm` about deciding and releasing: gate, export, promote, rollback, lineage, reproduce."""

from __future__ import annotations

from typing import Annotated

import typer

from mm_core import stages
from mm_core.errors import InputError
from mm_core.records import write_json
from mm_core.settings import Settings
from mm_core.terminal import Json, layout_and_params, say, table

app = typer.Typer()


@app.command()
def gate(
    action: Annotated[str, typer.Argument(help="Nothing: decide now. show: the recorded verdict.")] = "",
    json_: Json = False,
) -> None:
    """Decides PROMOTE, REJECT or INCONCLUSIVE and records it; a refusal exits with 0."""
    layout, params = layout_and_params()
    if action not in ("", "show"):
        raise InputError(f"mm gate {action}: unknown; use `mm gate` or `mm gate show`")
    if not action:
        return say(stages.gate(params, layout), json_)
    verdict = stages.recorded_verdict(layout)
    if json_:
        return say(verdict.model_dump(), True)
    typer.echo(
        f"{verdict.decision} ({verdict.basis}): {verdict.candidate[:12]} against {(verdict.champion or 'none')[:12]}"
    )
    for reason in verdict.reasons:
        typer.echo(f"  {reason}")
    typer.echo("\n" + table([cell.model_dump() for cell in verdict.cells]))


@app.command()
def export(
    if_promoted: Annotated[bool, typer.Option("--if-promoted", help="A refusal is recorded, not an error.")] = False,
    json_: Json = False,
) -> None:
    """Assembles the mobile bundle of a candidate whose recorded verdict is PROMOTE."""
    layout, params = layout_and_params()
    verdict = stages.recorded_verdict(layout)
    if if_promoted and verdict.decision != "PROMOTE":
        refusal = {"exported": False, "verdict": verdict.decision, "reasons": verdict.reasons}
        write_json(layout.cycle_bundle / "export.json", refusal)
        return say(refusal, json_)
    say(stages.export(params, layout), json_)


@app.command()
def promote(json_: Json = False) -> None:
    """Moves the MLflow alias `champion` to the exported candidate; refuses without a recorded PROMOTE."""
    layout, params = layout_and_params()
    say(stages.promote(params, layout), json_)


@app.command()
def lineage(version: Annotated[str, typer.Argument(help="Registry version.")]) -> None:
    """The samples, labels, params, code and seeds behind a model."""
    from mm_core.export.lineage import lineage as trace

    say(trace(Settings.from_env(), version), True)
