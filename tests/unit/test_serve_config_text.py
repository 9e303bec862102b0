"""The text of ``serveConfigV2`` is edited where the application stands: what other people wrote stays to the letter, in every form of YAML."""

import difflib
import json
import random
import re
from typing import Any

import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from kfp_components import errors
from kfp_components.serving import rayservice

NEW = {
    "name": "whisper-v2",
    "route_prefix": "/.versions/whisper/v2",
    "import_path": "acme.whisper:build",
    "args": {"version": "v2", "beams": [1, 2]},
    "deployments": [{"name": "Whisper", "num_replicas": 1, "user_config": {"threshold": 0.5}}],
}
NEW_LINES = 13

FORMS = {
    "dashes indented": "applications:\n  - name: a\n    route_prefix: /a\n    import_path: m:a\n  - name: b\n    import_path: m:b\n",
    "dashes not indented": "applications:\n# speech\n- name: a\n  import_path: m:a\n  deployments:\n  - name: A\n    num_replicas: 1\n- name: b\n",
    "four columns": "applications:\n    - name: a\n      import_path: m:a\n      args:\n          x: 1\n    - name: b\n      import_path: m:b\n",
    "wide dashes": "applications:\n-   name: a\n    import_path: m:a\n-   name: b\n    import_path: m:b\n",
    "one column": "applications:\n - name: a\n   args:\n    x:\n     - 1\n - name: b\n",
    "flow on one line": "applications: [{name: a, import_path: 'm:a'}, {name: b, import_path: m.b}]\n",
    "flow on one line, one entry": "applications: [{name: a, route_prefix: /a}]  # all\n",
    "flow with a comma at the end": "applications: [{name: a}, {name: b},]\n",
    "flow, an entry a line": "applications: [\n  {name: a, import_path: m.a},  # first\n  {name: b, import_path: m.b}  # second\n]\n",
    "flow, an entry a line, a comma at the end": "applications: [\n  # speech\n  {name: a},\n\n  # text\n  {name: b},\n]\nlogging_config: {}\n",
    "flow, the bracket at the last entry": "applications: [{name: a,\n   import_path: m.a},\n  {name: b}]\n",
    "flow entries in a block": "applications:\n  - {name: a, import_path: m.a, deployments: [{name: A, num_replicas: 2}]}\n  - {name: b}\n",
    "JSON on one line": json.dumps({"applications": [{"name": "a", "args": {"x": [1, True, None]}}, {"name": "b"}], "proxy_location": "EveryNode"}),
    "JSON without blanks": json.dumps({"applications": [{"name": "a", "route_prefix": "/a"}, {"name": "b"}]}, separators=(",", ":")) + "\n",
    "JSON, pretty": json.dumps({"proxy_location": "EveryNode", "applications": [{"name": "a", "route_prefix": "/a"}, {"name": "b"}]}, indent=2)
    + "\n",
    "JSON, pretty with tabs": json.dumps({"applications": [{"name": "a", "args": {"x": 1}}, {"name": "b"}]}, indent="\t"),
    "JSON, pretty, four columns": json.dumps({"applications": [{"name": "a", "deployments": [{"name": "A"}]}]}, indent=4) + "\n",
    "JSON, an empty list": '{"applications": [], "proxy_location": "EveryNode"}\n',
    "JSON, pretty, an empty list": '{\n  "applications": [],\n  "proxy_location": "EveryNode"\n}\n',
    "JSON, null": '{"proxy_location": "EveryNode", "applications": null}\n',
    "JSON, no applications": '{"proxy_location": "EveryNode"}\n',
    "JSON, pretty, no applications": '{\n  "proxy_location": "EveryNode"\n}\n',
    "JSON, nothing": "{}",
    "flow, no applications": "{proxy_location: EveryNode}  # all\n",
    "an empty list": "applications: []\n",
    "an empty list with a comment": "proxy_location: EveryNode\napplications: []  # none yet\nlogging_config: {}\n",
    "an empty list with blanks": "applications: [ ]  # none yet\n",
    "an empty list after two blanks": "applications:  []\n",
    "an empty list below its key": "applications:\n  []\n",
    "an empty list on two lines": "applications: [\n]\n",
    "null": "applications: null  # none yet\nproxy_location: EveryNode\n",
    "a tilde": "applications: ~\n",
    "nothing": "applications:\n",
    "nothing, without a newline": "applications:",
    "nothing but comments": "# head\napplications:  # none yet\n  # - name: old\n  #   import_path: m:old\n\n# tail\nproxy_location: EveryNode\n",
    "no applications": "http_options: {port: 8000}\n\n# tail\n",
    "no applications, no newline": "http_options:\n  port: 8000",
    "empty": "",
    "blank": "  \n\n",
    "comments only": "# nothing yet\n\n# really\n",
    "a comment without a newline": "# nothing yet",
    "a document without content": "# head\n---\n# nothing yet\n...\n",
    "CRLF": "applications:\r\n  # speech\r\n  - name: a\r\n    import_path: m:a\r\n\r\n  - name: b\r\n    args:\r\n      x: 1\r\n",
    "CRLF, flow": "applications: [\r\n  {name: a},\r\n  {name: b}\r\n]\r\n",
    "CRLF, an empty list": "proxy_location: EveryNode\r\napplications: []\r\n",
    "no newline at the end": "applications:\n  - name: a\n    import_path: m:a\n  - name: b\n    import_path: m:b",
    "no newline at the end, a comment": "applications:\n  - name: a  # the only one",
    "no newline at the end, a text of several lines": "applications:\n  - name: a\n    args:\n      prompt: |\n        You are\n        kind.",
    "quotes": '"applications":\n  - \'name\': "a"\n    "route_prefix": \'/it\'\'s\'\n    import_path: "m:\\u0061"\n  - name: \'b\'\n    route_prefix: "/b"\n',
    "two blanks after a colon": "applications:\n  - name:   a\n    import_path:  m:a   # aligned\n    route_prefix: /a    # aligned\n",
    "anchors": "x-env: &env {env_vars: {A: '1'}}\napplications:\n  - name: a\n    runtime_env: *env\n  - name: b\n    runtime_env: *env\n",
    "merge keys": "base: &base\n  import_path: m:x\n  args: {x: 1}\napplications:\n  - <<: *base\n    name: a\n  - name: b\n    <<: [*base]\n    args: {x: 2}\n",
    "an anchor on an entry": "applications:\n  - &a\n    name: a\n    import_path: m:a\n  - &b {name: b}\n",
    "an anchor on the list": "applications: &all  # all of them\n  - name: a\n    import_path: m:a\n",
    "an anchor on the list, keys after": "applications: &all\n  - name: a\n    import_path: m:a\nlogging_config: {}\n",
    "a tag on the list": "applications: !!seq\n- name: a\n",
    "an anchor and a tag on the list": "applications: &x1 # all\n  # of\n  !!seq  # them\n  # here\n  - name: a\n\n# tail\nlogging_config: {}\n",
    "tags": "applications: !!seq\n  - !!map\n    name: !!str a\n    args: !custom {x: !!int '1'}\n  - name: b\n",
    "anchors and tags on routes": "applications:\n  - name: a\n    route_prefix: &a /a  # called from outside\n  - {name: b, route_prefix: !!str &b '/b'}\n  - name: c\n    route_prefix: &c # ours\n      !!str \"/c\" # all\n    args: {x: &x 1, y: *x}\n",
    "routes with a sign": "applications:\n  - name: a\n    route_prefix: &a >- # folded\n      /a\n\n  - name: b\n    route_prefix: !!str |-\n     /b\n    import_path: m:b\n",
    "a literal text": "applications:\n  - name: a\n    args:\n      prompt: |\n        # not a comment\n        - name: b\n\n        end\n  - name: b\n",
    "a literal text that is stripped": "applications:\n  - name: a\n    args:\n      prompt: |-\n        one\n\n\n  # text\n  - name: b\n",
    "a literal text that keeps its blank lines": "applications:\n  - name: a\n    args:\n      prompt: |+\n        one\n\n\n  - name: b\n    args:\n      prompt: |+\n        two\n\n\n",
    "a literal text with its indentation": "applications:\n  - name: a\n    args:\n      prompt: |2  # as it is\n          one\n        two\n  - name: b\n",
    "a folded text": "applications:\n  - name: a\n    args:\n      prompt: >\n        one\n        two\n\n          three\n  - name: b\n    args: {p: >-\n      }\n".replace(
        "{p: >-\n      }", "{p: x}"
    ),
    "a plain text of several lines": "applications:\n  - name: a\n    args:\n      prompt: one\n        two\n\n        three  # end\n  - name: b\n",
    "a quoted text of several lines": "applications:\n  - name: a\n    args: {prompt: \"one\n\n      two \\\n      three\", other: 'x\n      y'}\n  - name: b\n",
    "JSON with escapes": '{"applications": [{"name": "a", "route_prefix": "\\/a\\/b", "args": {"\\u043c": "\\u043c\\/"}}]}',
    "Unicode": "# größe\napplications:\n  - name: modèle\n    route_prefix: /模型\n    args: {emoji: \"🙂\", nbsp: 'a\u00a0b'}\n  - name: b\n",
    "a byte order mark": "\ufeffapplications:\n  - name: a\n    import_path: m:a\n  - name: b\n",
    "a byte order mark and nothing else": "\ufeff",
    "tabs in values": "applications:\n  - name: a\t# tab\n    args: {x: \"a\tb\",\ty: 'c\td'}\n  - name: b\n",
    "a document with its marks": "%YAML 1.2\n---\napplications:\n  - name: a\n    import_path: m:a\n...\n",
    "a document with its start": "# head\n--- # here\napplications:\n- name: a\n- name: b\n",
    "complex keys": "? applications\n: - name: a\n    args:\n      ? [1, 2]\n      : x\n  - name: b\n",
    "an explicit key of an entry": "applications:\n  - ? name\n    : a\n    ? route_prefix\n    : /a\n  - name: b\n",
    "dashes alone": "applications:\n  -\n    name: a\n    import_path: m:a\n  - # second\n    name: b\n    import_path: m:b\n",
    "comments after the last entry": "applications:\n  - name: a\n    import_path: m:a\n  # - name: old\n  #   import_path: m:old\n# the end\n",
    "comments that are deeper": "applications:\n  - name: a\n    import_path: m:a\n    # num_replicas: 2\n\n  - name: b\n      # deep\n    # deeper\n\n",
    "comments everywhere": "# 0\napplications:  # 1\n\n# 2\n  # 3\n  - name: a  # 4\n    # 5\n    args:  # 6\n      # 7\n      x: 1  # 8\n      # 9\n  # 10\n  - name: b # 11\n  # 12\n# 13\n",
    "keys after": "applications:\n  - name: a\n    import_path: m:a\n\n# how it logs\nlogging_config:\n  log_level: DEBUG\n",
    "an indented document": "  applications:\n    - name: a\n      import_path: m:a\n  proxy_location: EveryNode\n",
    "without a name": "applications:\n  - import_path: m:a\n    route_prefix: /a\n  - name: b\n",
    "blank lines between": "applications:\n\n  - name: a\n    import_path: m:a\n\n\n  - name: b\n\n\n  - name: c\n\n",
}
"""Texts by what is special in them."""

