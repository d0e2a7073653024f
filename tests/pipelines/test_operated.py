"""With nobody touching it: a drop arrives on S3, enough labels start a cycle, the gate decides, people are told.

PostgreSQL under Dagster and MLflow, S3 over HTTP, the real daemon, sensors and run processes.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from playwright.sync_api import Browser

from mm_core.core.params import Params
from mm_core.core.records import ALL_CATEGORIES, Verdict
from pipelines.definitions import defs
from samplegen import write_drop
from tests.pipelines.conftest import TINY
from tests.pipelines.operated import PROJECT, Operated, wait

pytestmark = pytest.mark.timeout(1800)
PICTURES = os.environ.get("MM_SCREENSHOTS")
"""The folder for the pictures that docs/dagster-*.png are made of."""
ENDED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)


@pytest.fixture(scope="module")
def operated(postgres: str, s3_address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operated]:
    root = tmp_path_factory.mktemp("operated")
    made = Operated(root, postgres, s3_address)
    gate = {"gate.floors": {"mse": 1.0}, "gate.alpha": 0.4}
    (root / "params.yaml").write_text(Params().with_values(**(TINY | gate)).to_yaml())
    try:
        for name in ("mlflow", "code"):
            made.start(name)
        for name in ("mlflow", "code"):
            made.answers(name)
        made.start("daemon")
        yield made
    finally:
        made.stop()


def runs(instance: dg.DagsterInstance, job: str) -> list[dg.DagsterRun]:
    return instance.get_runs(dg.RunsFilter(job_name=job))


@pytest.fixture(scope="module")
def history(operated: Operated) -> Iterator[dg.DagsterInstance]:
    """Of an installation that was given two drops with 49 labels and then left alone until its cycle had ended."""
    inbox = operated.root / "made"
    with operated.instance() as instance:
        for batch, each, role, seed in (("eval", 3, "eval", 1), ("w01", 4, "train", 2)):
            counts = dict.fromkeys(ALL_CATEGORIES, each)
            drop = write_drop(inbox, "pixel_labeled", batch, counts, seed=seed, size=64, role=role)
            operated.upload(drop, inbox)

        def ended() -> bool:
            return any(run.status in ENDED for run in runs(instance, "retrain"))

        wait(ended, "a cycle to end", 1500, operated)
        wait(lambda: any(m.get("job") == "retrain" for m in operated.webhook.got), "a message", 120, operated)
        yield instance


def test_drops_become_a_verdict(history: dg.DagsterInstance, operated: Operated) -> None:
    arrived = runs(history, "arrivals")
    assert {run.tags["dagster/partition"] for run in arrived} == {"pixel_labeled/eval", "pixel_labeled/w01"}
    (cycle,) = runs(history, "retrain")
    assert [run.status.value for run in (*arrived, cycle)] == ["SUCCESS"] * 3
    assert cycle.tags["dagster/sensor_name"] == "new_labels" and cycle.tags["matting/new_labels"] == "49"
    verdict = Verdict.model_validate_json(operated.layout.verdict.read_text())
    assert verdict.decision == "PROMOTE", verdict.reasons


def test_the_registry_and_the_bundle_are_where_they_belong(history: dg.DagsterInstance, operated: Operated) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(operated.environment["MLFLOW_TRACKING_URI"])
    champion = client.get_model_version_by_alias("matting", "champion")
    verdict = Verdict.model_validate_json(operated.layout.verdict.read_text())
    assert champion.tags["model_digest"] == verdict.candidate
    digest = verdict.candidate
    operated.client().head_object(Bucket=operated.bucket, Key=f"store/blobs/{digest[:2]}/{digest[2:4]}/{digest}")
    artifacts = operated.client().list_objects_v2(Bucket=operated.bucket, Prefix="mlflow/")
    assert any(item["Key"].endswith("report.html") for item in artifacts["Contents"])
    assert not (operated.layout.root / "mlflow" / "mlflow.db").exists()
    (bundle,) = [path for path in operated.layout.bundles.iterdir() if path.is_dir()]
    assert (bundle / "manifest.json").is_file()


def test_people_were_told(history: dg.DagsterInstance, operated: Operated) -> None:
    (told,) = [message for message in operated.webhook.got if message.get("job") == "retrain"]
    assert "version 1 is champion" in told["text"]


def test_how_far_training_is_can_be_seen_in_the_run(history: dg.DagsterInstance) -> None:
    (cycle,) = runs(history, "retrain")
    observed = history.all_logs(cycle.run_id, of_type=dg.DagsterEventType.ASSET_OBSERVATION)
    said = {}
    for entry in observed:
        event = entry.get_dagster_event()
        said.setdefault(event.asset_key.path[0], []).append(event.asset_observation_data.asset_observation)
    assert {"train_simple", "train_hard", "train_semi", "train_multimodal"} <= set(said)
    last = [one for one in said["train_simple"] if one.metadata["work"].value == "train simple"][-1]
    assert ", epoch " in last.description
    assert last.metadata["epoch"].value > 0 and last.metadata["loss/bce"].value > 0


def test_a_backfill_takes_batches_again_and_changes_nothing(history: dg.DagsterInstance, operated: Operated) -> None:
    command = [Path(sys.executable).parent / "dagster", "job", "backfill", "--noprompt", "--all", ""]
    command = [*command[:-2], "-w", operated.root / "workspace.yaml", "-j", "arrivals", "--all", "all"]
    subprocess.run([str(c) for c in command], env=operated.environment, cwd=PROJECT, check=True, capture_output=True)
    again = [run for run in runs(history, "arrivals") if "dagster/backfill" in run.tags]
    assert {run.tags["dagster/partition"] for run in again} == {"pixel_labeled/eval", "pixel_labeled/w01"}

    def ended() -> bool:
        return all(run.status in ENDED for run in runs(history, "arrivals"))

    wait(ended, "the backfill to end", 200, operated)
    assert all(run.status is dg.DagsterRunStatus.SUCCESS for run in runs(history, "arrivals"))
    assert len(runs(history, "retrain")) == 1, "no label was new"


@pytest.fixture
def page(operated: Operated, browser: Browser) -> Iterator[Any]:
    """Dagster's page in a browser, with the workspace's pages beside it."""
    for name in ("webserver", "pages"):
        operated.start(name)
        operated.answers(name)
    base = f"http://127.0.0.1:{operated.ports['webserver']}"
    with browser.new_context(base_url=base, viewport={"width": 1700, "height": 900}) as context:
        page = context.new_page()
        page.set_default_timeout(120_000)
        yield page


def seen(page: Any, name: str) -> None:
    """Keeps a picture where someone wants those of docs/."""
    if PICTURES:
        page.wait_for_timeout(3000)
        page.screenshot(path=Path(PICTURES) / f"{name}.png")


def test_a_person_sees_the_graph_starts_a_cycle_and_reads_the_report(
    history: dg.DagsterInstance, operated: Operated, page: Any
) -> None:
    page.goto("/asset-groups")
    page.get_by_text("learning").first.wait_for()
    page.keyboard.press("Alt+e")
    graph = defs.resolve_asset_graph()
    left = {}
    for key in graph.get_all_asset_keys():
        name = key.to_user_string()
        box = page.locator("foreignObject").get_by_text(name, exact=True).last
        box.wait_for()
        left[key] = box.bounding_box()["x"]
    assert all(left[above] < left[key] for key in left for above in graph.get(key).parent_keys), "not left to right"
    seen(page, "dagster-graph")

    (cycle,) = runs(history, "retrain")
    page.goto(f"/runs/{cycle.run_id}")
    page.get_by_text("Succeeded (").first.wait_for()
    seen(page, "dagster-retrain")

    page.goto("/locations/pipelines.definitions/jobs/retrain")
    page.get_by_role("button", name="Materialize all").click()
    page.get_by_role("button", name="Confirm").click()  # collected_labels is not there yet
    page.get_by_text("Launched run").wait_for()
    mine = next(run for run in runs(history, "retrain") if run.run_id != cycle.run_id)
    wait(lambda: history.get_run_by_id(mine.run_id).status in ENDED, "the person's cycle to end", 300, operated)
    assert history.get_run_by_id(mine.run_id).status is dg.DagsterRunStatus.SUCCESS
    started = history.all_logs(mine.run_id, of_type=dg.DagsterEventType.STEP_START)
    assert {entry.step_key for entry in started} == {"pinned_inputs"}, "nothing is new: nothing is trained"

    page.goto("/assets/cycle_report")
    link = page.get_by_role("link", name="/reports/").first
    link.wait_for()
    seen(page, "dagster-report")
    with page.context.expect_page() as opened:
        link.click()
    opened.value.wait_for_url("**/reports/**")
    opened.value.wait_for_load_state()
    assert opened.value.title() == "Matting Moments: PROMOTE"


def test_no_secret_is_written_anywhere(history: dg.DagsterInstance, operated: Operated) -> None:
    """Files of the workspace, logs of every process, both databases, every object on S3, every message."""
    written = {str(path): path.read_bytes() for path in operated.root.rglob("*") if path.is_file()}
    assert any("compute_logs" in name or name.endswith(".err") for name in written)
    for name, url in operated.databases.items():
        dump = subprocess.run(["pg_dump", url], capture_output=True, check=True, env=os.environ)
        written[name] = dump.stdout
    client = operated.client()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=operated.bucket):
        for item in page["Contents"]:
            written[item["Key"]] = client.get_object(Bucket=operated.bucket, Key=item["Key"])["Body"].read()
    written["messages"] = repr(operated.webhook.got).encode()
    found = [
        (name, secret[:20]) for name, data in written.items() for secret in operated.secrets if secret.encode() in data
    ]
    assert not found
    # The search finds what is there.
    assert any(operated.bucket.encode() in data for data in written.values())
