"""Verbs of `mm` for gate and release: gate, export, promote, rollback, lineage, reproduce."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mm_core.cli.terminal import Json, open_layout, open_run, progress_bars, run_with_bars, say, table
from mm_core.cli.words import lineage_report
from mm_core.core.deferred import Deferred
from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.progress import quiet
from mm_core.core.settings import Settings

if TYPE_CHECKING:
    from mm_core import operations, pinned_inputs, stages
    from mm_core.core import records
    from mm_core.eval import simulate, variances
    from mm_core.export import bench, bundle_manifest, signature, trust
    from mm_core.export import bundle as bundles
    from mm_core.export import lineage as lineages
else:
    records = Deferred("mm_core.core.records")
    operations = Deferred("mm_core.operations")
    pinned_inputs = Deferred("mm_core.pinned_inputs")
    stages = Deferred("mm_core.stages")
    simulate = Deferred("mm_core.eval.simulate")
    variances = Deferred("mm_core.eval.variances")
    bench = Deferred("mm_core.export.bench")
    bundles = Deferred("mm_core.export.bundle")
    bundle_manifest = Deferred("mm_core.export.bundle_manifest")
    lineages = Deferred("mm_core.export.lineage")
    signature = Deferred("mm_core.export.signature")
    trust = Deferred("mm_core.export.trust")

app = typer.Typer()
Unsigned = Annotated[
    bool, typer.Option("--unsigned", help="Accept a bundle that the key of MM_VERIFY_KEY did not sign.")
]
EvalPhotos = Annotated[list[int], typer.Option(min=2, help="Number of eval photos per category; may be repeated.")]
gate_app = typer.Typer()
app.add_typer(gate_app, name="gate")


@gate_app.callback(invoke_without_command=True)
def gate(context: typer.Context, json_: Json = False) -> None:
    """Decide PROMOTE, REJECT or INCONCLUSIVE, and record the verdict.

    A refusal exits with 0.
    """
    # `mm gate` alone decides; its sub-commands only read or measure.
    if context.invoked_subcommand is None:
        run = open_run()
        say(stages.gate(run), json_)


@gate_app.command("show")
def gate_show(json_: Json = False) -> None:
    """Show the recorded verdict, cell by cell."""
    verdict = pinned_inputs.recorded_verdict(open_layout())
    if json_:
        return say(verdict.model_dump(), True)
    typer.echo(
        f"{verdict.decision} ({verdict.basis}): {verdict.candidate[:12]} against {(verdict.champion or 'none')[:12]}"
    )
    for reason in verdict.reasons:
        typer.echo(f"  {reason}")
    # One line per cell: category, metric, reference, gain and bounds.
    typer.echo("\n" + table([cell.model_dump() for cell in verdict.cells]))


@gate_app.command("simulate")
def gate_simulate(
    runs: Annotated[int, typer.Option(min=1, help="Number of simulated retrainings per line.")] = 200,
    photos: EvalPhotos = [60, 150],  # noqa: B006
    burst: Annotated[int, typer.Option(min=1, help="Number of photos per scene, used without an evaluation.")] = 1,
    retraining: Annotated[
        float, typer.Option(min=0.0, help="Spread of a retrained model's log error, used without an evaluation.")
    ] = 0.25,
    json_: Json = False,
) -> None:
    """Estimate how often this gate promotes no-ops, regressions and gains.

    The gate is that of params.yaml. The photos that it needs are estimated too.
    The noise of photos and models is that of the last evaluation, where there is one.
    """
    run = open_run()
    pairs, source = variances.last_pairs(run.layout)
    # Real pairs describe the noise better than the formula and its options.
    world = simulate.World(pairs=pairs) if pairs else simulate.World(burst=burst, retraining=retraining)
    asked = partial(
        simulate.characteristics, run.params.gate, world, runs, photos=tuple(photos), gains=simulate.cases()
    )
    # Without real pairs the spread per category is unknown.
    needed = variances.photos_needed(run.params.gate, pairs) if pairs else []
    if json_:
        with progress_bars() as progress:
            rows = list(asked(progress=progress))
        return say({"runs": runs, "noise": source, "rows": rows, "photos_needed": needed}, True)
    typer.echo(f"noise: {source}\nshare of {runs} retrainings promoted, ± {100 * simulate.most_off(runs):.0f} points\n")
    # A line takes seconds, so each is printed as soon as it is known.
    width = max(map(len, simulate.cases()))
    typer.echo("  ".join([f"{'case':{width}}", "photos", *(f"{rule:>9}" for rule in simulate.RULES)]))
    for row in asked(progress=quiet):
        shares = [f"{row[rule]:>9.3g}" for rule in simulate.RULES]
        typer.echo("  ".join([f"{row['case']:{width}}", f"{row['photos']:>6}", *shares]))
    if needed:
        typer.echo(f"\neval photos with which all six pass in 80 % of cases\n\n{table(needed)}")


@gate_app.command("noise")
def gate_noise(
    seeds: Annotated[int, typer.Option(help="Number of trainings, at least 3.")] = 3,
    json_: Json = False,
) -> None:
    """Train this cycle's snapshot with other seeds, to measure the spread.

    A verdict warns of gains within the spread of the scores.
    """
    with run_with_bars() as run:
        say(operations.seed_noise(run, seeds=seeds), json_)


@gate_app.command("crossfit")
def gate_crossfit(
    folds: Annotated[int, typer.Option(help="Number of trainings, at least 2.")] = 3,
    json_: Json = False,
) -> None:
    """Judge a first model with too few eval photos by cross-fitting.

    The verdict is for `mm predict --model candidate` alone.
    """
    with run_with_bars() as run:
        say(operations.crossfit(run, folds=folds), json_)


@app.command()
def export(
    if_promoted: Annotated[bool, typer.Option("--if-promoted", help="Record a refusal instead of failing.")] = False,
    json_: Json = False,
) -> None:
    """Assemble the mobile bundle of a candidate with a recorded PROMOTE."""
    run = open_run()
    verdict = pinned_inputs.recorded_verdict(run.layout)
    # A pipeline needs an output file even if the gate rejects the candidate.
    if if_promoted and verdict.decision != "PROMOTE":
        refusal = {"exported": False, "verdict": verdict.decision, "reasons": verdict.reasons}
        records.write_json(run.layout.cycle_bundle / "export.json", refusal)
        return say(refusal, json_)
    say(stages.export(run), json_)


@app.command()
def promote(
    version: Annotated[
        str, typer.Argument(help="Model to promote: candidate, or with --override a registry version.")
    ] = "candidate",
    override: Annotated[
        str | None,
        typer.Option("--override", metavar="REASON", help="Reason to promote against the gate; needs MM_SIGNING_KEY."),
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=90, help="Number of days that an override holds.")] = 7,
    json_: Json = False,
) -> None:
    """Make the exported candidate the champion.

    Without a recorded PROMOTE this needs a signed override.
    """
    run = open_run()
    if override is not None:
        return say(stages.override(run, version, reason=override, days=days), json_)
    # A registered version returns by a rollback or an override, not by a plain promotion.
    if version != "candidate":
        raise InputError(
            f"mm promote {version}: an earlier version returns by `mm rollback {version}`, or give --override"
        )
    say(stages.promote(run), json_)


@app.command()
def rollback(
    version: Annotated[
        str | None, typer.Argument(help="Registry version of an earlier champion.", show_default="the one before")
    ] = None,
    reason: Annotated[str, typer.Option(help="Reason for the history.")] = "",
    json_: Json = False,
) -> None:
    """Make an earlier champion the champion again."""
    run = open_run()
    say(operations.rollback(run, version, reason=reason), json_)


@app.command()
def anchor(
    version: Annotated[str, typer.Argument(help="Registry version of the present or a former champion.")],
    reason: Annotated[str, typer.Option(help="Reason for the history.")] = "",
    json_: Json = False,
) -> None:
    """Choose the model that no later candidate may fall behind."""
    run = open_run()
    say(operations.anchor(run, version, reason=reason), json_)


@app.command()
def keys(path: Annotated[Path, typer.Argument(help="File of the new private key.")], json_: Json = False) -> None:
    """Make a key to sign bundles and overrides with.

    PATH is the private key (mode 0600), PATH.pub the public one.
    """
    open_layout().require_free(path, "name another file")
    say({"key": signature.make_keys(path), "private": str(path), "public": f"{path}.pub"}, json_)


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle.")],
    unsigned: Unsigned = False,
    json_: Json = False,
) -> None:
    """Check signature, digests and golden pairs of a bundle.

    The signature is checked if MM_VERIFY_KEY is set. Golden pairs are computed in a fresh process.
    """
    # The signature is checked before any model of the bundle is run.
    trust.require_bundle(bundle, Layout(Settings.from_env()).bundles)
    bundle_manifest.read_manifest(bundle)
    signer, warning = trust.check_signer(bundle / "manifest.json", unsigned=unsigned)
    bundle_manifest.checked_manifest(bundle)
    # The golden pairs are predicted in a fresh process.
    checked = bundles.verify(bundle)
    _warn(warning)
    say({"signed_by": signer, **({"warning": warning} if warning else {}), **checked}, json_)


@app.command("bench-bundle")
def bench_bundle(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle.")],
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            help="Runtime to measure: onnx, executorch, litert, or onnxruntime-web; may be repeated.",
            show_default="all",
        ),
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Number of threads; may be repeated.", show_default="1, 2, 4, … up to the cores"),
    ] = None,
    unsigned: Unsigned = False,
    json_: Json = False,
) -> None:
    """Measure a bundle in each runtime, and pick this device's fastest.

    The bundle is checked first. The number of threads is chosen too.
    """
    run = open_run()
    # A run above these limits is selected only if no other run exists.
    limits = run.params.export.limits
    report = bench.bench_bundle(
        run.layout, bundle, limits, runtimes=runtime or (), threads=threads or (), unsigned=unsigned
    )
    _warn(str(report.facts.get("warning", "")))
    say(report, json_)


def _warn(text: str) -> None:
    if text:
        typer.secho(f"mm: WARNING: {text}", err=True, fg=typer.colors.RED, bold=True)


@app.command()
def lineage(version: Annotated[str, typer.Argument(help="Registry version or alias.")], json_: Json = False) -> None:
    """Show the samples, labels, params, code and seeds behind a model."""
    record = lineages.lineage(Settings.from_env(), version)
    say(record if json_ else lineage_report(record), json_)


@app.command()
def reproduce(
    version: Annotated[str, typer.Argument(help="Registry version or alias.")] = "champion", json_: Json = False
) -> None:
    """Train a registered model again from its records, and compare the weights."""
    with run_with_bars() as run:
        say(operations.reproduce(run, version), json_)