SERVED = [(form, name) for form, text in FORMS.items() for name in rayservice.applications(text)]
served = pytest.mark.parametrize(("form", "name"), SERVED, ids=lambda value: value)


def lines_out_and_in(before: str, after: str) -> tuple[list[str], list[str]]:
    """What a diff shows as gone and as new."""
    old, new = before.splitlines(True), after.splitlines(True)
    changes = [change for change in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes() if change[0] != "equal"]
    return [line for _, a, b, _, _ in changes for line in old[a:b]], [line for _, _, _, a, b in changes for line in new[a:b]]


def as_the_operator_reads(text: str) -> list[Any]:
    """By the other parser."""

    class Loader(yaml.CSafeLoader):
        pass

    Loader.add_constructor("!custom", lambda loader, node: loader.construct_mapping(node, deep=True))
    Loader.add_constructor("tag:yaml.org,2002:seq", lambda loader, node: loader.construct_sequence(node, deep=True))
    config = yaml.load(text.replace("%YAML 1.2", "%YAML 1.1").replace("? [1, 2]\n", "? (1, 2)\n"), Loader) or {}
    return list(config.get("applications") or [])


@pytest.mark.parametrize("form", FORMS)
def test_adding_and_removing_gives_the_very_text(form: str) -> None:
    text = FORMS[form]
    added = rayservice.with_application(text, NEW)
    assert rayservice.applications(added) == {**rayservice.applications(text), "whisper-v2": NEW}
    first = form == "no newline at the end, a text of several lines"  # behind it, that text would have a newline more
    assert as_the_operator_reads(added) == [*([NEW] if first else []), *as_the_operator_reads(text), *([] if first else [NEW])]
    gone, new = lines_out_and_in(text, added)
    assert len(gone) <= 1 and len(new) - len(gone) <= (27 if added.lstrip("\ufeff").startswith("{") else NEW_LINES + 1), "no more lines than its own"
    assert all(
        "[" in line or "null" in line or "~" in line or not line.endswith("\n") or "{name" in line or "}" in line or form.startswith("JSON")
        for line in gone
    ), gone
    assert added.count("\r") == (added.count("\n") if "\r" in text else 0)
    assert not form.startswith("JSON") or json.loads(added)["applications"][-1] == NEW
    assert rayservice.without_application(added, "whisper-v2") == text
    again = rayservice.with_application(added, {**NEW, "name": "whisper-v3", "route_prefix": "/.versions/whisper/v3"})
    assert rayservice.without_application(again, "whisper-v3") == added


