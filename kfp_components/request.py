"""``PromoteRequest``: what is asked for, checked at birth. Frozen, unknown keys refused, units in names."""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, ValidationInfo, field_validator, model_validator

from kfp_components import errors, names, uris

IMPORT_PATH = re.compile(r"\w[\w-]*(\.\w[\w-]*)*[:.][^\W\d]\w*")
"""Ray imports the module by name (``importlib.import_module``), so folders and files may be called what no identifier is: ``my-repo.serving:app``."""

METRIC = re.compile(r"[A-Za-z0-9._-]{1,100}")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
ROUTE = re.compile(r"/|(/[^/\s{}?#]+)+")
ENCODED = re.compile(r"%[0-9A-Fa-f]{2}")
HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
CLUSTER_HOST = re.compile(r"([a-z0-9]([-a-z0-9]*[a-z0-9])?\.){2}svc(\.cluster\.local)?")
LOOKS_PER_LEASE = 3
"""The candidate's weight is renewed at looks, three times before it lapses."""

STORED = "stored"
"""In the context of a validation: the request was taken before, so what only a new one may not say is no fault."""

Part = TypeVar("Part", bound=BaseModel)


def _refuse_credentials(uri: str, info: ValidationInfo, instead: str = "; let the pods have the right: a service account, or a Secret") -> None:
    """Raise ValueError, which names the key and never the value, unless the request was taken and stored by an older version."""
    found = None if (info.context or {}).get(STORED) else uris.credential_in(uri)
    if found:
        raise ValueError(f"it carries a credential, {found}; it would be stored where many can read it{instead}")


def _refuse_credentials_in(value: Any, info: ValidationInfo, where: str = "") -> None:
    """The same for every URI in the texts of a value, at any depth, but for environment variables; the message says where."""
    if isinstance(value, str):
        for uri in uris.in_text(value):
            try:
                _refuse_credentials(uri, info)
            except ValueError as error:
                raise ValueError(f"{where}: {error}" if where else str(error)) from None
    for item in value if isinstance(value, list) else ():
        _refuse_credentials_in(item, info, where)
    for key, item in value.items() if isinstance(value, dict) else ():
        if key != "env_vars":
            _refuse_credentials_in(item, info, f"{where}.{key}" if where else str(key))


def _sha256(value: str | None) -> str | None:
    if value is not None and not DIGEST.fullmatch(value):
        raise ValueError(f"{value!r} is not of the form sha256:<64 hex digits>")
    return value


def whole_numbers(value: Any) -> Any:
    """``value`` with whole floats as ints, at any depth: 64.0 -> 64. Tuples become lists."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [whole_numbers(item) for item in value]
    return value


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)  # a refused value may be a secret

    @model_validator(mode="before")
    @classmethod
    def _coerce(cls, values: Any) -> Any:
        """Numbers inside KFP's dict and list parameters arrive as floats (measured with 2.17); whole ones become ints again."""
        return whole_numbers(values)


FAMILIES = ("embedding", "asr", "tts", "llm")
"""Of models: each has an application in `kfp_components.models`, default smoke cases and an evaluator."""

OWN_APPLICATION = re.compile(r"kfp_components\.models\.(\w+)[:.]\w+")


class Media(_Part):
    """A file that goes with a request."""

    uri: str = Field(max_length=100_000, description="data:, or file:///, https://, s3://; in a golden set also clips/a.wav, beside the set")
    digest: str | None = Field(None, description="sha256:... of the bytes; not needed with data:")
    media_type: str = Field("application/octet-stream", pattern=r"^[\w.+-]+/[\w.+-]+$", description="audio/wav, ...")

    @field_validator("uri")
    @classmethod
    def _uri(cls, value: str, info: ValidationInfo) -> str:
        _refuse_credentials(value, info)
        return value

    @field_validator("digest")
    @classmethod
    def _digest(cls, value: str | None) -> str | None:
        return _sha256(value)

    @model_validator(mode="after")
    def _known(self) -> Media:
        if self.digest is None and not self.uri.startswith("data:"):
            raise ValueError("digest is missing: sha256:... of the bytes that are there")
        return self


class ExpectedTensor(_Part):
    """One output of a V2 answer. As many values as its shape says, of its datatype, all finite; that is checked anyway."""

    datatype: str | None = Field(None, description="FP32, INT64, BYTES, ...")
    shape: list[int] | None = Field(None, description="lengths; -1 for any")


class ExpectedText(_Part):
    """The text of an answer: a transcription, a completion, a chat message (streamed or not), a V2 output of BYTES, or the answer itself."""

    min_characters: int = Field(1, ge=0, description="without white space at its ends")
    contains: list[str] = Field(default_factory=list, description="each must be in it; capitals do not matter")
    regex: str | None = Field(None, description="Python's syntax; to be found in it")
    like: str | None = Field(None, description="what it is compared with, both without capitals and punctuation")
    min_similarity: float | None = Field(
        None, gt=0, le=1, description="with `like`: 2 x what both have in common / length of both (Python's difflib)"
    )
    max_wer: float | None = Field(None, ge=0, description="with `like`: word error rate, edits / words of `like`")

    @field_validator("regex")
    @classmethod
    def _regex(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"{value!r} is no regular expression: {error}") from None
        return value

    @model_validator(mode="after")
    def _bounds(self) -> ExpectedText:
        if (self.like is None) != (self.min_similarity is None and self.max_wer is None):
            raise ValueError("like and a bound, min_similarity or max_wer, belong together")
        return self


class ExpectedAudio(_Part):
    """The answer is a WAV file that can be heard."""

    min_s: float = Field(0.1, ge=0, description="shortest duration")
    max_s: float = Field(600.0, gt=0, description="longest duration")
    max_silence: float = Field(0.9, ge=0, le=1, description="share of its time, in pieces of 20 ms, that is below -50 dB of full scale")
    sample_rate_hz: int | None = Field(None, gt=0, description="samples a second")

    @model_validator(mode="after")
    def _range(self) -> ExpectedAudio:
        if self.min_s > self.max_s:
            raise ValueError(f"min_s {self.min_s:g} is above max_s {self.max_s:g}")
        return self


