"""Credentials in URIs: where they stand, by name and never by value, and URIs as messages may show them.

What a request says is stored in the stub's annotations, the registry, the release record and KFP's parameters, all of which people read.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from urllib.parse import unquote, unquote_plus, urlsplit

USERS = ("ssh", "git+ssh", "sftp", "scp", "rsync", "hdfs", "webhdfs", "swebhdfs", "viewfs", "postgresql", "mysql", "mssql", "oracle")
"""Schemes whose URIs name a user who proves himself otherwise; a driver may follow (``mysql+pymysql``)."""
CONTAINERS = ("abfs", "abfss", "wasb", "wasbs", "az", "azure")
"""Azure's ``container@account``."""
ANONYMOUS = ("s3", "s3a", "s3n", "gs", "gcs")
"""Ray's ``s3://anonymous@bucket``, for public buckets."""

SECRET_WORDS = {
    "token",
    "secret",
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "sig",
    "signature",
    "credential",
    "credentials",
    "jwt",
    "hmac",
    "bearer",
}
SECRET_NAMES = SECRET_WORDS | {
    "key", "auth", "authorization", "pass", "sas", "apikey", "accesskey", "secretkey", "accountkey", "authkey", "privatekey", "sharedkey",
    "accesstoken", "authtoken", "secrettoken", "privatetoken", "jobtoken", "idtoken", "refreshtoken", "sessiontoken", "securitytoken", "sastoken",
    "clientsecret", "awsaccesskeyid", "googleaccessid", "ossaccesskeyid", "sharedaccesssignature", "userpass", "userpassword", "sign", "qsign",
}  # fmt: skip
KEY_OF = {"api", "access", "secret", "account", "auth", "private", "shared", "subscription", "storage", "encryption", "license"}
NO_SECRET = {
    "count",
    "limit",
    "type",
    "length",
    "size",
    "endpoint",
    "url",
    "uri",
    "file",
    "path",
    "name",
    "version",
    "algorithm",
    "method",
    "expiry",
    "ttl",
    "arn",
}
"""A last word that says something about a secret and is none: ``token_limit``, ``secret_name``, ``PASSWORD_FILE``."""
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
TOKENS = re.compile(
    r"(?<![A-Za-z0-9])(gh[pousr]_[A-Za-z0-9]{16}|github_pat_\w{16}|glpat-[\w-]{16}|hf_[A-Za-z0-9]{24}|(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])"
    r"|AIza[\w-]{30}|xox[abprs]-[\w-]{10}|ya29\.[\w-]{16}|dapi[0-9a-f]{32}|eyJ[\w-]{10,}\.eyJ[\w-]{10})"
)
"""Tokens that are known by how they begin: GitHub, GitLab, Hugging Face, AWS, Google, Slack, Databricks, JWT."""


def credential_in(uri: str) -> str | None:
    """Where a credential stands in a URI, in words that name its key and not its value; None where there is none."""
    for text in (uri, *_decoded(uri)):
        found = _credential_in(text)
        if found:
            return found
    return None


def shown(uri: str) -> str:
    """The URI for a message: without user, query and fragment where a credential stands in it."""
    if credential_in(uri) is None:
        return uri
    scheme, _, rest = uri.partition("://")
    host = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[2]
    return f"{scheme}://{host}/..." if rest else "a URI with a credential"


def is_secret_name(name: str) -> bool:
    """Whether what goes by that name is a secret, as far as names tell: ``X-Amz-Signature``, ``hfToken``, ``OPENAI_API_KEY``; not ``max_tokens``."""
    words = [word.lower() for word in WORD.findall(name)]
    if not words:
        return False
    return (
        "".join(words) in SECRET_NAMES
        or (not NO_SECRET & {words[-1]} and bool(SECRET_WORDS & set(words)))
        or (words[-1] == "key" and len(words) > 1 and words[-2] in KEY_OF)
    )


def in_text(text: str) -> list[str]:
    """The URIs that stand in a text: ``name @ git+https://host/x``."""
    return re.findall(r"[A-Za-z][A-Za-z0-9+.-]*://\S+", text)


def is_loopback(host: str) -> bool:
    """Whether a URI's host is this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def has_token(text: str) -> bool:
    """Whether a token that is known by its looks stands in it."""
    return TOKENS.search(text) is not None


def _credential_in(uri: str) -> str | None:
    scheme, has_authority, rest = uri.partition("//")
    scheme = scheme.removesuffix(":").lower()
    authority = re.split(r"[/?#\\]", rest, maxsplit=1)[0] if has_authority else ""
    if not has_authority:  # user:password@host
        scheme, _, rest = uri.partition(":")
        first = re.split(r"[/?#]", rest, maxsplit=1)[0]
        if "@" in first and not rest.startswith("/"):
            return "a user before the host"
    user, at, _ = authority.rpartition("@")
    if at and user and not _is_plain_user(scheme, user):
        return "a user and a password before the host" if ":" in user else "a user or token before the host"
    for key, value in _pairs(uri):
        if value and is_secret_name(key):
            return f"the key {key} in its query"
    if has_token(uri):
        return "a token"
    return None


def _is_plain_user(scheme: str, user: str) -> bool:
    if ":" in user or has_token(user):
        return False
    if user == "git":  # as every git host calls everybody
        return True
    base = scheme if scheme in USERS else scheme.partition("+")[0]
    return base in USERS or scheme in CONTAINERS or (scheme in ANONYMOUS and user == "anonymous")


def _pairs(uri: str) -> Iterator[tuple[str, str]]:
    """Keys and values of the query, of a fragment that is one, and of what follows a ``;`` in the path."""
    before, _, after = uri.partition("?")
    before, _, fragment = before.partition("#")
    for part in (*before.split(";")[1:], *re.split(r"[&;?#]", after), *re.split(r"[&;?/#]", fragment)):
        key, equals, value = part.partition("=")
        if equals:
            yield unquote_plus(key).strip(), value


def _decoded(uri: str) -> Iterator[str]:
    """URIs that stand in the values of its query, and what a second decoding would find."""
    for _, value in _pairs(uri):
        inner = unquote(value)
        if "://" in inner or "=" in inner:
            yield inner if "://" in inner else "x://x/?" + inner
    query = urlsplit("x:?" + uri.partition("?")[2]).query
    if "%25" in query:
        yield "x://x/?" + unquote(query)
