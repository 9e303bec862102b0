"""Webhooks that are told how a release goes: CloudEvents 1.0 (JSON, structured mode) or messages as Slack's incoming webhooks take them.

Never in the way: what happened is put into a bounded queue and sent by a thread of its destination, tried again until ``give_up_after_s`` have passed
since it happened. What could not be delivered is said in the log, and in the release's record by the next line that is written there. A process
ends when its queues are empty, at the latest ``give_up_after_s`` and one ``timeout_s`` after its last message; one that is killed takes along what it
had not sent. Whoever tells the same thing again gives it the same ``id``.

Signed where a key is given, as https://www.standardwebhooks.com has it: ``webhook-signature: v1,BASE64`` is the HMAC-SHA256 of ``ID.SECONDS.BODY``.
Receivers have libraries for that in many languages; `verify` is ours. Keys, and addresses that are secrets, are named by reference, read when they
are needed, and stand in no record, message or log.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from kfp_components import errors
from kfp_components.cluster import Cluster, Ref
from kfp_components.release import Release
from kfp_components.request import Notification, Occasion, SecretRef, assert_webhook

QUEUE = 64
"""Messages that wait for one destination; more are dropped, which is said."""
TOLERANCE_S = 300.0
"""Older, or from further in the future, a signature says nothing."""
MOST_WAIT_S = 10.0
SMOKE_FAILED = "it answered smoke cases otherwise than expected; the report of the release says which"

THREADS = "kfp-serving-notify-"
"""How the names of the threads that send begin."""

Read = Callable[[SecretRef], str]


@dataclass(frozen=True)
class Message:
    """What happened. ``id`` is the same whenever the same thing is told; ``source``, ``subject`` and ``type`` as CloudEvents has them."""

    id: str
    occasion: Occasion
    unix_s: float
    source: str
    subject: str
    text: str
    data: Mapping[str, Any]

    @property
    def type(self) -> str:
        """What kind of thing happened, for filters."""
        return f"org.kubeflow.kfp-serving.{self.occasion}"


def occasion_of(before: Release, after: Release) -> Occasion | None:
    """Which occasion a change of a release's record is; most are none."""
    if after.phase != before.phase:
        told: Mapping[str, Occasion] = {"rolling_back": "rollback", "held": "hold", "promoted": "promoted"}
        return told.get(after.phase)
    if after.waits is not None and (before.waits is None or before.waits.before != after.waits.before):
        return "approval"
    return "verdict" if after.step_index > before.step_index and after.phase == "canary" else None


def of_release(occasion: Occasion, record: Release, text: str, unix_s: float, run: Mapping[str, str]) -> Message:
    """A message about a release. Nothing of its request is in it but names and versions; ``run`` is the KFP run, where there is one.

    What smoke cases ask and expect stays in the report.
    """
    failure = record.failure
    if failure is not None and failure.error == "SmokeFailed":
        text = text.replace(failure.message, SMOKE_FAILED)
        failure = failure.model_copy(update={"message": SMOKE_FAILED})
    text, verdict = _without_cases(text), record.verdict
    verdict = verdict and verdict.model_copy(update={"sentence": _without_cases(verdict.sentence)})
    which = {"verdict": record.step_index, "approval": record.waits and record.waits.before, "hold": record.held and record.held.since_unix_s}
    data = {
        "model": record.model,
        "namespace": record.namespace,
        "rayservice": record.rayservice,
        "version": record.candidate_version,
        "stable_version": record.stable_version,
        "phase": record.phase,
        "weight_percent": record.weight_percent,
        "message": text,
        "verdict": verdict.model_dump(mode="json") if verdict else None,
        "failure": failure.model_dump(mode="json") if failure else None,
        **run,
    }
    once = (record.request_digest, f"{record.started_unix_s:.3f}", occasion, str(which.get(occasion)))
    return message(occasion, record.namespace, record.model, record.candidate_version, text, unix_s, data, once)


