"""What people are told, at a real HTTP server: failures, refusals, promotions, staleness; and never a secret."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.freshness import FreshnessState, FreshnessStateChange

from mm_core.core.errors import InputError
from mm_core.core.settings import secret
from pipelines.definitions import defs
from pipelines.defs.notify import notifications, post
from pipelines.resources import plain_failures
from tests.servers import Receiver


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with Receiver() as server:
        monkeypatch.setenv("MM_WEBHOOK_URL", server.url)
        yield server


@pytest.fixture
def history() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as made:
        yield made


@dg.asset(check_specs=[dg.AssetCheckSpec("promote", asset="gate")], name="gate")
def judged() -> dg.MaterializeResult:
    refusal = dg.AssetCheckResult(check_name="promote", passed=False, description="REJECT; pets: mse fell")
    return dg.MaterializeResult(check_results=[refusal])


@dg.asset
def broken() -> None:
    with plain_failures():
        raise InputError("manifest.csv has no column `image`: add it")


@dg.asset
def promoted_model() -> dg.MaterializeResult:
    return dg.MaterializeResult(metadata={"version": "7"})


@dg.asset
def quiet() -> None: ...


def tick(instance: dg.DagsterInstance, cursor: str | None) -> str:
    """One tick; returns the new cursor."""
    context = dg.build_sensor_context(instance=instance, cursor=cursor, definitions=defs)
    assert isinstance(notifications(context), dg.SkipReason)
    return context.cursor or ""


def test_people_are_told_once_what_needs_them(history: dg.DagsterInstance, receiver: Receiver) -> None:
    dg.materialize([quiet, broken], instance=history, raise_on_error=False)
    cursor = tick(history, None)
    assert receiver.got == [], "what ended before anyone listened is history"
    failed = dg.materialize([broken], instance=history, raise_on_error=False)
    for asset in (quiet, judged, promoted_model):
        dg.materialize([asset], instance=history)
    cursor = tick(history, cursor)
    assert [message["reasons"] for message in receiver.got] == [
        ["broken: manifest.csv has no column `image`: add it"],
        ["gate, promote: REJECT; pets: mse fell"],
        [],
    ]
    assert receiver.got[0]["run"] == failed.run_id and receiver.got[0]["status"] == "FAILURE"
    assert "version 7 is champion" in receiver.got[2]["text"]
    tick(history, cursor)
    assert len(receiver.got) == 3


def test_a_run_that_starts_again_by_itself_is_not_told(history: dg.DagsterInstance, receiver: Receiver) -> None:
    cursor = tick(history, None)
    tags = {"dagster/will_retry": "true"}
    dg.materialize([broken], instance=history, raise_on_error=False, tags=tags)
    tick(history, cursor)
    assert receiver.got == []


def test_no_message_is_lost_or_told_twice_while_the_other_side_is_down(
    history: dg.DagsterInstance, receiver: Receiver
) -> None:
    cursor = tick(history, None)
    for _ in range(3):
        dg.materialize([broken], instance=history, raise_on_error=False)
    receiver.takes = 1
    context = dg.build_sensor_context(instance=history, cursor=cursor, definitions=defs)
    said = notifications(context)
    assert isinstance(said, dg.SkipReason), "Dagster keeps no cursor of a tick that failed"
    assert "1 messages sent; " in (said.skip_message or "") and "HTTP 503" in (said.skip_message or "")
    assert "sEcReT" not in (said.skip_message or "")
    receiver.takes = 100
    tick(history, context.cursor)
    assert len({message["run"] for message in receiver.got}) == len(receiver.got) == 3


def test_what_goes_stale_is_told_once(history: dg.DagsterInstance, receiver: Receiver) -> None:
    cursor = tick(history, None)
    change = FreshnessStateChange(
        key=dg.AssetKey("evaluation"),
        new_state=FreshnessState.FAIL,
        previous_state=FreshnessState.PASS,
        state_change_timestamp=1.0,
    )
    history._report_runless_asset_event(asset_event=change)
    cursor = tick(history, cursor)
    tick(history, cursor)
    (message,) = receiver.got
    assert message["text"].startswith("evaluation is stale")


def test_without_an_address_nobody_is_told(history: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MM_WEBHOOK_URL", raising=False)
    assert not tick(history, None)


def test_the_address_may_lie_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, receiver: Receiver) -> None:
    (tmp_path / "url").write_text(receiver.url + "\n")
    monkeypatch.setenv("MM_WEBHOOK_URL_FILE", str(tmp_path / "url"))
    assert secret("MM_WEBHOOK_URL") == receiver.url
    monkeypatch.setenv("MM_WEBHOOK_URL_FILE", str(tmp_path / "none"))
    with pytest.raises(InputError, match="MM_WEBHOOK_URL_FILE cannot be read"):
        secret("MM_WEBHOOK_URL")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/sEcReT"])
def test_only_http_is_spoken(url: str) -> None:
    with pytest.raises(InputError, match="https") as caught:
        post(url, {"text": "x"})
    assert "sEcReT" not in str(caught.value)


def test_a_malformed_address_is_not_repeated() -> None:
    with pytest.raises(dg.Failure) as caught:
        post("http://127.0.0.1:sEcReT/", {"text": "x"})
    assert "sEcReT" not in str(caught.value)