@served
def test_removing_takes_its_own_lines(form: str, name: str) -> None:
    text = FORMS[form]
    removed = rayservice.without_application(text, name)
    assert rayservice.applications(removed) == {key: entry for key, entry in rayservice.applications(text).items() if key != name}
    assert as_the_operator_reads(removed) == [entry for entry in as_the_operator_reads(text) if entry.get("name", "default") != name]
    _, new = lines_out_and_in(text, removed)
    assert len(new) <= 1 + ("flow" in form or "JSON" in form or "complex" in form), (
        "but for the line that holds the list, or a comma, nothing is written"
    )
    assert rayservice.without_application(removed, name) == removed
    assert rayservice.applications(rayservice.with_application(removed, NEW))["whisper-v2"] == NEW


@served
def test_replacing_writes_what_changed(form: str, name: str) -> None:
    text = FORMS[form]
    entry = rayservice.applications(text)[name]
    assert rayservice.with_application(text, {"name": name, **entry}) == text, "the same application is the same text"
    changed = {"name": name, **entry, "import_path": "m.other:app"}
    replaced = rayservice.with_application(text, changed)
    gone, new = lines_out_and_in(text, replaced)
    assert len(gone) <= 1 and len(new) <= 2, "one value, in one line"
    assert rayservice.applications(replaced) == rayservice.applications(text) | {name: {**entry, "import_path": "m.other:app"}}
    if "import_path" not in entry:
        assert rayservice.with_application(replaced, {"name": name, **entry}) == text
    more = rayservice.with_application(text, {"name": name, **entry, "args": {"deep": {"list": [{"a": 1}]}}, "host": None})
    assert rayservice.applications(more)[name] == {**entry, "args": {"deep": {"list": [{"a": 1}]}}, "host": None}
    rayservice.assert_others_unchanged(text, more, {name})
    bare = rayservice.with_application(text, {"name": name, "import_path": "m.bare:app"})
    assert rayservice.applications(bare)[name] == {**({"name": name} if "name" in entry else {}), "import_path": "m.bare:app"}
    rayservice.assert_others_unchanged(text, bare, {name})


