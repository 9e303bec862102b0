"""``s3://bucket/key``: one object, or all below a prefix. By boto3 with its own chain of credentials, region and AWS_ENDPOINT_URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit

from kfp_components.artifact.content import CHUNK_BYTES, Away, File, Found, Missing, Reading, Unreadable, refuse_name

CONNECT_S, READ_S = 10.0, 30.0
LATER = ("SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "Throttling", "ThrottlingException", "503", "500", "429")
GONE = ("NoSuchKey", "NoSuchBucket", "404", "NoSuchVersion")


def find(uri: str, _reading: Reading) -> Found:
    """The object, or the objects below it as a folder's files. Raises `Missing`, `Unreadable`, `Away`."""
    try:
        import boto3  # the extra `s3`
        from botocore import UNSIGNED
        from botocore.config import Config
    except ImportError:
        raise Unreadable("boto3 is not installed here; install kfp-serving-components[s3]") from None
    parts = urlsplit(uri)
    user, _, bucket = parts.netloc.rpartition("@")
    key = unquote(parts.path).lstrip("/")
    unsigned = {"signature_version": UNSIGNED} if user == "anonymous" else {}
    with _understood():
        client = boto3.session.Session().client("s3", config=Config(connect_timeout=CONNECT_S, read_timeout=READ_S, **unsigned))
        head = _head(client, bucket, key) if key and not key.endswith("/") else None
        if head is not None:
            return Found((File("", head["ContentLength"], partial(_chunks, client, bucket, key, head.get("ETag"))),))
        prefix = f"{key.rstrip('/')}/" if key else ""
        files = []
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", ()):
                name = item["Key"].removeprefix(prefix)
                if item["Size"] == 0 and (not name or name.endswith("/")):
                    continue  # what stands for a folder
                refuse_name(name)
                files.append(File(name, item["Size"], partial(_chunks, client, bucket, item["Key"], item.get("ETag"))))
    if not files:
        raise Missing(f"bucket {bucket} has neither an object {key!r} nor any below it")
    return Found(tuple(files))


def _head(client: Any, bucket: str, key: str) -> dict[str, Any] | None:
    from botocore.exceptions import ClientError

    try:
        found: dict[str, Any] = client.head_object(Bucket=bucket, Key=key)
        return found
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in GONE:
            return None
        raise


def _chunks(client: Any, bucket: str, key: str, etag: str | None) -> Iterator[bytes]:
    """The object as it was when it was found."""
    with _understood():
        body = client.get_object(Bucket=bucket, Key=key, **({"IfMatch": etag} if etag else {}))["Body"]
        with body:
            yield from body.iter_chunks(CHUNK_BYTES)


@contextmanager
def _understood() -> Iterator[None]:
    """boto3's errors, as what they mean here."""
    from botocore import exceptions

    try:
        yield
    except exceptions.ClientError as error:
        told = error.response.get("Error", {})
        code = str(told.get("Code", "?"))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        said = f"S3 answers {code}" + (f" ({message})" if (message := told.get("Message")) and message != code else "")
        if code in LATER or status >= 500 or status == 429:
            raise Away(said) from error
        if code in ("PreconditionFailed", "412"):
            raise Away("it changed while it was read") from error
        raise (Missing if code in GONE else Unreadable)(said) from error
    except (exceptions.HTTPClientError, exceptions.ConnectionError, exceptions.IncompleteReadError, exceptions.FlexibleChecksumError) as error:
        raise Away(f"S3: no answer ({error})") from error
    except (exceptions.BotoCoreError, ValueError) as error:  # no credentials, a profile that there is not, a bucket's name that is none
        raise Unreadable(f"S3 cannot be asked here ({error})") from error
