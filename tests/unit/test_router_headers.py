"""What a version says of itself by its internal route is told to clients by the public one, and nothing else is touched."""

import pytest

from kfp_components import names
from kfp_components.router import headers
from kfp_components.router.headers import Prefixes, answered, forwarded, header, known_hosts

HOSTS = frozenset({"models.example", "10.0.0.7:8000"})


def prefixes(root_path: str = "/m", route: str = "/.versions/m/v1") -> Prefixes:
    return Prefixes.of(route, root_path, HOSTS)


SAME = None
URLS = [
    ("/.versions/m/v1/items/", "/m/items/"),
    ("/.versions/m/v1", "/m"),
    ("/.versions/m/v1/", "/m/"),
    ("/.versions/m/v1?a=/.versions/m/v1", "/m?a=/.versions/m/v1"),
    ("/.versions/m/v1#there", "/m#there"),
    ("/.versions/m/v1/a%2Fb?x=%2F&y#z", "/m/a%2Fb?x=%2F&y#z"),
    ("/%2Eversions/m/v1/items", "/m/items"),
    ("/.versions/%6d/v%31/items", "/m/items"),
    ("http://models.example/.versions/m/v1/items/", "http://models.example/m/items/"),
    ("HTTPS://Models.Example:443/.versions/m/v1/items/", "HTTPS://Models.Example:443/m/items/"),
    ("http://models.example:80/.versions/m/v1", "http://models.example:80/m"),
    ("http://10.0.0.7:8000/.versions/m/v1?x", "http://10.0.0.7:8000/m?x"),
    ("ws://models.example/.versions/m/v1/chat", "ws://models.example/m/chat"),
    ("//models.example/.versions/m/v1/items/", "//models.example/m/items/"),
    ("/.versions/m/v1x", SAME),
    ("/.versions/m/v1x/items", SAME),
    ("/.versions/m/v10", SAME),
    ("/.versions/m/v1%2Fitems", SAME),
    ("/.versions/m%2Fv1/items", SAME),
    ("/.versions/m", SAME),
    ("/.versions", SAME),
    ("/.Versions/m/v1/items", SAME),
    ("/other/.versions/m/v1", SAME),
    ("/?next=/.versions/m/v1/items", SAME),
    ("/", SAME),
    ("", SAME),
    ("items/", SAME),
    ("../.versions/m/v1/items", SAME),
    ("?page=2", SAME),
    ("http://elsewhere.example/.versions/m/v1/items/", SAME),
    ("http://models.example:8443/.versions/m/v1", SAME),
    ("http://models.example.evil/.versions/m/v1", SAME),
    ("http://user@models.example/.versions/m/v1", SAME),
    ("http://models.example", SAME),
    ("mailto:somebody@models.example", SAME),
    ("//elsewhere.example/.versions/m/v1", SAME),
]


@pytest.mark.parametrize(("url", "public"), URLS)
def test_case_13_a_url(url: str, public: str | None) -> None:
    assert prefixes().url(url) == (url if public is None else public)


@pytest.mark.parametrize(
    ("root_path", "url", "public"),
    [
        ("", "/.versions/m/v1/items/", "/items/"),
        ("", "/.versions/m/v1", "/"),
        ("", "/.versions/m/v1?x=1", "/?x=1"),
        ("", "http://models.example/.versions/m/v1", "http://models.example/"),
        ("/", "/.versions/m/v1/items/", "/items/"),
        ("", "/.versions/m/v1//evil.example/x", "/.//evil.example/x"),
        ("", "http://models.example/.versions/m/v1//x", "http://models.example//x"),
        ("/m", "/.versions/m/v1//evil.example", "/m//evil.example"),
        ("/v1", "/.versions/m/v1/v1/models", "/v1/v1/models"),
        ("/whisper-large", "/.versions/m/v1/docs", "/whisper-large/docs"),
        ("/a/b", "/.versions/m/v1/docs", "/a/b/docs"),
        ("/with space", "/.versions/m/v1/docs", "/with%20space/docs"),
        ("/api/m", "/api/.versions/m/v1/docs", "/api/m/docs"),
        ("/api/m", "/.versions/m/v1/docs", "/api/m/docs"),
        ("/api/m", "/other/.versions/m/v1/docs", "/other/.versions/m/v1/docs"),
    ],
)
def test_case_13_at_any_public_route(root_path: str, url: str, public: str) -> None:
    assert prefixes(root_path).url(url) == public


