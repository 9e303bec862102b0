"""Notifications to real receivers on loopback: good, failing, silent, gone; signed, tried again, never waited for."""

import base64
import contextlib
import logging
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import patience
import pytest
from patience import until
from pydantic import ValidationError
from standins.receiver import receiver

from kfp_components import errors, notify, request
from kfp_components.cluster.memory import MemoryCluster
from kfp_components.release import Release
from kfp_components.release.record import Failure, Held, Waits
from kfp_components.request import Notification, SecretRef

KEY = "whsec_" + base64.b64encode(bytes(range(32))).decode()
NOW_S = 1_790_000_000.0


def record(**changes: Any) -> Release:
    values: dict[str, Any] = {
        "model": "bge",
        "namespace": "ai-ml",
        "rayservice": "shared",
        "candidate_version": "v2",
        "stable_version": "v1",
        "request": {"options": {"runtime_env": {"env_vars": {"KEY": "hush-hush"}}}},
        "request_digest": "abc",
        "started_unix_s": NOW_S,
        "phase": "canary",
    }
    return Release.model_validate(values | changes)


def told(occasion: request.Occasion, text: str = "all traffic back to v1: it is worse", **changes: Any) -> notify.Message:
    return notify.of_release(occasion, record(**changes), text, NOW_S, {"kfp_run_id": "r-1", "kfp_run_url": "https://kf.example/#/runs/details/r-1"})


def notifier(*wanted: dict[str, Any]) -> notify.Notifier:
    return notify.Notifier([Notification.model_validate(one) for one in wanted], notify.reader(MemoryCluster(), "ai-ml"))


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_a_cloud_event_arrives_whole_and_in_order() -> None:
    with receiver() as got:
        sending = notifier({"url": got.url})
        sending.tell(told("start", "v2 is to replace v1"))
        sending.tell(told("rollback", phase="rolling_back", failure=Failure(error="CanaryFailed", message="worse")))
        assert sending.drain(60) and not sending.undelivered()
    assert got.occasions == ["start", "rollback"]
    assert got.headers[0]["content-type"] == "application/cloudevents+json; charset=utf-8" and "webhook-signature" not in got.headers[0]
    first, last = got.events
    assert first["specversion"] == "1.0" and first["datacontenttype"] == "application/json"
    assert (first["source"], first["subject"], first["type"]) == ("/kfp-serving/ai-ml/bge", "v2", "org.kubeflow.kfp-serving.start")
    assert datetime.fromisoformat(first["time"]) == datetime.fromtimestamp(NOW_S, UTC)
    assert first["id"] != last["id"] and first["data"]["kfp_run_id"] == "r-1"
    assert (last["data"]["phase"], last["data"]["failure"]["error"], last["data"]["stable_version"]) == ("rolling_back", "CanaryFailed", "v1")
    assert b"hush-hush" not in b"".join(got.bodies)


def test_the_same_thing_told_again_has_the_same_id() -> None:
    assert told("rollback").id == told("rollback", phase="rolling_back").id
    assert told("verdict", step_index=1).id != told("verdict", step_index=2).id
    assert told("start").id != told("start", started_unix_s=NOW_S + 1).id
    held = [told("hold", held=Held(error="Inconclusive", message="", since_unix_s=since)).id for since in (1.0, 2.0)]
    assert held[0] != held[1]


@pytest.mark.parametrize(
    ("before", "after", "occasion"),
    [
        ({}, {"phase": "rolling_back"}, "rollback"),
        ({"phase": "promoted"}, {"phase": "rolling_back"}, "rollback"),
        ({"phase": "rolling_back"}, {"phase": "rolled_back"}, None),
        ({}, {"phase": "held"}, "hold"),
        ({"phase": "promoting"}, {"phase": "promoted"}, "promoted"),
        ({"phase": "smoked"}, {}, None),
        ({}, {"step_index": 1}, "verdict"),
        ({}, {"weight_percent": 20.0}, None),
        ({}, {"waits": Waits(before="25 %", until_unix_s=1.0)}, "approval"),
        ({"waits": Waits(before="25 %", until_unix_s=1.0)}, {"waits": Waits(before="25 %", until_unix_s=9.0)}, None),
        ({"waits": Waits(before="25 %", until_unix_s=1.0)}, {"waits": Waits(before="promote", until_unix_s=9.0)}, "approval"),
    ],
)
def test_a_change_of_the_record_is_at_most_one_occasion(before: dict[str, Any], after: dict[str, Any], occasion: str | None) -> None:
    assert notify.occasion_of(record(**before), record(**after)) == occasion


def test_what_smoke_cases_ask_and_expect_stays_in_the_report() -> None:
    said = "1 of 1 smoke case(s) failed: case: POST /embed: expected /diagnosis = 'PRIVATE'"
    found = told("rollback", f"all traffic back to v1: {said}", phase="rolling_back", failure=Failure(error="SmokeFailed", message=said))
    assert "PRIVATE" not in f"{found}" and found.data["message"] == f"all traffic back to v1: {notify.SMOKE_FAILED}"
    assert found.data["failure"] == {"error": "SmokeFailed", "message": notify.SMOKE_FAILED}