@served
def test_a_route_goes_and_comes_back(form: str, name: str) -> None:
    text = FORMS[form]
    entry = rayservice.applications(text)[name]
    moved = rayservice.with_route(text, name, "/.versions/x/v1")
    assert rayservice.applications(moved) == rayservice.applications(text) | {name: {**entry, "route_prefix": "/.versions/x/v1"}}
    assert [entry.get("route_prefix") for entry in as_the_operator_reads(moved) if entry.get("name", "default") == name] == ["/.versions/x/v1"]
    gone, new = lines_out_and_in(text, moved)
    assert len(gone) <= 1 and len(new) <= 2
    assert rayservice.with_route(moved, name, entry.get("route_prefix")) == text


@served
def test_a_user_config_goes_and_comes_back(form: str, name: str) -> None:
    entry = rayservice.applications(FORMS[form])[name]
    deployments = [{"name": "Other"}, {"name": "Router", "user_config": {"stable": {"version": "v1"}, "weight": 0.0}}]
    text = rayservice.with_application(FORMS[form], {"name": name, **entry, "deployments": deployments})
    split = {"stable": {"version": "v1"}, "candidate": {"version": "v2", "routes": ["/x"]}, "weight": 10.5}
    shifted = rayservice.with_user_config(text, name, "Router", split)
    assert rayservice.user_config(shifted, name, "Router") == split
    assert as_the_operator_reads(shifted)[list(rayservice.applications(text)).index(name)]["deployments"][1]["user_config"] == split
    rayservice.assert_others_unchanged(text, shifted, {name})
    assert rayservice.with_user_config(shifted, name, "Router", deployments[1]["user_config"]) == text  # type: ignore[arg-type]


# --- what the field sent in -------------------------------------------------------------------------------------------------------


def test_case_10_comments_of_the_next_application_stay() -> None:
    text = """\
applications:
  - name: whisper-v1
    route_prefix: /.versions/whisper/v1
    import_path: acme.whisper:build
    deployments:
      - name: Whisper
        num_replicas: 1

  # xtts: call the voice team before you touch it (licence!)
  - name: xtts
    route_prefix: /xtts
    import_path: acme.xtts:app
"""
    assert (
        rayservice.without_application(text, "whisper-v1")
        == """\
applications:

  # xtts: call the voice team before you touch it (licence!)
  - name: xtts
    route_prefix: /xtts
    import_path: acme.xtts:app
"""
    )
    assert rayservice.without_application(text, "xtts") == text.partition("\n  # xtts")[0] + "\n", "and its own go with it, the blank line stays"


@pytest.mark.parametrize(
    "text",
    {
        "dashes not indented": "applications:\n# speech\n- name: a\n  route_prefix: /a\n  deployments:\n  - name: A\n    num_replicas: 1\n",
        "explicit null": "logging_config:\n  logs_dir: null\napplications:\n  - name: a\n    route_prefix: null\n    import_path: m:a\n",
        "flow without blanks": 'applications:\n  - name: a\n    import_path: m:a\n    runtime_env: {pip: ["x==1","y==2"]}\n',
        "two blanks after a colon": "applications:\n  - name: a\n    import_path:  m:a\n",
        "comment two blanks away": "applications:\n  - name: a\n    deployments:\n    - name: A\n      num_replicas: 8  # one a GPU\n",
        "no newline at the end": "applications:\n  - name: a\n    import_path: m:a",
    }.items(),
    ids=lambda value: value[0],
)
def test_case_11_nothing_is_reformatted(text: tuple[str, str]) -> None:
    added = rayservice.with_application(text[1], NEW)
    assert added.startswith(text[1])
    assert rayservice.without_application(added, "whisper-v2") == text[1]
    assert added.replace(text[1], "").strip("\n").startswith(("- name: whisper-v2", "  - name: whisper-v2")), "in the style of the others"


def test_case_15_an_application_without_a_name_is_default() -> None:
    text = "applications:\n  - import_path: acme.bge:app\n    route_prefix: /bge\n"
    added = rayservice.with_application(text, NEW)
    assert added.startswith(text), "the owner's entry gets no name from us"
    assert rayservice.applications(added)["default"] == {"import_path": "acme.bge:app", "route_prefix": "/bge"}
    replaced = rayservice.with_application(text, {"name": "default", "import_path": "acme.bge:app", "route_prefix": "/bge2"})
    assert replaced == text.replace("/bge", "/bge2")
    assert rayservice.with_application(text, {"import_path": "acme.bge:app", "route_prefix": "/bge2"}) == replaced
    assert rayservice.without_application(text, "default") == "applications: []\n"
    with pytest.raises(errors.RequestInvalid, match="'default' stands there twice"):
        rayservice.applications(text + "  - name: default\n    import_path: m:b\n")


def test_case_15_what_ray_takes_is_taken() -> None:
    text = "applications:\n- {import_path: m:a, route_prefix: null}\n- {name: A b/ü, import_path: m:b, route_prefix: null, deployments: }\n"
    assert list(rayservice.applications(text)) == ["default", "A b/ü"]
    assert rayservice.user_config(text, "A b/ü", "Model") is None


@pytest.mark.parametrize("listed", ["[ {name: a}]", "[  {name: a}]", "[\n  {name: a}\n]", "[{name: a} ]"])
def test_the_last_one_of_a_list_in_brackets_leaves_the_brackets(listed: str) -> None:
    """An empty list is what Ray takes; null, or none, is left only where it was so before."""
    removed = rayservice.without_application(f"applications: {listed}\n", "a")
    assert yaml.safe_load(removed) == {"applications": []}


# --- places -----------------------------------------------------------------------------------------------------------------------