class ExpectedVectors(_Part):
    """Embeddings in OpenAI's form, V2's, `{embeddings: [...]}` or bare: finite, not zero, and not all the same; that is checked anyway."""

    count: int | None = Field(None, ge=1, description="one for each text")
    dimensions: int | None = Field(None, ge=1, description="of each vector")
    unit_length: bool = Field(False, description="length 1, within 0.001")
    nearest: int | None = Field(None, ge=0, description="which of the texts after the first is nearest to it by cosine, counted from 0")


class ExpectedStream(_Part):
    """The answer comes in pieces, which OpenAI's chat and completions are asked for then and end with a finish_reason and `[DONE]`."""

    min_pieces: int = Field(2, ge=1, description="events; of speech pieces of audio")
    max_first_s: float | None = Field(None, gt=0, description="until the first piece that says something: time to first token")


SmokeProtocol = Literal[
    "json",
    "v1",
    "v2",
    "v2_grpc",
    "openai_chat",
    "openai_completions",
    "openai_embeddings",
    "openai_transcription",
    "openai_speech",
    "rerank",
    "handle",
]
_ONLY_WITH: Mapping[str, tuple[str, ...]] = {
    "path": ("json", "v2"),
    "method": ("json", "v2"),
    "media": ("json", "openai_transcription"),
    "binary": ("v2",),
    "call": ("handle",),
    "expect_tensors": ("v2", "v2_grpc"),
    "expect_audio": ("json", "openai_speech"),
    "expect_stream": ("openai_chat", "openai_completions", "openai_speech"),
}
"""Fields that say nothing with other protocols."""


class SmokeCase(_Part):
    """One request that the candidate must answer as expected before it gets any user's request."""

    name: str = Field("case", description="for messages")
    protocol: SmokeProtocol = Field(
        "json", description="json sends `body` to `path`; the others to where their clients send it, `handle` by Ray Client to the deployment"
    )
    path: str = Field("/", max_length=2000, description="below the public route; only for protocol json")
    method: Literal["GET", "POST"] = Field("POST", description="only for protocol json")
    body: Any = Field(None, description="JSON; with `media` the form's other fields; OpenAI's `model` is filled in")
    media: Media | None = Field(None, description="the file of a form, such as audio to be transcribed")
    binary: bool | None = Field(None, description="tensors of v2 go and come as bytes, as KServe's client sends them")
    call: str | None = Field(None, pattern=r"^[A-Za-z]\w*$", description="of protocol handle: method of the ingress deployment, default __call__")
    expect_status: int = Field(200, ge=100, le=599, description="gRPC's codes by their HTTP counterparts: INVALID_ARGUMENT is 400")
    expect: dict[str, Any] = Field(default_factory=dict, description="JSON pointer into the answer -> the value there")
    expect_shape: dict[str, list[int]] = Field(default_factory=dict, description="JSON pointer -> lengths of the nested lists there")
    tolerance: float = Field(1e-3, ge=0, description="absolute, for numbers in `expect`")
    expect_tensors: dict[str, ExpectedTensor] | None = Field(None, description="name of a V2 output -> what it is like, an ExpectedTensor")
    expect_text: ExpectedText | None = None
    expect_audio: ExpectedAudio | None = None
    expect_vectors: ExpectedVectors | None = None
    expect_stream: ExpectedStream | None = None
    expect_within_s: float | None = Field(None, gt=0, description="the whole answer; slower is a failure")
    family: str | None = Field(None, max_length=100, description="whose evaluator scores the answer: asr, tts, embedding, llm; default the request's")
    reference: Any = Field(None, description="what that evaluator compares the answer with; without one the answer is not scored")
    timeout_s: float = Field(30.0, gt=0, le=600, description="for the whole answer")

    @property
    def expects(self) -> bool:
        """Whether it says more of a good answer than its status."""
        return any(value for name, value in self if name.startswith("expect") and name != "expect_status")

    @field_validator("path")
    @classmethod
    def _below_the_route(cls, path: str) -> str:
        if not path.startswith("/") or "://" in path or ".." in path.split("/") or not path.isprintable():
            raise ValueError("it must start with /, stay below the model's route and be printable")
        return path

    @field_validator("expect", "expect_shape")
    @classmethod
    def _pointers(cls, value: dict[str, Any]) -> dict[str, Any]:
        wrong = [key for key in value if key and not key.startswith("/")]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is not a JSON pointer (RFC 6901); it starts with /")
        return value

    @model_validator(mode="after")
    def _together(self, info: ValidationInfo) -> SmokeCase:
        if (info.context or {}).get(STORED):
            return self
        for field, protocols in _ONLY_WITH.items():
            if field in self.model_fields_set and self.protocol not in protocols and getattr(self, field) != type(self).model_fields[field].default:
                raise ValueError(f"{field} says nothing with protocol {self.protocol}; it goes with {', '.join(protocols)}")
        if self.media is not None and not isinstance(self.body, dict | None):
            raise ValueError("with media, body is a mapping: the form's other fields")
        if self.protocol == "openai_transcription" and self.media is None:
            raise ValueError("media is missing: the audio")
        if self.protocol.startswith("openai_") and self.media is None and not isinstance(self.body, dict):
            raise ValueError(f"protocol {self.protocol} needs a body: a mapping")
        body = self.body if isinstance(self.body, dict) else {}
        if (self.protocol == "v2_grpc" or self.binary) and not _are_tensors(body.get("inputs")):
            raise ValueError("body.inputs is a list of tensors with name, shape, datatype and data")
        if self.protocol in ("openai_chat", "openai_completions") and bool(body.get("stream", self.expect_stream)) != bool(self.expect_stream):
            raise ValueError("body.stream and expect_stream contradict each other; expect_stream says what the stream is like, and asks for one")
        if self.expect_within_s is not None and self.expect_within_s > self.timeout_s:
            raise ValueError(f"expect_within_s {self.expect_within_s:g} is above timeout_s {self.timeout_s:g}, which ends the request first")
        return self