@pytest.mark.parametrize(("route", "root_path"), [("/m", "/m"), ("", ""), ("", "/")])
def test_case_13_a_version_that_has_the_public_route_already_says_nothing_wrong(route: str, root_path: str) -> None:
    for url in ("/m/items", "/items", "/", "//elsewhere.example/m", "http://models.example/m/x"):
        assert prefixes(root_path, route).url(url) == url


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("Location", "/.versions/m/v1/items/", "/m/items/"),
        ("location", "/elsewhere", SAME),
        ("Content-Location", "http://models.example/.versions/m/v1/a", "http://models.example/m/a"),
        ("Refresh", "5; url=/.versions/m/v1/items/", "5; url=/m/items/"),
        ("Refresh", "0;URL='/.versions/m/v1/items/'", "0;URL='/m/items/'"),
        ("Refresh", '1.5 , url = "http://models.example/.versions/m/v1"', '1.5 , url = "http://models.example/m"'),
        ("Refresh", "5", SAME),
        ("Refresh", "5; /.versions/m/v1/x", "5; /m/x"),
        ("Link", "</.versions/m/v1/a?page=2>; rel=next, </.versions/m/v1x>; rel=other", "</m/a?page=2>; rel=next, </.versions/m/v1x>; rel=other"),
        ("Link", "<http://models.example/.versions/m/v1/a,b>; rel=prev", "<http://models.example/m/a,b>; rel=prev"),
        ("Set-Cookie", "a=/.versions/m/v1; Path=/.versions/m/v1; HttpOnly", "a=/.versions/m/v1; Path=/m; HttpOnly"),
        ("set-cookie", "a=b;path=/.versions/m/v1/", "a=b;path=/m/"),
        ("set-cookie", "a=b; Path=/; Domain=models.example", SAME),
        ("set-cookie", "a=b; Path=/.versions/m/v1x", SAME),
        ("set-cookie", "a=b", SAME),
        ("x-other", "/.versions/m/v1", SAME),
        ("x-bytes", "caf\xe9", SAME),
    ],
)
def test_case_13_headers_that_carry_a_url_or_a_path(name: str, value: str, told: str | None) -> None:
    found = answered([(name.encode(), value.encode("latin-1"))], "v1", prefixes())
    assert found == [(name.lower().encode(), (value if told is None else told).encode("latin-1")), (b"x-model-version", b"v1")]


def test_case_13_a_cookie_of_a_model_at_the_root_is_for_all_of_it() -> None:
    assert answered([(b"set-cookie", b"a=b; Path=/.versions/m/v1")], "v1", prefixes(""))[0] == (b"set-cookie", b"a=b; Path=/")


def test_case_13_what_the_clients_own_proxy_adds_is_not_told_twice() -> None:
    said = [
        *((b"date", b"now"), (b"server", b"uvicorn"), (b"Server", b"its own"), (b"connection", b"close"), (b"transfer-encoding", b"chunked")),
        *((b"x-model-version", b"forged"), (b"x-request-id", b"r1"), (b"x-request-id", b"its own"), (b"a", b"1"), (b"a", b"2")),
    ]
    told = answered(said, "v1", prefixes(), "r1")
    assert told == [(b"x-request-id", b"its own"), (b"a", b"1"), (b"a", b"2"), (b"x-model-version", b"v1")]


@pytest.mark.parametrize(
    ("root_path", "given", "told"),
    [
        ("/m", None, "/m"),
        ("", None, "/"),
        ("/", None, "/"),
        ("/m", "/gateway/", "/gateway/m"),
        ("", "/gateway", "/gateway"),
        ("/a b", None, "/a%20b"),
    ],
)
def test_case_13_the_application_is_told_the_public_prefix(root_path: str, given: str | None, told: str) -> None:
    headers = [(b"host", b"models.example"), (b"X-Many", b"1"), (b"X-Many", b"2"), (b"expect", b"100-continue"), (b"te", b"trailers")]
    found = forwarded(headers + ([(b"X-Forwarded-Prefix", given.encode())] if given else []), "m-router", root_path)
    assert sorted((name.lower(), value) for name, value in found.items()) == sorted(
        [("host", "models.example"), ("x-many", "1"), ("x-many", "2"), ("x-forwarded-prefix", told), ("x-model-router", "m-router")]
    )


def test_hosts_by_which_a_client_may_mean_this_one() -> None:
    headers = [(b"Host", b"Models.Example:80"), (b"x-forwarded-host", b"public.example, inner.example:8443")]
    assert known_hosts(headers, "127.0.0.1:8000") == {"models.example", "public.example", "inner.example:8443", "127.0.0.1:8000"}
    assert known_hosts([]) == frozenset()
    assert header(headers, "host") == "Models.Example:80" and header(headers, "x-none") is None


def test_the_router_calls_its_headers_as_the_library_does() -> None:
    """It imports nothing of the rest, so that a Ray image needs no more than it; what both write is written twice."""
    assert (headers.VERSION_HEADER, headers.ROUTER_HEADER) == (names.VERSION_HEADER, names.ROUTER_HEADER)
