"""``s3://`` by boto3 itself, over HTTP, against a stand-in of S3's REST interface."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore import loaders
from standins import s3
from test_artifact import BYTES, DIGEST, OTHER, asked, keys, sign, signed_digest, why_not

from kfp_components import artifact, errors
from kfp_components.artifact.content import Progress

__all__ = ["keys"]
FILES = {"a.json": b"{}", "a/weights.bin": BYTES, "tokenizer/vocab é+%.txt": b"a b"}


LOADER = functools.cache(loaders.create_loader)
"""boto3 reads its descriptions of AWS for each session anew, which takes longer than the tests."""


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[s3.S3]:
    monkeypatch.setattr("botocore.session.create_loader", LOADER)
    with s3.running() as found:
        for name, value in {
            "AWS_ENDPOINT_URL": found.url,
            "AWS_ACCESS_KEY_ID": "here",
            "AWS_SECRET_ACCESS_KEY": "hush",
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": str(tmp_path / "none"),
            "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
            "NO_PROXY": "127.0.0.1",
        }.items():
            monkeypatch.setenv(name, value)
        found.buckets["models"] = {"bge/model.bin": BYTES, **{f"bge/v2/{name}": content for name, content in FILES.items()}, "bge/v22/x": b"x"}
        yield found


def put(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def test_an_object_is_what_its_digest_says(store: s3.S3) -> None:
    assert artifact.verify(asked("s3://models/bge/model.bin", digest=DIGEST)).sentence == f"digest {DIGEST} verified, as options.digest says"
    with pytest.raises(errors.ArtifactRejected, match=rf"artifact s3://models/bge/model\.bin: its digest is {DIGEST}, not {OTHER}"):
        artifact.verify(asked("s3://models/bge/model.bin", digest=OTHER))
    store.buckets["models"]["bge/model.bin"] = BYTES[:-1] + b"X"
    with pytest.raises(errors.ArtifactRejected):
        artifact.verify(asked("s3://models/bge/model.bin", digest=DIGEST))


@pytest.mark.parametrize("uri", ["s3://models/bge/v2", "s3://models/bge/v2/"])
def test_a_prefix_is_the_folder_that_was_uploaded(store: s3.S3, tmp_path: Path, uri: str) -> None:
    digest = artifact.verify(asked(put(tmp_path / "model", FILES).as_uri())).digest
    store.buckets["models"]["bge/v2/"] = b""  # what some tools put for a folder
    store.buckets["models"]["bge/v2/.gitattributes"] = b"*.bin lfs"
    assert artifact.verify(asked(uri, digest=digest)).by
    assert sum("continuation-token" in seen for seen in store.seen) == 2, "five objects, two at a time"
    store.buckets["models"]["bge/v2/a.json"] = b"[]"
    with pytest.raises(errors.ArtifactRejected):
        artifact.verify(asked(uri, digest=digest))


def test_a_signature_beside_it_and_in_it(store: s3.S3, tmp_path: Path, keys: tuple[Path, str, str]) -> None:
    folder = put(tmp_path / "model", FILES)
    sign(folder, folder / "model.sig", keys[0])
    store.buckets["models"]["bge/v2/model.sig"] = (folder / "model.sig").read_bytes()
    given: dict[str, Any] = {"signature": {"uri": "s3://models/bge/v2/model.sig", "public_key": keys[1]}}
    found = artifact.verify(asked("s3://models/bge/v2", artifact=given))
    assert found.by_signature and found.digest == signed_digest(folder / "model.sig")
    store.buckets["models"]["bge/v2/a.json"] = b"[]"
    with pytest.raises(errors.ArtifactRejected, match="does not hold: Signature mismatch"):
        artifact.verify(asked("s3://models/bge/v2", artifact=given))


@pytest.mark.parametrize("uri", ["s3://models/bge/v3", "s3://nowhere/bge", "s3://models/bge/v2/a.jso"])
def test_what_is_not_there(store: s3.S3, uri: str) -> None:
    with pytest.raises(errors.NotFound, match=f"artifact {uri}: .*put it there, or correct the URI"):
        artifact.verify(asked(uri, digest=DIGEST))


def test_what_may_not_be_read(store: s3.S3, monkeypatch: pytest.MonkeyPatch) -> None:
    store.forbidden.add("models")
    assert why_not("s3://models/bge/v2/", digest=DIGEST) == "S3 answers AccessDenied (AccessDenied it is)"
    assert why_not("s3://models/bge/v2", digest=DIGEST).startswith("S3 answers 403")
    with pytest.raises(errors.ArtifactRejected, match="it has to be verified, but S3 answers 403"):
        artifact.verify(asked("s3://models/bge/v2", digest=DIGEST, artifact={"verify": "required"}))
    store.forbidden.clear()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert why_not("s3://models/bge/model.bin", digest=DIGEST) == "S3 cannot be asked here (Unable to locate credentials)"
    assert artifact.verify(asked("s3://anonymous@models/bge/model.bin", digest=DIGEST)).by, "a public bucket"
    assert not store.signed[-1]


@pytest.mark.parametrize("answer", [503, 500, "cut"])
def test_an_outage_is_no_verdict(store: s3.S3, answer: int | str) -> None:
    store.answers = [answer, answer]  # of HEAD nothing is cut
    with pytest.raises(errors.Unreachable, match="the same command tries again"):
        artifact.verify(asked("s3://models/bge/model.bin", digest=DIGEST))


def test_nobody_there(store: s3.S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(errors.Unreachable, match=r"S3: no answer \(.*127\.0\.0\.1:9"):
        artifact.verify(asked("s3://models/bge/model.bin", digest=DIGEST))


def test_an_object_that_changes_meanwhile_is_read_again(store: s3.S3) -> None:
    def change(progress: Progress) -> None:
        if not progress.done_bytes:
            store.buckets["models"]["bge/model.bin"] = b"another"

    with pytest.raises(errors.Unreachable, match="it changed while it was read"):
        artifact.verify(asked("s3://models/bge/model.bin", digest=DIGEST), tell=change)
    with pytest.raises(errors.ArtifactRejected):
        artifact.verify(asked("s3://models/bge/model.bin", digest=DIGEST))


def test_too_much_is_not_even_begun(store: s3.S3) -> None:
    store.buckets["models"]["big/1"] = b"x" * (1 << 20)
    store.buckets["models"]["big/2"] = b"x"
    assert "bigger than options.artifact.max_download_mib" in why_not("s3://models/big", digest=DIGEST, artifact={"max_download_mib": 1})
    assert not [seen for seen in store.seen if seen.startswith("GET /models/big")]


@pytest.mark.parametrize("name", ["../../out", "a//b", "/etc/passwd"])
def test_a_key_that_is_no_path_in_a_folder_is_refused(store: s3.S3, name: str) -> None:
    store.buckets["models"][f"evil/{name}"] = b"x"
    assert "is not the path of a file in a folder" in why_not("s3://models/evil", digest=DIGEST)


def test_a_plan_looks_and_does_not_read(store: s3.S3) -> None:
    told = artifact.verify(asked("s3://models/bge/v2", digest=OTHER), dry=True).sentence
    size = sum(map(len, FILES.values()))
    assert f"a run reads 3 files, {size / 1e3:.1f} kB, and compares the digest with {OTHER}" in told
    assert not [seen for seen in store.seen if seen.startswith("GET /models/bge")]
    assert why_not("s3://models/bge/v2") == "neither a digest nor a signature is given"