def _are_tensors(value: Any) -> bool:
    return (
        isinstance(value, list) and bool(value) and all(isinstance(one, dict) and {"name", "shape", "datatype", "data"} <= set(one) for one in value)
    )


class SmokePace(_Part):
    """How fast the smoke cases are sent, and for how long."""

    concurrency: int = Field(4, ge=1, le=64, description="cases at the same time")
    rate_per_s: float | None = Field(None, gt=0, description="cases begun in a second; default as fast as the concurrency allows")
    budget_s: float = Field(300.0, gt=0, le=86_400, description="none is begun later; those that are left have failed")


class JudgeRules(_Part):
    """What counts as worse, and how much evidence is wanted. Defaults and their reasons: shared figures in docs of `kfp_components.judge`."""

    alpha_fail: float = Field(0.01, gt=0, lt=0.5, description="chance of rolling back a version that is not worse")
    alpha_pass: float = Field(0.05, gt=0, lt=0.5, description="chance of passing one that is worse by the margin")
    alpha_split: float = Field(0.001, gt=0, lt=0.5, description="chance of calling the router's split wrong when it is right")
    error_margin_percent: float | None = Field(
        None,
        gt=0,
        le=50,
        description="how much higher the failure rate may be, in percentage points; default stable's own recent rate, at least 0.5, at most 2",
    )
    client_error_margin_percent: float | None = Field(
        None,
        gt=0,
        le=50,
        description="how much more often it may answer 4xx, in percentage points; default stable's own recent rate, at least 1, at most 5",
    )
    disconnect_margin_percent: float | None = Field(
        None,
        gt=0,
        le=50,
        description="how much more often clients may give up on it, in percentage points; default stable's own recent rate, at least 1, at most 5",
    )
    latency_margins_percent: tuple[float, float, float] = Field((10.0, 20.0, 30.0), description="how much slower p50, p95, p99 may be")
    latency_fail_margins_percent: tuple[float, float, float] | None = Field(
        None, description="how much slower they must be to count against the candidate; default half of latency_margins_percent"
    )
    judge_latency: bool = Field(True, description="off for models whose latency says nothing (batch, cold caches)")
    warm_up_requests: int = Field(20, ge=0, description="first requests of the candidate that are not judged: they are slow after a start")
    tick_s: float = Field(1.0, gt=0, le=60, description="how often the counts are read")
    max_minutes: float = Field(30.0, gt=0, description="budget of one step; then the verdict is inconclusive")
    max_candidate_requests: int = Field(50_000, gt=0, description="budget of the whole canary")

    @field_validator("latency_margins_percent", "latency_fail_margins_percent")
    @classmethod
    def _positive(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and any(not 0 < margin <= 1000 for margin in value):
            raise ValueError(f"{value} must be three percentages above 0")
        return value

    @property
    def fail_margins_percent(self) -> tuple[float, float, float]:
        """Margins of p50, p95, p99 for FAIL: as given, else half of those for PASS."""
        p50, p95, p99 = self.latency_margins_percent
        return self.latency_fail_margins_percent or (p50 / 2, p95 / 2, p99 / 2)


Occasion = Literal["start", "verdict", "approval", "hold", "rollback", "promoted", "decay"]


class SecretRef(_Part):
    """Where a secret is, never what it is: an environment variable or a file of the step, or a key of a Secret in the model's namespace."""

    env: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    file: str | None = Field(None, pattern=r"^/", max_length=1000, description="as the step sees it")
    secret: str | None = Field(None, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", description="name of a Secret, with key")
    key: str | None = Field(None, max_length=253, pattern=r"^[-._A-Za-z0-9]+$")

    @model_validator(mode="after")
    def _one(self) -> SecretRef:
        if sum(given is not None for given in (self.env, self.file, self.secret)) != 1 or (self.secret is None) != (self.key is None):
            raise ValueError("give env, or file, or secret and key")
        return self

    def __str__(self) -> str:
        return f"Secret {self.secret}, key {self.key}" if self.secret else f"environment variable {self.env}" if self.env else str(self.file)


class Notification(_Part):
    """A webhook that is told how a release goes; it is never waited for (see `kfp_components.notify`)."""

    url: str | None = Field(None, max_length=2000, description="https://; http:// on loopback and to a Service (name.namespace.svc)")
    url_from: SecretRef | None = Field(None, description="where the address is, if it is a secret itself, as Slack's are")
    format: Literal["cloudevents", "slack"] = "cloudevents"
    when: tuple[Occasion, ...] = Field(get_args(Occasion), min_length=1, description="verdict: each step that passed")
    sign_with: SecretRef | None = Field(
        None, description="base64 of at least 16 random bytes, whsec_ before it or not: signs as Standard Webhooks does"
    )
    timeout_s: float = Field(5.0, gt=0, le=60, description="of one try")
    give_up_after_s: float = Field(
        15.0, gt=0, le=600, description="tries end so long after it happened; with timeout_s within the 30 s that Kubernetes leaves a pod to end"
    )

    @field_validator("url")
    @classmethod
    def _plain(cls, value: str | None, info: ValidationInfo) -> str | None:
        _refuse_credentials(value or "", info, "; give url_from")
        return value

    @model_validator(mode="after")
    def _where(self) -> Notification:
        if (self.url is None) == (self.url_from is None):
            raise ValueError("give either url or url_from")
        if self.url is not None:
            assert_webhook(self.url)
            if self.format == "slack":
                raise ValueError("who knows a Slack address may write there: give url_from, such as {secret: kfp-serving-notify, key: url}")
        return self


def assert_webhook(url: str) -> None:
    """Raise ValueError as `_assert_protected`."""
    _assert_protected(url, "a webhook")


def _assert_protected(url: str, what: str) -> None:
    """Raise ValueError, which does not repeat it, for an address that nothing is sent to: none at all, or without TLS outside the cluster."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    inside = CLUSTER_HOST.fullmatch(host) or uris.is_loopback(host)
    if not host or not url.isprintable() or " " in url or (parts.scheme != "https" and not (parts.scheme == "http" and inside)):
        raise ValueError(f"it is no address of {what}: https://, or http:// on loopback or to a Service (http://name.namespace.svc/...)")


class RevalidateRules(_Part):
    """How what serves is compared with what it was when it was promoted; everything has a default."""

    golden_set: str | None = Field(
        None, max_length=2000, description="URI of the cases (JSON lines of smoke cases); default the registered one, else the smoke cases"
    )
    requests: int = Field(200, ge=1, le=100_000, description="in one look at a model; cases are drawn with replacement")
    record_requests: int = Field(
        3000,
        ge=100,
        le=100_000,
        description="in the first look, which makes the record: of 3,000 it takes days to see 97 % become 92 %, of 1,000 weeks",
    )
    concurrency: int = Field(4, ge=1, le=64, description="requests to a model at the same time")
    timeout_s: float | None = Field(None, gt=0, le=600, description="of one request; default what its case says")
    max_minutes: float = Field(30.0, gt=0, le=1440, description="one look at a model ends then, with what was asked until then")
    apart_hours: float = Field(
        6.0, ge=0, le=168, description="looks that are closer count as one: one outage accuses nobody, however often one looks"
    )
    error_margin_percent: float = Field(1.0, gt=0, le=50, description="how much more often it may fail than it did, in percentage points")
    latency_margin_percent: float = Field(50.0, gt=0, le=1000, description="how much slower its median and p95 may become")
    alpha: float = Field(0.01, gt=0, lt=0.5, description="chance of ever accusing a model that is as it was, over all looks at all models of a run")
    demote: bool = Field(False, description="give users the previous version again, through a canary, where the champion decayed")
    notify: tuple[Notification, ...] = Field((), max_length=10, description="webhooks that are told of decay; default those of the last release")

    @field_validator("golden_set")
    @classmethod
    def _uri(cls, value: str | None, info: ValidationInfo) -> str | None:
        _refuse_credentials(value or "", info)
        return value


class QualityRules(_Part):
    """How good the answers are: both versions answer the golden set of `provenance`, pinned, so no user is involved (see `rollout.golden`)."""

    margin_percent: float | None = Field(
        None, gt=0, le=50, description="how much lower the mean score may be, in points of 100; default 1, for asr, tts and llm 2"
    )
    garbage_margin_percent: float | None = Field(
        None, gt=0, le=50, description="how much more often an answer may be useless, in points of 100; default 1, for asr, tts and llm 2"
    )
    latency_margin_percent: float = Field(
        25.0, gt=0, le=1000, description="how much longer the median golden answer may take, where golden requests alone decide"
    )
    concurrency: int = Field(2, ge=1, le=64, description="pairs asked at the same time")
    pairs_per_minute: float = Field(600.0, gt=0, le=60_000, description="at most")
    max_pairs: int = Field(5000, ge=0, le=100_000, description="budget of the whole canary; 0: the golden set is not asked")
    few_user_requests: int = Field(
        1500,
        ge=0,
        description="where the candidate is to expect fewer of users' requests within judge.max_minutes, golden requests alone may decide; 0: never",
    )
    asr_url: str | None = Field(
        None,
        max_length=500,
        description="of tts: a model for speech hears the answers, and 1 - WER counts; http://NAME-predictor.NAMESPACE.svc:8000/NAME",
    )

    judge_url: str | None = Field(
        None, max_length=500, description="of llm: an OpenAI-compatible API (https://HOST/v1) that grades the answers to cases with `judged`"
    )
    judge_model: str | None = Field(None, min_length=1, max_length=200, description="its name there")
    judge_token: SecretRef | None = Field(None, description="where its bearer token is")

    @field_validator("judge_url")
    @classmethod
    def _api(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None:
            _refuse_credentials(value, info, "; give judge_token")
            _assert_protected(value, "a judge model")
            if "?" in value or "#" in value:
                raise ValueError("it is the address of an API, without a query: https://HOST/v1")
        return value

    @model_validator(mode="after")
    def _whole(self) -> QualityRules:
        if (self.judge_url is None) != (self.judge_model is None):
            raise ValueError("give judge_url and judge_model, or neither")
        if self.judge_token is not None and self.judge_url is None:
            raise ValueError("judge_token without judge_url")
        return self

    @field_validator("asr_url")
    @classmethod
    def _url(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None:
            _refuse_credentials(value, info)
            _assert_protected(value, "a model for speech")
            if "?" in value or "#" in value or not urlsplit(value).path.strip("/"):
                raise ValueError("it is the public route of a model, without a query: http://NAME-predictor.NAMESPACE.svc.cluster.local:8000/NAME")
        return value

    def margins(self, family: str | None) -> tuple[float, float, float]:
        """Of score and garbage (fractions) and of the median latency (percent), for a family of models."""
        default = 2.0 if family in ("asr", "tts", "llm") else 1.0
        score, useless = (default if given is None else given for given in (self.margin_percent, self.garbage_margin_percent))
        return score / 100, useless / 100, self.latency_margin_percent


class Approval(_Part):
    """Where a release waits until somebody approves."""

    before: tuple[Literal["promote"] | float, ...] = Field(("promote",), min_length=1, description="promote, or weights of steps, in percent")
    timeout_s: float = Field(86_400.0, gt=0, description="for each approve; time in which the release is paused does not count")
    on_timeout: Literal["hold", "roll_back", "promote"] = Field(
        "hold", description="when nobody approved in time: hold it at 0 %, take it back, or go on as if it was approved"
    )

    @field_validator("before", mode="before")
    @classmethod
    def _places(cls, value: Any) -> Any:
        places = [value] if isinstance(value, str | int | float) else value
        for place in places if isinstance(places, list | tuple) else []:
            if place != "promote" and (not isinstance(place, int | float) or isinstance(place, bool)):
                raise ValueError(f"{place!r} is neither the word promote nor the weight of a step")
        return places


class Signature(_Part):
    """A signature of the artifact, as `model-signing` (OpenSSF) makes it, and whose it must be."""

    uri: str = Field(description="where the signature is: file:///, pvc:// of a mounted claim, https://, s3://")
    public_key: str | None = Field(None, description="PEM text of the elliptic-curve key that must have signed; checked offline")
    identity: str | None = Field(None, description="Sigstore identity that must have signed instead; Sigstore's servers are asked")
    oidc_issuer: str | None = Field(None, description="who vouches for that identity")

    @field_validator("uri")
    @classmethod
    def _uri(cls, value: str, info: ValidationInfo) -> str:
        _refuse_credentials(value, info)
        return value

    @model_validator(mode="after")
    def _whose(self) -> Signature:
        if (self.public_key is None) == (self.identity is None):
            raise ValueError("give either public_key or identity")
        if (self.identity is None) != (self.oidc_issuer is None):
            raise ValueError("identity and oidc_issuer belong together")
        if self.public_key is not None and ("-----BEGIN PUBLIC KEY-----" not in self.public_key or "PRIVATE" in self.public_key):
            raise ValueError("public_key is not the PEM text of a public key")
        return self


class ArtifactRules(_Part):
    """How far the artifact is verified before anything is touched (see `kfp_components.artifact`)."""

    verify: Literal["if_readable", "required", "off"] = Field(
        "if_readable", description="required: what cannot be read here, or has neither digest nor signature, is refused"
    )
    signature: Signature | None = Field(None, description="must hold, unless verify is off")
    mounts: dict[str, str] = Field(default_factory=dict, description="claim of a pvc:// URI -> the folder where the step has it mounted")
    max_download_mib: int = Field(16_384, gt=0, description="of an https:// or s3:// artifact, read to be verified")

    @field_validator("verify", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return "off" if value is False else value  # what YAML makes of the word


class Provenance(_Part):
    """Where the version comes from and how good it was found; recorded in the registry, beside the KFP run, which is known anyway."""

    framework: str | None = Field(None, max_length=100, description="what the model was made with: pytorch, onnx, ...")
    family: str | None = Field(None, max_length=100, description="asr, tts, embedding, llm, ...")
    git_commit: str | None = Field(None, max_length=100, description="of the code that made it")
    run_url: str | None = Field(None, max_length=2000, description="page of the run that made it")
    metrics: dict[str, float] = Field(default_factory=dict, max_length=100, description="what its training or evaluation measured")
    golden_set: str | None = Field(
        None,
        max_length=2000,
        description="URI of the cases that it is to answer well, now and later; builtin:embedding is a small one of the library",
    )
    golden_set_digest: str | None = Field(None, description="sha256:... of the golden set")

    @field_validator("framework", "family", "git_commit", "run_url", "golden_set")
    @classmethod
    def _plain(cls, value: str | None, info: ValidationInfo) -> str | None:
        _refuse_credentials(value or "", info)
        if value is not None and not value.isprintable():
            raise ValueError("it holds a character that cannot be printed")
        return value

    @field_validator("metrics")
    @classmethod
    def _named(cls, value: dict[str, float]) -> dict[str, float]:
        wrong = [name for name in value if not METRIC.fullmatch(name)]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is not the name of a metric (letters, digits, '.', '_', '-', at most 100)")
        if endless := [name for name, number in value.items() if not math.isfinite(number)]:
            raise ValueError(f"{endless[0]} is {value[endless[0]]}, which is no measurement")
        return value

    @field_validator("golden_set_digest")
    @classmethod
    def _digest(cls, value: str | None) -> str | None:
        return _sha256(value)


class Options(_Part):
    """Everything with a sensible default: one struct in the pipeline's run form, each wrong key named."""

    model_format: str = Field("custom", min_length=1, max_length=63, description="shown in Kubeflow's UI: whisper, embedding, llm ...")
    digest: str | None = Field(None, description="sha256:... of the artifact (of a folder: see kfp_components.artifact), verified and registered")
    artifact: ArtifactRules = ArtifactRules()
    provenance: Provenance = Provenance()
    args: dict[str, Any] = Field(default_factory=dict, description="given to the application builder; see builder")
    builder: bool | Literal["exact"] = Field(
        True,
        description="true: it gets model and version beside args; exact: args and nothing else, for a builder that refuses what it does not know "
        "(ray.serve.llm:build_openai_app); false: import_path is a bound application, which takes no arguments",
    )
    deployments: list[dict[str, Any]] = Field(
        default_factory=list, description="Serve deployment overrides: name, num_replicas, ray_actor_options, ..."
    )
    deployments_from: Literal["stable", "request"] = Field(
        "stable",
        description="stable: replicas, resources and limits that deployments does not give are as the running version has them, where import_path is "
        "the same; request: only what deployments gives",
    )
    runtime_env: dict[str, Any] = Field(default_factory=dict, description="env_vars always; code or packages only where the RayService allows it")
    smoke: tuple[SmokeCase, ...] = Field(
        (),
        description="beside the protocol's own health checks; default those of the model's family (provenance.family); with protocol json, which has "
        "no health checks, and of no known family at least one case, or the word none",
    )
    skip_smoke: bool = Field(False, description="what `smoke: none` sets")
    smoke_pace: SmokePace = SmokePace()
    protocol: Literal["v2", "json"] = Field("v2", description="v2: the health endpoints of the Open Inference Protocol are checked too")
    judge: JudgeRules = JudgeRules()
    quality: QualityRules = QualityRules()
    on_inconclusive: Literal["hold", "roll_back", "promote"] = Field(
        "hold",
        description="when a step's budget is spent without enough evidence: hold it at 0 %, take it back, or go on as if it passed",
    )
    approval: Approval | None = Field(None, description="where it waits for `approve`; default nowhere")
    hold_ttl_s: float = Field(86_400.0, gt=0, description="after so long at 0 % a held candidate gives way to the next request")
    sticky_header: str | None = Field(None, description="requests with the same value of this header see the same version")
    lease_s: float = Field(60.0, ge=10, le=3600, description="after so long without a running step the router itself goes back to stable")
    watch_s: float = Field(30.0, ge=0, le=86_400, description="so long the version is watched when it has all traffic; a fault there takes it back")
    keep_previous_s: float = Field(
        60.0,
        ge=0,
        le=604_800,
        description="the old version stays so long after the switch, and rollback is one write; a run waits at most 60 s, then tidy removes it",
    )
    ready_timeout_s: float = Field(600.0, gt=0, le=86400, description="for a version to start")
    request_timeout_s: float | None = Field(
        None, gt=0, le=86_400, description="between two pieces of an answer, while a release runs; default no limit"
    )
    route: str | None = Field(None, description="route prefix that users call; default the one that was adopted, else /{model}")
    alias: str | None = Field(None, description="Service that clients call; default the one that was adopted, else {model}-predictor")
    application: str | None = Field(None, min_length=1, description="name of its Serve application; default {model}-{version}")
    adopt: bool = Field(False, description="take over what serves the model now as its stable version; nothing of it restarts")
    alias_target: str | None = Field(None, description="DNS name; default {rayservice}-serve-svc.{namespace}.svc.cluster.local")
    allow_external_alias: bool = Field(False, description="needed for an alias target outside the cluster")
    rayservice_template: dict[str, Any] | None = Field(None, description="rayClusterConfig to create the RayService with when there is none")
    notify: tuple[Notification, ...] = Field((), max_length=10, description="webhooks that are told how it goes")
    registry_uri: str | None = Field(
        None, description="MLflow tracking URI, or kubeflow+https://host; default: environment KFP_SERVING_REGISTRY_URI, MLFLOW_TRACKING_URI"
    )

    @model_validator(mode="before")
    @classmethod
    def _none(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("smoke") == "none":
            return {**values, "smoke": (), "skip_smoke": True}
        return values

    @field_validator("builder", mode="before")
    @classmethod
    def _builder(cls, value: Any) -> bool | str:
        if value == "exact":
            return "exact"
        try:
            return TypeAdapter(bool).validate_python(value)
        except ValidationError:
            raise ValueError("it is true, exact or false: whether the builder gets model and version beside args, args alone, or is none") from None

    @field_validator("registry_uri")
    @classmethod
    def _registry(cls, value: str | None, info: ValidationInfo) -> str | None:
        _refuse_credentials(
            value or "", info, "; give it in the environment (MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_TOKEN, KF_PIPELINES_SA_TOKEN_PATH ...)"
        )
        return value

    @field_validator("runtime_env", "args")
    @classmethod
    def _uris(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        _refuse_credentials_in(value, info)
        return value

    @field_validator("deployments")
    @classmethod
    def _uris_of_deployments(cls, value: list[dict[str, Any]], info: ValidationInfo) -> list[dict[str, Any]]:
        for piece in value:
            _refuse_credentials_in(piece, info)
        return value

    @field_validator("digest")
    @classmethod
    def _digest(cls, value: str | None) -> str | None:
        return _sha256(value)

    @field_validator("sticky_header")
    @classmethod
    def _header(cls, value: str | None) -> str | None:
        if value is not None and not HEADER.fullmatch(value):
            raise ValueError(f"{value!r} is not a header name")
        return value

    @field_validator("route")
    @classmethod
    def _route(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and (not ROUTE.fullmatch(value) or value.startswith(("/.versions", "/-/")) or ".." in value.split("/")):
            raise ValueError(f"{value!r} is not a route prefix that users may call: it starts with /, does not end with it, and has no {{}}")
        if value is not None and not (info.context or {}).get(STORED) and (ENCODED.search(value) or "." in value.split("/")):
            normal = "/" + "/".join(part for part in unquote(value).split("/") if part not in ("", "."))
            written = f"write {normal}" if ROUTE.fullmatch(normal) and not ENCODED.search(normal) else "give it another one"
            raise ValueError(f"{value!r} is not in normal form: Serve compares it as it stands with the decoded path of a request; {written}")
        return value

    @field_validator("alias")
    @classmethod
    def _alias(cls, value: str | None) -> str | None:
        if value is not None and (not names.DNS_1035.fullmatch(value) or len(value) > 63):
            raise ValueError(f"{value!r} is not the name of a Service (a-z, 0-9, -, starting with a letter, at most 63)")
        return value

    @model_validator(mode="after")
    def _arguments(self) -> Options:
        if self.args and not self.builder:
            raise ValueError("args are given, but builder is false: a bound application takes no arguments")
        if self.smoke_pace.rate_per_s is not None and len(self.smoke) > self.smoke_pace.rate_per_s * self.smoke_pace.budget_s:
            raise ValueError(
                f"smoke_pace: {len(self.smoke)} cases at {self.smoke_pace.rate_per_s:g} a second take longer than budget_s "
                f"{self.smoke_pace.budget_s:g}; give it more time, or a higher rate"
            )
        if self.judge.tick_s * LOOKS_PER_LEASE > self.lease_s:
            raise ValueError(
                f"judge.tick_s {self.judge.tick_s:g} and lease_s {self.lease_s:g} contradict each other: the weight would lapse between two looks; "
                f"lease_s must be at least {LOOKS_PER_LEASE} times tick_s"
            )
        if self.watch_s > self.keep_previous_s:
            raise ValueError(
                f"watch_s {self.watch_s:g} and keep_previous_s {self.keep_previous_s:g} contradict each other: the old version has to be there while "
                "the new one is watched; keep_previous_s must be at least watch_s"
            )
        return self

    @field_validator("deployments")
    @classmethod
    def _named(cls, value: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if any(not isinstance(piece.get("name"), str) for piece in value):
            raise ValueError("each deployment needs a name")
        return value


class ModelTarget(_Part):
    """Which model on which endpoint: enough to roll back, to look at, to re-validate."""

    model: Annotated[str, Field(description="DNS-1035 name; the public route is /{model}")]
    namespace: str
    rayservice: str

    @field_validator("model")
    @classmethod
    def _model(cls, value: str) -> str:
        if not names.DNS_1035.fullmatch(value):
            raise ValueError(f"{value!r} is not a DNS-1035 label (a-z, 0-9, -, starting with a letter)")
        if len(value) > names.MAX_MODEL_CHARACTERS:
            raise ValueError(f"{value!r} has {len(value)} characters; at most {names.MAX_MODEL_CHARACTERS} leave room for {names.PREDICTOR_SUFFIX}")
        return value

    @field_validator("namespace")
    @classmethod
    def _namespace(cls, value: str) -> str:
        if not names.DNS_1123.fullmatch(value) or len(value) > 63:
            raise ValueError(f"{value!r} is not a DNS-1123 label of at most 63 characters")
        return value

    @field_validator("rayservice")
    @classmethod
    def _rayservice(cls, value: str) -> str:
        if not names.DNS_1035.fullmatch(value) or len(value) > 63 - len("-serve-svc"):
            raise ValueError(f"{value!r} is not a DNS-1035 label of at most {63 - len('-serve-svc')} characters (room for -serve-svc)")
        return value


class PromoteRequest(ModelTarget):
    """One new version of one model, and how it is to reach users."""

    version: str
    uri: str = Field(description="where the artifact is: s3://, gs://, pvc://, hf://, https://, models:/ ...")
    import_path: str = Field(description="module:attribute of the Serve application or its builder")
    steps: tuple[float, ...] = Field((10.0, 25.0, 50.0), description="ceilings of the candidate's share, in percent, rising")
    options: Options = Options()

    @field_validator("version")
    @classmethod
    def _version(cls, value: str) -> str:
        if not names.VERSION.fullmatch(value) or len(value) > 63:
            raise ValueError(f"{value!r} must be lower-case letters, digits, '.', '_', '-', at most 63 characters")
        if value == "router":
            raise ValueError("'router' is taken: {model}-router is the application that splits the traffic")
        return value

    @field_validator("uri")
    @classmethod
    def _uri(cls, value: str, info: ValidationInfo) -> str:
        _refuse_credentials(value, info)
        parts = urlsplit(value)
        if len(parts.scheme) < 2 or not (parts.netloc or parts.path.strip("/")):  # C:\\model is a path, not a URI
            raise ValueError("it is not a URI with a scheme, such as s3://bucket/model or pvc://claim/path")
        return value

    @field_validator("import_path")
    @classmethod
    def _import_path(cls, value: str) -> str:
        if not IMPORT_PATH.fullmatch(value):
            raise ValueError(f"{value!r} is not of the form package.module:attribute")
        return value

    @field_validator("steps", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("steps")
    @classmethod
    def _rising(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value:
            raise ValueError("at least one step is needed")
        if any(not 0 < weight < 100 for weight in value):
            raise ValueError(f"{list(value)}: each step is a percentage above 0 and below 100; 100 is the promotion itself")
        if any(a >= b for a, b in itertools.pairwise(value)):
            raise ValueError(f"{list(value)}: the steps must rise")
        return value

    @property
    def plain(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON without nulls, which KFP's struct parameters do not take."""
        return self.model_dump(mode="json", exclude_defaults=True)

    @model_validator(mode="after")
    def _gates(self) -> PromoteRequest:
        places = self.options.approval.before if self.options.approval else ()
        unknown = [place for place in places if place != "promote" and place not in self.steps]
        if unknown:
            raise ValueError(f"options.approval.before: {unknown[0]:g} is not one of the steps {list(self.steps)}; nobody would wait there")
        return self

    @model_validator(mode="after")
    def _pinned(self, info: ValidationInfo) -> PromoteRequest:
        pinned = None if (info.context or {}).get(STORED) else pinned_digest(self.uri)
        if pinned is not None and not DIGEST.fullmatch(pinned):
            raise ValueError("uri: what follows its @ is not of the form sha256:<64 hex digits>")
        if pinned is not None and self.options.digest not in (None, pinned):
            raise ValueError(f"uri and options.digest contradict each other: {pinned} and {self.options.digest}; leave options.digest out")
        return self

    @model_validator(mode="after")
    def _together(self) -> PromoteRequest:
        target = self.options.alias_target
        if target is not None and not CLUSTER_HOST.fullmatch(target) and not self.options.allow_external_alias:
            raise ValueError(
                f"options.alias_target {target!r} is not a cluster-local name (service.namespace.svc.cluster.local); "
                "set options.allow_external_alias to mean it"
            )
        return self

    @model_validator(mode="after")
    def _asked_before_users(self) -> PromoteRequest:
        options = self.options
        if options.protocol == "json" and not (options.smoke or options.skip_smoke or self.family in FAMILIES):
            raise ValueError(
                "options.smoke: protocol json has no health checks, so nothing would be asked before users are; give at least one case, or the "
                f"word none; a family that has cases of its own (options.provenance.family: {', '.join(FAMILIES)}) is enough too"
            )
        return self

    @property
    def family(self) -> str | None:
        """Of the model: as options.provenance says, else that of the library's own application; None where neither does."""
        own = OWN_APPLICATION.fullmatch(self.import_path)
        return self.options.provenance.family or (own[1] if own and own[1] in FAMILIES else None)

    @property
    def address(self) -> names.Address:
        """What clients call, as far as the request says it."""
        return names.address(self.model, alias_name=self.options.alias, route=self.options.route)

    @property
    def application(self) -> str:
        """Name of the version's Serve application."""
        return self.options.application or names.application(self.model, self.version)

    @property
    def builder_args(self) -> dict[str, Any]:
        """What the application builder gets; empty for a bound application."""
        options = self.options
        return {"model": self.model, "version": self.version, **options.args} if options.builder is True else dict(options.args)

    @property
    def target_host(self) -> str:
        """DNS name that the alias points to."""
        return self.options.alias_target or names.service_host(names.serve_service(self.rayservice), self.namespace)

    @property
    def digest(self) -> str:
        """SHA-256 of what the request says beside the defaults, in any order: with the same digest a rerun resumes, with another it is new.

        A default that a later library adds or changes does not make it another request.
        """
        return hashlib.sha256(json.dumps(self.plain, sort_keys=True).encode()).hexdigest()


def parse(values: Mapping[str, Any]) -> PromoteRequest:
    """A request from plain values (a run form, JSON, YAML). Raises `RequestInvalid` that names every wrong field in one paragraph."""
    return _validated(PromoteRequest, values, "request")


def parse_stored(values: Mapping[str, Any]) -> PromoteRequest:
    """A request as an earlier `parse` took it, perhaps that of an older version: it can be gone on with, and taken back."""
    return _validated(PromoteRequest, values, "request", {STORED: True})


def parse_options(values: Mapping[str, Any]) -> Options:
    """The options struct alone."""
    return _validated(Options, values, "options")


def parse_rules(values: Mapping[str, Any]) -> RevalidateRules:
    """How to re-validate, from plain values."""
    return _validated(RevalidateRules, values, "rules")


def parse_case(values: Any, what: str) -> SmokeCase:
    """One smoke case, from plain values; ``what`` names it in messages."""
    return _validated(SmokeCase, values, what)


def parse_target(values: Mapping[str, Any]) -> ModelTarget:
    """A model on an endpoint, from plain values."""
    return _validated(ModelTarget, values, "target")


def pinned_digest(uri: str) -> str | None:
    """What an ``oci://`` reference says after its ``@``; None where it has none, and for other schemes."""
    return (uri.partition("@")[2] or None) if uri.lower().startswith("oci://") else None


def assert_allowed(request: PromoteRequest, annotations: Mapping[str, str], known_imports: set[str]) -> None:
    """Nothing executable from parameters without the allow-list.

    ``annotations`` are the RayService's, ``known_imports`` the import paths that its applications use already. Raises `RequestInvalid`.
    """
    patterns = [
        "kfp_components.models.*",
        *(part.strip() for part in annotations.get(names.ALLOWED_IMPORTS, "").split(",") if part.strip()),
    ]
    where = f"RayService {request.namespace}/{request.rayservice}"
    if request.import_path not in known_imports and not any(fnmatch.fnmatchcase(request.import_path, pattern) for pattern in patterns):
        raise errors.RequestInvalid(
            f"import_path {request.import_path!r}: not on the allow-list of {where} ({', '.join(patterns)}); "
            f"its owner adds it to the annotation {names.ALLOWED_IMPORTS}"
        )
    executable = sorted(set(request.options.runtime_env) - {"env_vars"})
    if executable and annotations.get(names.ALLOW_RUNTIME_ENV) != "true":
        raise errors.RequestInvalid(
            f"options.runtime_env.{executable[0]}: brings code or packages, which {where} does not allow; "
            f"its owner sets the annotation {names.ALLOW_RUNTIME_ENV}: true"
        )


def plain_secrets(asked: PromoteRequest) -> list[str]:
    """Names of environment variables that look like secrets and stand in plain text in the request, and so in RayService and record."""
    actors = [piece.get("ray_actor_options") or {} for piece in asked.options.deployments]
    environments = [asked.options.runtime_env, *(actor.get("runtime_env") or {} for actor in actors if isinstance(actor, dict))]
    found = [env.get("env_vars") for env in environments if isinstance(env, dict)]
    names_of = {str(name): str(value) for variables in found if isinstance(variables, dict) for name, value in variables.items()}
    return [name for name, value in names_of.items() if uris.has_token(value) or (uris.is_secret_name(name) and value and not value.startswith("/"))]


def _validated(kind: type[Part], values: Mapping[str, Any], what: str, context: dict[str, Any] | None = None) -> Part:
    if not isinstance(values, Mapping):
        raise errors.RequestInvalid(f"{what}: expected a mapping of keys to values, found {type(values).__name__}")
    try:
        return kind.model_validate(dict(values), context=context)
    except ValidationError as error:
        raise errors.RequestInvalid(f"{what}: " + "; ".join(_sentence(kind, item) for item in error.errors())) from error


def _sentence(kind: type[BaseModel], item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"]) or "values"
    if item["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(item["loc"][-1]), _fields(kind, item["loc"][:-1]), n=1)
        return f"{where} is not a known key" + (f"; did you mean {close[0]}?" if close else "")
    if item["type"] == "missing":
        return f"{where} is missing"
    return f"{where}: {item['msg'].removeprefix('Value error, ')}"


def _fields(kind: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """Names of the fields at a path of nested parts; for the hint at a mistyped key."""
    for part in path:
        if isinstance(part, int):
            continue  # an item of a list is described where the list is
        field = kind.model_fields.get(str(part))
        annotation = field.annotation if field else None
        parts = [inner for inner in (annotation, *get_args(annotation)) if isinstance(inner, type) and issubclass(inner, BaseModel)]
        if not parts:
            return []
        kind = parts[0]
    return list(kind.model_fields)