def test_slack_takes_its_address_from_a_secret_and_text_stays_text(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver() as got:
        monkeypatch.setenv("SLACK_URL", got.url)
        sending = notifier({"url_from": {"env": "SLACK_URL"}, "format": "slack", "when": ["approval"]})
        sending.tell(told("start", "not wanted"))
        sending.tell(told("approval", "decide: <!channel> & more"))
        assert sending.drain(60) and not sending.undelivered()
    text = "*ai-ml/bge v2*: approval: decide: &lt;!channel&gt; &amp; more (<https://kf.example/#/runs/details/r-1|run>)"
    assert got.events == [{"text": text, "unfurl_links": False, "unfurl_media": False}] and got.headers[0]["content-type"] == "application/json"


def test_an_address_is_in_no_log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Not where everything is logged either: KFP prints what is of INFO, as httpx's line with the address is."""
    with receiver(404) as got, caplog.at_level(logging.DEBUG):
        monkeypatch.setenv("SLACK_URL", f"{got.url}/hush-hush")
        sending = notifier({"url_from": {"env": "SLACK_URL"}, "format": "slack"})
        sending.tell(told("hold"))
        sending.tell(told("rollback"))
        assert sending.drain(60) and len(got.paths) == 2
        httpx.get(got.url)
    assert "hush-hush" not in caplog.text and "hold not delivered" in caplog.text
    assert any(record.name == "httpx" for record in caplog.records), "what others send is logged as before"


def test_the_signature_is_that_of_standard_webhooks() -> None:
    """The example that its implementations test themselves with."""
    body, key = b'{"test": 2432232314}', "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    headers = notify.sign(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_it_is_signed_and_a_changed_or_late_body_is_found(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY + "\n")
    with receiver() as got:
        sending = notifier({"url": got.url, "sign_with": {"file": str(tmp_path / "key")}})
        sending.tell(told("promoted"))
        assert sending.drain(60)
    (body,), (headers,) = got.bodies, got.headers
    assert notify.verify(KEY, headers, body) and headers["webhook-id"] == got.events[0]["id"]
    assert not notify.verify(KEY, headers, body + b" ")
    assert not notify.verify("whsec_" + base64.b64encode(bytes(32)).decode(), headers, body)
    assert not notify.verify(KEY, headers, body, now_unix_s=int(headers["webhook-timestamp"]) + notify.TOLERANCE_S + 1)
    assert not notify.verify(KEY, headers | {"webhook-timestamp": "soon"}, body) and not notify.verify(KEY, {}, body)


def test_what_may_pass_is_tried_again_and_what_will_not_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with receiver(503, 429) as passing, receiver(404) as wrong, receiver(302) as moved:
        sending = notifier(*({"url": got.url} for got in (passing, wrong, moved)))
        with caplog.at_level(logging.WARNING, logger="kfp_components.notify"):
            sending.tell(told("hold"))
            assert sending.drain(60)
    assert passing.occasions == ["hold"] and len(passing.paths) == 3
    assert len(wrong.paths) == len(moved.paths) == 1 and moved.paths == ["/hook"]
    said = ["notify.1: hold not delivered: 127.0.0.1 answers 404", "notify.2: hold not delivered: 127.0.0.1 answers 302"]
    assert sorted(sending.undelivered()) == said == sorted(caplog.messages)
    assert not sending.undelivered(), "each is said once"


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The rest of the address is a secret, and is in no message."""
    monkeypatch.setenv("HOOK", f"http://127.0.0.1:{closed_port()}/services/hush-hush")
    sending = notifier({"url_from": {"env": "HOOK"}, "give_up_after_s": 0.5})
    sending.tell(told("rollback"))
    assert sending.drain(60)
    assert sending.undelivered() == ["notify.0: rollback not delivered: 127.0.0.1: ConnectError"] and "hush-hush" not in caplog.text


def test_a_silent_receiver_holds_nobody_up_and_its_queue_is_bounded() -> None:
    with receiver(opened=False) as got:
        sending = notifier({"url": got.url, "timeout_s": 60})
        for _ in range(notify.QUEUE + 3):
            sending.tell(told("verdict"))
        assert got.asked.wait(60) and not got.bodies, "all were told while the first is not answered yet"
        assert sending.undelivered() == [f"notify.0: verdict not delivered: {notify.QUEUE} others wait already"] * 3
        assert not sending.drain(0)
        got.open.set()
        assert sending.drain(60) and len(got.bodies) == notify.QUEUE


def test_who_answers_byte_by_byte_is_cut_off() -> None:
    """Each byte comes in time, the answer never."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.sendall(b"HTTP/1.1 200 OK\r\nx-never: ")
                        while not over.wait(0.05):
                            connection.sendall(b"x")

        threading.Thread(target=drip, daemon=True).start()
        sending = notifier({"url": f"http://127.0.0.1:{listening.getsockname()[1]}/hook", "timeout_s": 1, "give_up_after_s": 2})
        sending.tell(told("start"))
        try:
            assert sending.drain(patience.seconds(20)), "it is waited for as long as it drips"
        finally:
            over.set()
    assert sending.undelivered() == ["notify.0: start not delivered: 127.0.0.1: no answer within 1 s"]


def test_those_behind_a_slow_one_do_not_begin_to_wait_anew() -> None:
    give_up_s = patience.seconds(0.5)
    with receiver(opened=False) as got:
        sending = notifier({"url": got.url, "timeout_s": 60, "give_up_after_s": give_up_s})
        for occasion in ("start", "rollback", "promoted"):
            sending.tell(told(occasion))  # type: ignore[arg-type]
        began = time.monotonic()
        assert got.asked.wait(60)
        until(lambda: time.monotonic() - began > give_up_s, "their time to be over")
        got.open.set()
        assert sending.drain(60)
    assert got.occasions == ["start"]
    assert sending.undelivered() == [f"notify.0: {occasion} not delivered: its turn came too late" for occasion in ("rollback", "promoted")]


def test_a_secret_of_the_namespace_holds_address_and_key() -> None:
    cluster = MemoryCluster()
    cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ai-ml"}})
    with receiver() as got:
        data = {name: base64.b64encode(value.encode()).decode() for name, value in {"url": got.url, "key": KEY, "short": "c2hvcnQ="}.items()}
        cluster.create({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "kfp-serving-notify", "namespace": "ai-ml"}, "data": data})
        read = notify.reader(cluster, "ai-ml")

        def of(key: str, sign: str = "key") -> Notification:
            told = {"url_from": {"secret": "kfp-serving-notify", "key": key}, "sign_with": {"secret": "kfp-serving-notify", "key": sign}}
            return Notification.model_validate(told)

        notify.check([of("url")], read)
        sending = notify.Notifier([of("url")], read)
        sending.tell(told("start"))
        assert sending.drain(60) and notify.verify(KEY, got.headers[0], got.bodies[0])
        for wanted, said in (
            (of("gone"), r"notify.0: Secret kfp-serving-notify, key gone: it is not there or empty"),
            (of("key"), r"notify.0: Secret kfp-serving-notify, key key: it is no address of a webhook"),
            (of("url", "short"), r"notify.0: Secret kfp-serving-notify, key short: it is not base64 of at least 16 bytes"),
        ):
            with pytest.raises(errors.InputError, match=said) as caught:
                notify.check([wanted], read)
            assert KEY not in str(caught.value) and got.url not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "give either url or url_from"),
        ({"url": "https://a.example", "url_from": {"env": "A"}}, "give either url or url_from"),
        ({"url": "http://hooks.example/x"}, "no address of a webhook"),
        ({"url": "file:///etc/passwd"}, "no address of a webhook"),
        ({"url": "https://me:pass@hooks.example/x"}, "carries a credential"),
        ({"url": "https://hooks.example/x?token=abc"}, "carries a credential"),
        ({"url": "https://hooks.slack.example/services/T/B/x", "format": "slack"}, "give url_from"),
        ({"url": "https://a.example", "when": ["finished"]}, "'promoted' or 'decay'"),
        ({"url": "https://a.example", "when": []}, "at least 1"),
        ({"url_from": {"env": "A", "file": "/b"}}, "give env, or file, or secret and key"),
        ({"url_from": {"secret": "a"}}, "give env, or file, or secret and key"),
        ({"url_from": {"key": "a"}}, "give env, or file, or secret and key"),
        ({"url_from": {"file": "relative"}}, "pattern"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Notification.model_validate(given)


def test_addresses_within_the_cluster_need_no_tls() -> None:
    for url in ("http://argo-events.tools.svc.cluster.local:12000/bge", "http://hooks.ai-ml.svc/x", "http://[::1]:9/x", "https://hooks.example"):
        assert Notification.model_validate({"url": url}).url == url


def test_a_reference_is_named_and_what_it_holds_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read = notify.reader(MemoryCluster(), "ai-ml")
    monkeypatch.delenv("NOT_SET", raising=False)
    for reference, said in (
        (SecretRef(env="NOT_SET"), "environment variable NOT_SET: it is not there or empty"),
        (SecretRef(file=str(tmp_path / "none")), "it cannot be read here"),
        (SecretRef(secret="gone", key="url"), "Secret gone, key url: it is not there or empty"),
    ):
        with pytest.raises(errors.NotFound, match=said):
            read(reference)


PROCESS = """
import sys
from kfp_components import notify
from kfp_components.request import Notification

sending = notify.Notifier([Notification(url=sys.argv[1], timeout_s=60)])
sending.tell(notify.message("start", "ai-ml", "bge", "v2", "bye", 0.0, {}, ["start"]))
sys.exit(4)
"""


def test_a_process_ends_when_its_messages_are_sent() -> None:
    with receiver(opened=False) as got, subprocess.Popen([sys.executable, "-c", PROCESS, got.url]) as process:
        assert got.asked.wait(60) and process.poll() is None
        got.open.set()
        assert process.wait(60) == 4 and got.occasions == ["start"]