def test_a_comment_that_is_not_as_deep_as_the_dash_is_not_the_entrys_own() -> None:
    text = "applications:\n# all of them\n  - name: a\n  # second\n\n  # b\n    # deep\n  - name: b\n"
    assert rayservice.without_application(text, "a") == text.replace("  - name: a\n", "")
    assert rayservice.without_application(text, "b") == text.replace("  # b\n    # deep\n  - name: b\n", "")


def test_a_route_is_written_below_the_name() -> None:
    text = "applications:\n  - name: a  # speech\n    # how\n    import_path: m:a\n  - import_path: m:b\n"
    assert rayservice.with_route(text, "a", "/a") == text.replace("    # how\n", "    route_prefix: /a\n    # how\n")
    assert rayservice.with_route(text, "default", "/b") == text.replace("- import_path: m:b", "- route_prefix: /b\n    import_path: m:b")
    for name in ("a", "default"):
        assert rayservice.with_route(rayservice.with_route(text, name, "/x"), name, None) == text


def test_true_is_not_one_but_one_is_one_point_zero() -> None:
    text = "applications:\n- name: a\n  args: {x: 1}\n"
    assert rayservice.with_application(text, {"name": "a", "args": {"x": 1.0}}) == text
    assert rayservice.with_application(text, {"name": "a", "args": {"x": True}}) == text.replace("1}", "true}")


@pytest.mark.parametrize("route", ["/", "/a b", "/it's", "/a/{id}", "/~x", "/v1.0-", "/größe", "'/a'", '"/a"', "/a:b", "/a#b", "'/it''s'"])
def test_a_route_comes_back_as_it_was_written(route: str) -> None:
    text = f"applications:\n  - name: a\n    route_prefix: {route}  # ours\n    import_path: m:a\n"
    moved = rayservice.with_route(text, "a", "/.versions/a/v1")
    quote = route[0] if route[0] != "/" else ""
    assert moved == text.replace(route, f"{quote}/.versions/a/v1{quote}")
    assert rayservice.with_route(moved, "a", rayservice.applications(text)["a"]["route_prefix"]) == text


def test_a_route_of_nobody() -> None:
    with pytest.raises(errors.NotFound, match="no application 'b'"):
        rayservice.with_route("applications:\n- name: a\n", "b", "/b")
    with pytest.raises(errors.RequestInvalid, match="'a' has `route_prefix: null`"):
        rayservice.with_route("applications:\n- {name: a, route_prefix: null}\n", "a", "/a")
    assert rayservice.with_route("applications:\n- name: a\n", "a", None) == "applications:\n- name: a\n"


def test_keys_that_stay_keep_their_text() -> None:
    text = """\
applications:
  - name: a
    # where
    import_path:   "m:a"   # do not rename
    args:
      # beams
      beams: 0x5  # hex
      gone: 1  # with its comment
    deployments:
      - name: A
        num_replicas: 2  # two zones
      # the second
      - name: B
        num_replicas: 3
    # the end
"""
    entry = rayservice.applications(text)["a"]
    wanted = {**entry, "args": {"beams": 5, "new": [1]}, "deployments": [{"name": "B", "num_replicas": 4}, {"name": "C"}]}
    assert (
        rayservice.with_application(text, wanted)
        == """\
applications:
  - name: a
    # where
    import_path:   "m:a"   # do not rename
    args:
      # beams
      beams: 0x5  # hex
      new:
        - 1
    deployments:
      # the second
      - name: B
        num_replicas: 4
      - name: C
    # the end
"""
    )


ANCHORS = """\
applications:
  - name: a
    runtime_env: &env {pip: [x]}
    args: {again: *env}
  - name: b
    runtime_env: *env
  - name: c
    <<: &base {host: h, args: {x: 1}}
    port: 1
"""


def test_an_anchor_that_is_used_elsewhere_is_not_removed() -> None:
    with pytest.raises(errors.RequestInvalid, match=r"'a' defines &env, which stands elsewhere as \*env"):
        rayservice.without_application(ANCHORS, "a")
    with pytest.raises(errors.RequestInvalid, match="&env"):
        rayservice.with_application(ANCHORS, {"name": "a", "runtime_env": {"pip": ["y"]}})
    assert rayservice.applications(rayservice.without_application(ANCHORS, "b")) == {
        name: entry for name, entry in rayservice.applications(ANCHORS).items() if name != "b"
    }
    assert rayservice.applications(rayservice.with_application(ANCHORS, {"name": "b", "runtime_env": {"pip": ["y"]}}))["b"]["runtime_env"] == {
        "pip": ["y"]
    }


def test_characters_that_are_escaped_in_halves_stay_so() -> None:
    """As JSON has them; the operator's parser takes none of them."""
    args = r'{"\ud83d\ude42": ["\ud83d\ude42 \u043c", "\ud83d"]}'
    text = f'{{"applications": [{{"name": "a", "route_prefix": "/a", "args": {args}}}]}}'
    moved = rayservice.with_route(text, "a", "/b")
    assert moved == text.replace("/a", "/b") and rayservice.applications(text)["a"]["args"] == json.loads(args)
    assert (
        args in rayservice.with_application(text, NEW)
        and rayservice.without_application(rayservice.with_application(text, NEW), "whisper-v2") == text
    )


