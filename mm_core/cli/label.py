"""`mm label`: tasks for people, out to Label Studio and back."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mm_core.cli.terminal import Json, open_layout, open_run, run_with_bars, say
from mm_core.core.deferred import Deferred
from mm_core.core.errors import InputError

if TYPE_CHECKING:
    from mm_core import operations, stages
else:
    operations = Deferred("mm_core.operations")
    stages = Deferred("mm_core.stages")

# The root of the checkout, which contains the Makefile and `.tools`.
PROJECT = Path(__file__).resolve().parents[2]
app = typer.Typer(
    no_args_is_help=True,
    help="""Send photos that people should label to Label Studio, and take mattes back.

    The server: LABEL_STUDIO_URL with LABEL_STUDIO_API_KEY (a legacy token or a personal access token), else the one
    that `mm label serve` runs on this workspace. Without any, tasks wait in <workspace>/labels/outbox, and JSON exports
    that are put into <workspace>/labels/inbox are read back.""",
)


@app.command()
def serve(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of Label Studio on 127.0.0.1.")] = 8080,
    local_hooks: Annotated[
        bool, typer.Option("--local-hooks", help="Allow calls to `mm label webhook` on this machine.")
    ] = False,
) -> None:
    """Run a Label Studio of this workspace's own, until Ctrl-C.

    It is installed first where it is missing.
    """
    from mm_core.labeling.label_studio_local import LocalServer

    layout = open_layout()
    python = layout.settings.labelstudio_python
    if not python.with_name("label-studio").is_file():
        # Only the default installation in a checkout can be created here.
        if python != PROJECT / ".tools" / "labelstudio" / "bin" / "python" or not (PROJECT / "Makefile").is_file():
            raise InputError(f"{python.with_name('label-studio')} is missing: run `make labelstudio` in the project")
        typer.echo("installing Label Studio (make labelstudio) …", err=True)
        if subprocess.run(["make", "-C", str(PROJECT), "labelstudio"], stdout=sys.stderr).returncode:
            raise InputError("`make labelstudio` failed: see above")
    server = LocalServer(python, layout.label_studio, port, local_hooks)
    # Turn SIGTERM into SystemExit, so that `finally` stops the server.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    typer.echo("starting Label Studio …", err=True)
    try:
        server.start()
        account = server.folder / "account.json"
        typer.echo(f"Label Studio  {server.url}\naccount       e-mail, password and token in {account}\nCtrl-C ends it")
        sys.stdout.flush()
        # Poll the server, because Ctrl-C must be handled in this process.
        while not server.ended:
            time.sleep(0.3)
        raise InputError(f"Label Studio ended by itself: {server.folder / 'log.txt'} says why")
    except KeyboardInterrupt:
        pass
    finally:
        server.stop()


@app.command()
def push(
    choose: Annotated[bool, typer.Option(help="Choose new photos first, or deliver only what waits.")] = True,
    json_: Json = False,
) -> None:
    """Choose photos and deliver their tasks, none twice.

    Each task begins with the champion's matte, or with that of another model before there is a champion.
    """
    with run_with_bars() as run:
        if choose:
            stages.pin_inputs(run)
            # Route new photos first, so that their tasks are sent in the same run.
            report = stages.route(run)
            pushed = stages.push(run)
            report.metrics |= pushed.metrics
            report.facts |= pushed.facts
        else:
            report = stages.push(run)
    say(report, json_)


@app.command()
def pull(json_: Json = False) -> None:
    """Take finished work back as new label versions.

    It comes from the server, and from export files in labels/inbox.
    """
    with run_with_bars() as run:
        # After new labels, the features and the pins of the next cycle are updated.
        report = stages.collect(run)
        stages.structure(run)
    stages.pin_inputs(run)
    say(report, json_)


@app.command()
def value(json_: Json = False) -> None:
    """Show what labels since the champion did to each category.

    These are counts by source, and the error before and after.
    """
    run = open_run()
    say(stages.label_value(run), json_)


@app.command()
def compare(
    seeds: Annotated[
        int | None,
        typer.Option(help="Number of trainings of each side, with all steps.", show_default="label.compare_seeds"),
    ] = None,
    json_: Json = False,
) -> None:
    """Train on routed and on as many random new photos, all else equal.

    `mm report` shows what the choice is worth.
    """
    with run_with_bars() as run:
        say(stages.label_compare(run) if seeds is None else stages.compare_labels(run, seeds=seeds), json_)


@app.command()
def status(json_: Json = False) -> None:
    """Show the server, its project, its tasks and what waits here."""
    run = open_run()
    result = operations.labelling(run)
    if json_:
        return say(result, True)
    if result["server"] is None:
        typer.echo("server: none (set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY, or run `mm label serve`)")
    # Skip values that do not apply, such as the project without a server.
    for name, value in result.items():
        if value is not None:
            typer.echo(f"{name.replace('_', ' ')}: {value}")


@app.command()
def webhook(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the receiver on 127.0.0.1.")] = 8081,
    address: Annotated[
        str, typer.Option(help="Address http(s)://… of this receiver, which is registered at the server.")
    ] = "",
) -> None:
    """Receive Label Studio's calls, until Ctrl-C.

    A call makes Dagster pull at once and not at its next look.
    """
    from mm_core.labeling.label_studio_local import connect
    from mm_core.labeling.webhook import HEADER, receive, webhook_token

    layout = open_layout()
    # The server sends the token in a header, and the receiver rejects calls without it.
    token = webhook_token(layout)
    if address:
        server = connect(layout)
        if server is None:
            raise InputError("mm label webhook --address: no server to register at: set LABEL_STUDIO_URL")
        server.hook(address, {HEADER: token})
    receive(layout, port, token)
