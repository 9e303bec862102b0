"""A stand-in for S3's REST interface, for reading: HeadObject, GetObject (with If-Match), ListObjectsV2 (with paging and URL-encoded keys), and errors
in S3's XML. Real clients (boto3) use it over HTTP on loopback.

What it does not do: check signatures or rights (``forbidden`` names the buckets that answer AccessDenied), versions, ranges, checksums, writes, and
virtual-host addresses (boto3 uses paths for an IP address anyway).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

from standins.loopback import Answering, served


@dataclass
class S3:
    """What it holds. ``page`` objects are listed at a time; ``answers`` are given before anything else, one a request: a status, or ``cut``."""

    url: str = ""
    buckets: dict[str, dict[str, bytes]] = field(default_factory=dict)
    forbidden: set[str] = field(default_factory=set)
    page: int = 2
    answers: list[int | str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    signed: list[bool] = field(default_factory=list)


def etag(content: bytes) -> str:
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


@contextmanager
def running() -> Iterator[S3]:
    store = S3()

    class Handler(Answering):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            bucket, _, key = parts.path.lstrip("/").partition("/")
            query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
            store.seen.append(f"{self.command} {self.path}")
            store.signed.append("authorization" in self.headers)
            given = store.answers.pop(0) if store.answers else None
            if isinstance(given, int):
                return self._error(given, {503: "SlowDown", 500: "InternalError"}.get(given, "Other"))
            if bucket in store.forbidden:
                return self._error(403, "AccessDenied")
            if bucket not in store.buckets:
                return self._error(404, "NoSuchBucket")
            if not key:
                return self._list(bucket, query)
            content = store.buckets[bucket].get(unquote(key))
            if content is None:
                return self._error(404, "NoSuchKey")
            if self.headers.get("if-match", etag(content)) != etag(content):
                return self._error(412, "PreconditionFailed")
            return self.answer(200, content, "binary/octet-stream", cut=given == "cut", ETag=etag(content))

        def _list(self, bucket: str, query: dict[str, str]) -> None:
            keys = sorted(key for key in store.buckets[bucket] if key.startswith(query.get("prefix", "")))
            after = query.get("continuation-token", "")
            rest = [key for key in keys if key > after]
            page, more = rest[: store.page], len(rest) > store.page
            shown = quote if query.get("encoding-type") == "url" else escape
            contents = "".join(
                f"<Contents><Key>{shown(key)}</Key><Size>{len(store.buckets[bucket][key])}</Size>"
                f"<ETag>{escape(etag(store.buckets[bucket][key]))}</ETag></Contents>"
                for key in page
            )
            token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
            encoding = "<EncodingType>url</EncodingType>" if shown is quote else ""
            body = (
                f"<ListBucketResult><Name>{bucket}</Name><KeyCount>{len(page)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>"
                f"{encoding}{token}{contents}</ListBucketResult>"
            )
            self.answer(200, body.encode(), "application/xml")

        def _error(self, status: int, code: str) -> None:
            self.answer(status, f"<Error><Code>{code}</Code><Message>{code} it is</Message></Error>".encode(), "application/xml")

    with served(Handler) as address:
        store.url = f"http://{address}"
        yield store