@pytest.mark.parametrize("behind", ["- {name: b, args: {x: *r}}\n", "x-shared: *r\n"])
def test_a_route_whose_anchor_is_used_elsewhere_stays(behind: str) -> None:
    text = f"applications:\n- name: a\n  route_prefix: &r /a\n{behind}"
    with pytest.raises(errors.RequestInvalid, match=r"'a' defines &r, which stands elsewhere as \*r: .* write the value in place of \*r"):
        rayservice.with_route(text, "a", "/b")


@pytest.mark.parametrize("wanted", [{"host": "i", "args": {"x": 1}, "port": 1}, {"args": {"x": 2}}, {"host": "h", "args": {"x": 1}}, {"port": 2}])
def test_what_is_merged_in_is_overridden_or_written_out(wanted: dict[str, Any]) -> None:
    after = rayservice.with_application(ANCHORS, {"name": "c", **wanted})
    assert rayservice.applications(after) == rayservice.applications(ANCHORS) | {"c": {"name": "c", **wanted}}
    assert as_the_operator_reads(after)[-1] == {"name": "c", **wanted}
    assert after.startswith(ANCHORS.partition("    <<")[0])
    commented = ANCHORS.replace("    port: 1", "    port: 1  # ours")
    assert "port" not in wanted or wanted["port"] == 2 or "  # ours" in rayservice.with_application(commented, {"name": "c", **wanted})


def test_an_alias_within_the_application_follows_or_is_written_out() -> None:
    text = "applications:\n  - name: a\n    args: &x {v: 1}\n    runtime_env: *x\n"
    for wanted in ({"args": {"v": 2}, "runtime_env": {"v": 1}}, {"args": {"v": 1}, "runtime_env": {"v": 2}}, {"runtime_env": {"v": 1}}):
        assert rayservice.applications(rayservice.with_application(text, {"name": "a", **wanted}))["a"] == {"name": "a", **wanted}


@pytest.mark.parametrize(
    ("text", "told"),
    [("x: &all\n  - name: a\napplications: *all\n", r"is the alias \*all"), ("x: &x {applications: [{name: a}]}\n<<: *x\n", "is merged in by <<")],
)
def test_a_list_that_stands_elsewhere_is_refused(text: str, told: str) -> None:
    with pytest.raises(errors.RequestInvalid, match=f"`applications` {told}, .* write the list itself below `applications`"):
        rayservice.applications(text)
    assert rayservice.applications("x: &none []\napplications: *none\n") == {}


def test_a_literal_text_takes_no_comment_of_others() -> None:
    text = "applications:\n- name: a\n  args:\n    p: |+\n      one\n- name: b\n\n      # deep\n- name: c\n"
    assert rayservice.without_application(text, "b") == "applications:\n- name: a\n  args:\n    p: |+\n      one\n# deep\n- name: c\n"

    for margin in (4, 5):
        text = f"applications:\n- name: a\n  args:\n  - |\n      one\n- name: b\n\n{' ' * margin}# note\n      # deep\n- name: c\n"
        assert rayservice.without_application(text, "b") == text.replace("- name: b\n", ""), "no more than it must"


@pytest.mark.parametrize(("sign", "end"), [("|", "\n"), (">", "\n"), ("|+", "\n"), ("|-", "")])
def test_a_literal_text_keeps_its_line_end_when_the_last_line_goes(sign: str, end: str) -> None:
    text = f"applications:\n- name: a\n  args:\n    p: {sign}\n      hi"
    assert rayservice.without_application(f"{text}\n- name: b  # no newline", "b") == text + end


@pytest.mark.parametrize("sign", ["|", ">", "|-", ">-", "|+", "|2", "|2-  # said"])
def test_comments_below_a_literal_text_stay(sign: str) -> None:
    for margin in range(8):
        for behind in ("", "          # deeper\n\n# left\nhttp_options: {port: 8000}\n", "..."):
            for blank in ("", "\n        \n") if "+" not in sign else ("",):
                text = f"applications:\n  - name: a\n    args:\n      prompt: {sign}\n        hi\n{blank}{' ' * margin}# note\n{behind}"
                assert rayservice.without_application(rayservice.with_application(text, NEW), "whisper-v2") == text


# --- any text ---------------------------------------------------------------------------------------------------------------------