def _without_cases(text: str) -> str:
    """Without what a golden set asked and got, where it did not fit (`judge.golden.unfit`)."""
    return re.sub(r"(requests is useless) \(.*\)(; roll back)", r"\1\2", text, flags=re.DOTALL)


def of_decay(namespace: str, model: str, version: str, found: Mapping[str, Any], run: Mapping[str, str]) -> Message:
    """A message about a champion that decayed; ``found`` is the re-validation as plain JSON, whose looks are left out."""
    data = {key: value for key, value in found.items() if key not in ("looks", "failed")} | dict(run)  # what cases ask and get stays in the report
    once = (version, "decay", f"{found['unix_s']:.3f}")
    return message("decay", namespace, model, version, str(found["sentence"]), float(found["unix_s"]), data, once)


def message(
    occasion: Occasion, namespace: str, model: str, version: str, text: str, unix_s: float, data: Mapping[str, Any], once: Sequence[str]
) -> Message:
    """A message whose id is that of what ``once`` names."""
    known = hashlib.sha256("/".join((namespace, model, *once)).encode()).hexdigest()[:32]
    return Message(known, occasion, unix_s, f"/kfp-serving/{namespace}/{model}", version, text, data)


def cloud_event(told: Message) -> tuple[str, bytes]:
    """Content type and body."""
    event = {
        "specversion": "1.0",
        "id": told.id,
        "source": told.source,
        "type": told.type,
        "subject": told.subject,
        "time": datetime.fromtimestamp(told.unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "data": told.data,
    }
    return "application/cloudevents+json; charset=utf-8", json.dumps(event).encode()


def slack(told: Message) -> tuple[str, bytes]:
    """Content type and body. What stands in the text calls nobody and is cut at 3,000 characters; an address in it is shown without a look at it."""
    text = told.text[:3000].replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    link = told.data.get("kfp_run_url")
    page = f" (<{link}|run>)" if link else ""
    line = f"*{told.source.removeprefix('/kfp-serving/')} {told.subject}*: {told.occasion}: {text}{page}"
    return "application/json", json.dumps({"text": line, "unfurl_links": False, "unfurl_media": False}).encode()


FORMATS: Mapping[str, Callable[[Message], tuple[str, bytes]]] = {"cloudevents": cloud_event, "slack": slack}


def sign(key: str, told_id: str, unix_s: int, body: bytes) -> dict[str, str]:
    """The headers of a signed message. Raises ValueError for a key that is none."""
    content = b".".join((told_id.encode(), str(unix_s).encode(), body))
    made = base64.b64encode(hmac.new(_key(key), content, hashlib.sha256).digest()).decode()
    return {"webhook-id": told_id, "webhook-timestamp": str(unix_s), "webhook-signature": f"v1,{made}"}


def verify(key: str, headers: Mapping[str, str], body: bytes, *, now_unix_s: float | None = None) -> bool:
    """For receivers: whether the headers (names in lower case) were made for this body with this key, within `TOLERANCE_S`."""
    try:
        told_id, unix_s = headers["webhook-id"], int(headers["webhook-timestamp"])
    except (KeyError, ValueError):
        return False
    wanted = sign(key, told_id, unix_s, body)["webhook-signature"]
    there = [hmac.compare_digest(wanted.encode(), one.encode()) for one in headers.get("webhook-signature", "").split()]
    return any(there) and abs((time.time() if now_unix_s is None else now_unix_s) - unix_s) <= TOLERANCE_S


def _key(text: str) -> bytes:
    try:
        key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        key = b""
    if len(key) < 16:
        raise ValueError("it is not base64 of at least 16 bytes; `openssl rand -base64 32` makes a key")
    return key


def reader(cluster: Cluster, namespace: str) -> Read:
    """Reads what references name. Raises `NotFound`, and what `Cluster.get` does: `PermissionDenied`, `Unreachable`."""

    def read(reference: SecretRef) -> str:
        found: str | None = None
        if reference.env is not None:
            found = os.environ.get(reference.env)
        elif reference.file is not None:
            try:
                found = Path(reference.file).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise errors.NotFound(f"{reference}: it cannot be read here ({type(error).__name__})") from error
        else:
            ref = Ref("Secret", str(reference.secret), namespace)
            try:
                data = (cluster.get(ref) or {}).get("data") or {}
            except errors.PermissionDenied as error:
                raise errors.PermissionDenied(f"{ref}: this identity may not read it; deploy/rbac.yaml says what to grant") from error
            try:
                found = base64.b64decode(data.get(reference.key, "")).decode()
            except (binascii.Error, UnicodeDecodeError) as error:
                raise errors.NotFound(f"{ref}: what key {reference.key} holds is no text") from error
        if not (found or "").strip():
            raise errors.NotFound(f"{reference}: it is not there or empty; a webhook's address or key is expected in it")
        return str(found).strip()

    return read


def check(wanted: Sequence[Notification], read: Read) -> None:
    """Raise `RequestInvalid`, or what ``read`` does, for an address or a key that cannot be used; nothing is sent."""
    for index, one in enumerate(wanted):
        try:
            _address(one, read)
            if one.sign_with is not None:
                _key(read(one.sign_with))
        except errors.KfpServingError as error:
            raise type(error)(f"notify.{index}: {error}") from error
        except ValueError as error:
            raise errors.RequestInvalid(f"notify.{index}: {one.sign_with or one.url_from}: {error}") from error


class Notifier:
    """All destinations of one run; without any it does nothing."""

    def __init__(self, wanted: Sequence[Notification] = (), read: Read | None = None) -> None:
        self.read = read or _unreadable
        logging.getLogger("httpx").addFilter(_not_ours)
        self._destinations = [_Destination(index, one, self.read) for index, one in enumerate(wanted)]

    def tell(self, told: Message) -> None:
        """Put it into the queue of each destination that wants it. Returns at once and never raises."""
        for destination in self._destinations:
            if told.occasion in destination.wanted.when:
                destination.put(told)

    def undelivered(self) -> list[str]:
        """A sentence for each message that was given up since this was asked last."""
        return [sentence for destination in self._destinations for sentence in destination.taken()]

    def drain(self, timeout_s: float) -> bool:
        """Wait until everything is sent or given up; False when that takes longer."""
        return not wait([future for one in self._destinations for future in one.waiting], timeout_s).not_done


def _unreadable(reference: SecretRef) -> str:
    raise errors.NotFound(f"{reference}: there is nobody to read it")


def _not_ours(record: logging.LogRecord) -> bool:
    """Whether a line of httpx's log is not of a thread that sends: it repeats addresses, which are secrets, and KFP prints what is logged."""
    return not (record.threadName or "").startswith(THREADS)


class _Try(Exception):
    """One delivery failed, and another one may succeed, ``after_s`` from now at the earliest."""

    def __init__(self, why: str, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.after_s = after_s


class _Destination:
    """One queue and one thread, which is there once there was something to send."""

    def __init__(self, index: int, wanted: Notification, read: Read) -> None:
        self.wanted = wanted
        self.waiting: list[Future[None]] = []
        self._what = f"notify.{index}"
        self._read = read
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"{THREADS}{index}")  # the interpreter waits for it before it exits
        self._given_up: list[str] = []
        self._lock = threading.Lock()

    def put(self, told: Message) -> None:
        self.waiting = [future for future in self.waiting if not future.done()]
        if len(self.waiting) >= QUEUE:
            self._give_up(told, f"{QUEUE} others wait already")
            return
        try:
            self.waiting.append(self._pool.submit(self._deliver, told, time.monotonic() + self.wanted.give_up_after_s))
        except RuntimeError:  # the interpreter exits
            self._give_up(told, "the process is at its end")

    def taken(self) -> list[str]:
        with self._lock:
            found, self._given_up = self._given_up, []
        return found

    def _give_up(self, told: Message, why: str) -> None:
        sentence = f"{self._what}: {told.occasion} not delivered: {why}"
        with self._lock:
            self._given_up.append(sentence)
        logging.getLogger(__name__).warning("%s", sentence)

    def _deliver(self, told: Message, end: float) -> None:
        """Nothing that goes wrong here reaches anybody."""
        tries = Retrying(
            retry=retry_if_exception_type(_Try),
            wait=_wait,
            stop=lambda state: time.monotonic() + _wait(state) >= end,
            reraise=True,
        )
        try:
            if time.monotonic() >= end:
                raise ValueError("its turn came too late")
            tries(self._send, told)
        except Exception as error:
            said = str(error) if isinstance(error, _Try | ValueError | errors.KfpServingError) else type(error).__name__
            self._give_up(told, said)

    def _send(self, told: Message) -> None:
        """Raises `_Try` for what may pass, ValueError for what will not."""
        import httpx

        content_type, body = FORMATS[self.wanted.format](told)
        try:
            address = _address(self.wanted, self._read)
            signed = sign(self._read(self.wanted.sign_with), told.id, int(time.time()), body) if self.wanted.sign_with else {}
        except errors.TemporaryError as error:
            raise _Try(str(error)) from error
        began, host = time.monotonic(), urlsplit(address).hostname  # of an address that is a secret, no more than that is ever told
        try:
            headers = {"content-type": content_type, "user-agent": "kfp-serving", **signed}
            with (
                _cut_after(self.wanted.timeout_s) as trace,
                httpx.Client(timeout=self.wanted.timeout_s) as client,
                client.stream("POST", address, content=body, headers=headers, extensions={"trace": trace}) as answer,
            ):
                status, after_s = answer.status_code, _retry_after(answer.headers.get("retry-after", ""))
        except (httpx.HTTPError, TimeoutError) as error:
            late = time.monotonic() - began >= self.wanted.timeout_s  # what httpx says of a connection that was cut depends on where it was
            raise _Try(f"{host}: {f'no answer within {self.wanted.timeout_s:g} s' if late else type(error).__name__}") from None
        if status in (408, 425, 429) or status >= 500:
            raise _Try(f"{host} answers {status}", after_s)
        if not 200 <= status < 300:
            raise ValueError(f"{host} answers {status}")


@contextlib.contextmanager
def _cut_after(timeout_s: float) -> Iterator[Callable[[str, Mapping[str, Any]], None]]:
    """Ends what is done inside after a time; httpx's timeouts are of one read, and who answers byte by byte meets them for ever. Gives a trace
    for httpx, which is told the connection."""
    end, connections = time.monotonic() + timeout_s, list[socket.socket]()

    def trace(event: str, about: Mapping[str, Any]) -> None:
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            connections.append(about["return_value"].get_extra_info("socket"))
            if time.monotonic() >= end:
                raise TimeoutError

    def cut() -> None:
        for one in connections[-1:]:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(one, socket.SHUT_RDWR)  # not SSLSocket's own, which takes TLS off under the reader

    timer = threading.Timer(timeout_s, cut)
    timer.daemon = True
    timer.start()
    try:
        yield trace
    finally:
        timer.cancel()


_growing = wait_random_exponential(multiplier=0.3, max=MOST_WAIT_S)


def _wait(state: RetryCallState) -> float:
    failed = state.outcome.exception() if state.outcome else None
    return max(_growing(state), failed.after_s if isinstance(failed, _Try) else 0.0)


def _retry_after(value: str) -> float:
    return min(float(value), 600.0) if value.isdecimal() else 0.0


def _address(wanted: Notification, read: Read) -> str:
    """Raises ValueError for an address that nothing is sent to."""
    if wanted.url is not None:
        return wanted.url
    assert wanted.url_from is not None
    found = read(wanted.url_from)
    assert_webhook(found)
    return found
