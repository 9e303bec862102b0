"""The text of ``serveConfigV2`` is edited where the application stands: what other people wrote stays to the letter, in every form of YAML."""

import difflib
import json
import re
from typing import Any

import pytest
import yaml
from hypothesis import Phase, given, settings  # noqa: F401
from hypothesis import strategies as st  # noqa: F401

from kfp_components import errors  # noqa: F401
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
    "tags": "applications: !!seq\n  - !!map\n    name: !!str a\n    args: !custom {x: !!int '1'}\n  - name: b\n",
    "a literal text": "applications:\n  - name: a\n    args:\n      prompt: |\n        # not a comment\n        - name: b\n\n        end\n  - name: b\n",
    "a literal text that is stripped": "applications:\n  - name: a\n    args:\n      prompt: |-\n        one\n\n\n  # text\n  - name: b\n",
    "a literal text that keeps its blank lines": "applications:\n  - name: a\n    args:\n      prompt: |+\n        one\n\n\n  - name: b\n    args:\n      prompt: |+\n        two\n\n\n",
    "a literal text with its indentation": "applications:\n  - name: a\n    args:\n      prompt: |2  # as it is\n          one\n        two\n  - name: b\n",
    "a folded text": "applications:\n  - name: a\n    args:\n      prompt: >\n        one\n        two\n\n          three\n  - name: b\n    args: {p: >-\n      }\n".replace(
        "{p: >-\n      }", "{p: x}"
    ),
    "a plain text of several lines": "applications:\n  - name: a\n    args:\n      prompt: one\n        two\n\n        three  # end\n  - name: b\n",
    "a quoted text of several lines": "applications:\n  - name: a\n    args: {prompt: \"one\n\n      two \\\n      three\", other: 'x\n      y'}\n  - name: b\n",
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
    diff = list(difflib.ndiff(before.splitlines(True), after.splitlines(True)))
    return [line[2:] for line in diff if line.startswith("- ")], [line[2:] for line in diff if line.startswith("+ ")]


def as_the_operator_reads(text: str) -> list[Any]:
    """By the other parser."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!custom", lambda loader, node: loader.construct_mapping(node, deep=True))
    Loader.add_constructor("tag:yaml.org,2002:seq", lambda loader, node: loader.construct_sequence(node, deep=True))
    text = re.sub(r"(?m)^\t+|\t(?=#|y:)", " ", text)  # the operator takes tabs there, PyYAML does not
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
    assert all("[" in line or "null" in line or "~" in line or not line.endswith("\n") or "{name" in line or "}" in line for line in gone), gone
    assert ("\r\n" in text) == ("\r" in added) and added.count("\r\n") == added.count("\r")
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