class Author:
    """Writes a configuration by hand, in a style of their own; `applications` and `besides` are what it means."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.chance = self.random.random
        self.dash, self.step, self.gap = self.random.choice([0, 0, 2, 2, 4, 1]), self.random.choice([2, 2, 4, 3]), self.random.choice([2, 2, 2, 4])
        self.talkative = self.random.choice([0, 0.1, 0.4])
        self.comments = self.anchors = 0
        self.lines: list[str] = []
        self.pinned = False
        """Whether a comment or blank line here would be part of the text before."""
        self.names = self.random.sample(["a", "bge", "modèle", "x-y", "Über 1", "whisper-v7"], self.random.randint(1, 3))
        self.applications = {name: self.entry(name) for name in self.names}
        self.besides = {"http_options": {"port": 8000}, "x-shared": self.value(1)}

    def pick(self, *options: Any) -> Any:
        return self.random.choice(options)

    def entry(self, name: str) -> dict[str, Any]:
        entry: dict[str, Any] = {"name": name, "import_path": self.pick("m:a", "acme.whisper:build", "m-x.y:z")}
        if self.chance() < 0.7:
            entry["route_prefix"] = self.pick("/a", "/.versions/x/v1", "/größe", "/a b") + str(len(name))
        if self.chance() < 0.7:
            entry["args"] = {key: self.value(2) for key in self.random.sample(["x", "y z", "prompt", "on", "1"], self.random.randint(1, 3))}
        if self.chance() < 0.6:
            entry["deployments"] = [
                {"name": part, "num_replicas": 2, "user_config": {"prompt": self.value(1)}} for part in self.random.sample(["A", "B", "C"], 2)
            ]
        return dict(self.random.sample(list(entry.items()), len(entry)))

    def value(self, depth: int) -> Any:
        kind = self.random.randrange(9 if depth else 7)
        if kind == 7:
            return [self.value(depth - 1) for _ in range(self.random.randint(0, 3))]
        if kind == 8:
            return {key: self.value(depth - 1) for key in self.random.sample(["k", "no", "ü", "a.b"], self.random.randint(0, 3))}
        texts = (
            "plain",
            "two words",
            "it's",
            'say "hi"',
            "# no",
            "a: b",
            "é🙂",
            "- x",
            "",
            "null",
            "1e-5",
            "tab\there",
            "one\ntwo\n",
            "a\n\n  b\n# c\n",
            "x\ny",
        )
        return self.pick(None, True, 7, -0.5, *texts, *texts)

    def comment(self) -> str:
        self.comments += 1
        return self.pick(f"# comment {self.comments}", f"#{self.comments}: - name: 'x", f"# über {self.comments} \t[{{")

    def between(self, column: int) -> None:
        """Comments and blank lines before the next line."""
        while self.chance() < self.talkative and not self.pinned:
            deepest = column + 2 if self.literal is None else self.literal
            if self.chance() < 0.3:
                self.lines.append("" if self.chance() < 0.7 else " " * self.random.randint(0, deepest + 1))
                continue
            self.lines.append(" " * self.random.choice([0, min(column, deepest), deepest, self.random.randint(0, deepest)]) + self.comment())
            self.literal = None

    literal: int | None = None
    """How deep a comment may stand below a literal or folded text, else it would be part of it."""

    def line(self, text: str, *, literal: int | None = None) -> None:
        self.lines.append(text)
        self.literal, self.pinned = literal, False

    def tail(self) -> str:
        return self.pick("  ", " ", "   ") + self.comment() if self.chance() < self.talkative else ""

    def scalar(self, value: Any) -> str:
        if not isinstance(value, str):
            return {None: self.pick("null", "~"), True: "true"}.get(value, "") if value is None or value is True else repr(value)
        styles = [json.dumps(value.replace("🙂", "\0")).replace("\\u0000", "🙂"), json.dumps(value, ensure_ascii=False)]
        if not re.search(r"[\n\t]", value):
            styles.append("'" + value.replace("'", "''") + "'")
        if re.fullmatch(r"(?!null|no|on)[/a-zA-Zéü][\w/. :-]*(?<![ :])", value) and ": " not in value:
            styles += [value] * 4
        return self.pick(*styles)

    def anchor(self) -> str:
        """One of its own."""
        self.anchors += 1
        return f"&r{self.anchors}"

    def route(self, value: str) -> str:
        """A route with an anchor that nobody uses, a tag, or both."""
        anchor, tag = (self.anchor(), self.pick("!!str", "!<tag:yaml.org,2002:str>", "!"))
        return self.pick("", "", "", f"{anchor} ", f"{tag} ", f"{anchor} {tag}  ", f"{tag} {anchor} ") + self.scalar(value)

    def flow(self, value: Any, column: int) -> str:
        """On one line or more, in a flow collection."""
        wrap = "\n" + " " * (column + 1) if self.chance() < 0.15 else ""
        comma = self.pick(", ", ",", " , ") + wrap
        if isinstance(value, dict):
            end = "," if value and self.chance() < 0.1 else ""
            written = ((key, self.route(item) if key == "route_prefix" else self.flow(item, column)) for key, item in value.items())
            return "{" + comma.join(f"{self.scalar(key)}: {item}" for key, item in written) + end + "}"
        if isinstance(value, list):
            return "[" + self.pick("", " ") + comma.join(self.flow(item, column) for item in value) + "]"
        return self.scalar(value)

    def block(self, value: Any, column: int, lead: str, behind: str = " ", *, route: bool = False) -> None:
        """Write a value behind ``lead``, the begin of its line; what it holds stands at ``column`` or deeper."""
        if route and self.chance() < 0.2:
            self.line(f"{lead} {self.pick('', f'{self.anchor()} ', '!!str ', f'!!str {self.anchor()} ')}{self.pick('|-', '>-')}{self.tail()}")
            inner = column + self.pick(1, 2, 4)
            self.line(" " * inner + value, literal=inner - 1)
        elif route:
            self.line(f"{lead}{behind}{self.route(value)}{self.tail()}")
        elif isinstance(value, dict | list) and value and self.chance() < 0.8:
            self.line(lead + self.tail())
            inner = column + (self.dash if isinstance(value, list) else self.step)
            (self.sequence if isinstance(value, list) else self.mapping)(value, inner)
        elif isinstance(value, str) and "\n" in value and value.strip() and not value.startswith((" ", "#")) and self.chance() < 0.8:
            inner = self.pick(1, 2, 4)
            chomp = "" if value.endswith("\n") else "-"
            if chomp == "" and self.chance() < 0.3 and not value.endswith("\n\n"):
                chomp = "+"
            sign = self.pick("|", ">") if value in ("one\ntwo\n", "x\ny") else "|"
            body = value.removesuffix("\n").replace("\n", "\n\n") if sign == ">" else value.removesuffix("\n")
            said = self.pick("", "", "", str(inner + lead.endswith("-")))
            self.line(f"{lead}{behind}{sign}{said}{chomp}{self.tail()}")
            for text in body.split("\n"):
                self.line(" " * (column + inner) + text if text else "", literal=column + inner - 1)
            self.pinned = chomp == "+"
        else:
            text = self.flow(value, column + 1) if isinstance(value, dict | list) else self.scalar(value)
            self.line(f"{lead}{behind}{text}{self.tail()}")

    def mapping(self, value: dict[str, Any], column: int, first: str | None = None) -> None:
        for key, item in value.items():
            if first is None:
                self.between(column)
            lead = " " * column if first is None else first
            first = None
            self.block(item, column, f"{lead}{self.scalar(key)}:", self.pick(" ", " ", "  "), route=key == "route_prefix")

    def sequence(self, value: list[Any], column: int) -> None:
        for item in value:
            self.between(column)
            dash = " " * column + "-"
            if isinstance(item, dict) and item and self.chance() < 0.9:
                alone = self.chance() < 0.1
                if alone:
                    self.line(dash + self.tail())
                self.mapping(item, column + self.gap, None if alone else dash.ljust(column + self.gap))
            else:
                self.block(item, column + 1, dash)

    def text(self) -> str:
        if self.chance() < 0.2:
            self.line("---" + self.tail())
        before, after = self.random.choice([("http_options", "x-shared"), ("x-shared", "http_options")])
        self.mapping({before: self.besides[before]}, 0)
        self.between(0)
        listed = list(self.applications.values())
        kind = self.random.randrange(10)
        if kind == 0:
            self.line(f"applications: {self.flow(listed, 2)}{self.tail()}")
        elif kind == 1:
            self.line("applications: [" + self.tail())
            for index, entry in enumerate(listed):
                self.between(2)
                last = index == len(listed) - 1
                self.line(f"  {self.flow(entry, 4)}{'' if last and self.pick(True, False) else ','}{self.tail()}")
            self.line("]" + self.tail())
        else:
            self.line("applications:" + self.tail())
            self.sequence(listed, self.dash)
        self.between(0)
        self.mapping({after: self.besides[after]}, 0)
        self.between(0)
        if self.chance() < 0.1:
            self.line("...")
        end = "\r\n" if self.chance() < 0.2 else "\n"
        text = "\n".join(self.lines) + ("\n" if self.chance() < 0.8 or self.literal is not None else "")
        return ("\ufeff" if self.chance() < 0.1 else "") + text.replace("\n", end)


TEXTS = settings(deadline=None, derandomize=True, database=None, phases=[Phase.generate])


@settings(TEXTS, max_examples=100)
@given(st.integers(0, 2**32))
def test_any_text_is_edited_where_the_application_stands(seed: int) -> None:
    assert_edited_where_the_application_stands(seed)


@pytest.mark.full
@settings(TEXTS, max_examples=1000)
@given(st.integers(0, 2**32))
def test_any_of_a_thousand_texts_is_edited_where_the_application_stands(seed: int) -> None:
    assert_edited_where_the_application_stands(seed)


def assert_edited_where_the_application_stands(seed: int) -> None:
    author = Author(seed)
    text = author.text()
    applications = author.applications
    assert rayservice.applications(text) == applications
    assert as_the_operator_reads(text) == list(applications.values())

    added = rayservice.with_application(text, NEW)
    assert as_the_operator_reads(added) == [*applications.values(), NEW]
    gone, new = lines_out_and_in(text, added)
    assert len(gone) <= 1 and len(new) <= NEW_LINES + len(gone)
    assert rayservice.without_application(added, "whisper-v2") == text

    name = author.random.choice(author.names)
    entry = applications[name]
    removed = rayservice.without_application(text, name)
    others = {key: value for key, value in applications.items() if key != name}
    assert rayservice.applications(removed) == others and as_the_operator_reads(removed) == list(others.values())
    gone, new = lines_out_and_in(text, removed)
    assert all(re.search(r"[]\[}#{]", line) for line in new), (
        "a line that holds the list or the end of the entry before, or a comment that would be swallowed"
    )

    assert rayservice.with_application(text, entry) == text
    changed = {**entry, "import_path": "m.other:app", "args": {**entry.get("args", {}), "new": {"deep": [1]}}}
    replaced = rayservice.with_application(text, changed)
    assert as_the_operator_reads(replaced) == list((applications | {name: changed}).values())
    assert rayservice.with_application(replaced, changed) == replaced
    gone, new = lines_out_and_in(text, replaced)
    assert len(gone) <= 3 and len(new) <= 7

    moved = rayservice.with_route(text, name, "/.versions/x/v9")
    assert as_the_operator_reads(moved) == list((applications | {name: {**entry, "route_prefix": "/.versions/x/v9"}}).values())
    back = rayservice.with_route(moved, name, entry.get("route_prefix"))
    assert back == text or "\\u" in text

    for piece in entry.get("deployments", [])[:1]:
        config = {"stable": {"version": "v1"}, **piece["user_config"]}
        shifted = rayservice.with_user_config(text, name, piece["name"], config)
        assert rayservice.user_config(shifted, name, piece["name"]) == config
        assert rayservice.with_user_config(shifted, name, piece["name"], piece["user_config"]) == text
