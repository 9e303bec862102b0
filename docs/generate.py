"""Write docs/troubleshooting.md from the error tree and from every place that raises one of its errors, so that none is missing; and the tables of
docs/smoke-cases.md from the models in request.py.

python docs/generate.py [--check]
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from kfp_components import errors, request  # noqa: E402

PAGE, CASES_PAGE = ROOT / "docs" / "troubleshooting.md", ROOT / "docs" / "smoke-cases.md"
ELSEWHERE = ("errors.py", "router", "kube_api")
"""The router and the embedded API answer by HTTP; they raise errors of their own, which no user of the library sees."""

HEAD = """\
<!-- written by docs/generate.py: `make docs` -->
# Troubleshooting, by what it says

An error is one paragraph: the object, what was found, what to do. Its class, which stands before it, says who has to act; so does the exit
code. Look for the words that do not change; what stands in CAPITALS is a name or a value.

| exit code | who acts | users are on |
|---|---|---|
| 2 | you: mend the input or the cluster's set-up; nothing was touched | what they had |
| 3 | nobody: the same command goes on where it stood | stable, at the latest when the weight's lease lapses |
| 4 | who made the version: it was taken back | stable |
| 5 | who decides: more traffic, wider margins, or `kfp-serving approve` | stable; the candidate is kept |
| 6 | who runs the cluster: the counts cannot be trusted, the version is not accused | stable; the candidate is kept |
| 7 | who owns the model: a champion decayed | the champion, unless it was demoted |
| 8 | `submit`: a run in Kubeflow failed, and nothing that can be read says why: read the log of its red box | look: `kfp-serving status` |

A release that stands still: `kfp-serving status -n NAMESPACE` says what is written and what the router does. A red run in Kubeflow: the report
of its last box (`finish-release`) says why, and so does `kfp-serving status`. `notify.N: ... not delivered` in a log is about a webhook only.
"""


def classes() -> list[type[errors.KfpServingError]]:
    """Every class of the tree that is raised, in the order in which errors.py has them: not those that only group others by their exit code."""
    groups = (errors.KfpServingError, errors.InputError, errors.TemporaryError, errors.RolloutStopped)
    found = [one for _, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, errors.KfpServingError) and one not in groups]
    return sorted(found, key=lambda one: inspect.getsourcelines(one)[1])


def raised(path: Path) -> Iterator[tuple[str, str]]:
    """Class and message of every error that a module makes. In request.py a ValueError becomes a `RequestInvalid` with the field's name before it."""
    known = {one.__name__ for one in classes()} | ({"ValueError"} if path.name == "request.py" else set())
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id if isinstance(node.func, ast.Name) else ""
        text = " ".join(words(node.args[0]).split())
        if name in known and any(letter.islower() for letter in text):
            yield ("RequestInvalid" if name == "ValueError" else name), text


def words(node: ast.expr) -> str:
    """The text of an expression, what is put into it as a name in capitals."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(words(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return words(node.left) + words(node.right)
    if isinstance(node, ast.FormattedValue):
        return words(node.value)
    if isinstance(node, ast.Attribute):
        return node.attr.strip("_").upper()
    if isinstance(node, ast.Name):
        return node.id.strip("_").upper()
    return "..."


def quoted(text: str) -> str:
    """As code; a backtick at an end needs room."""
    room = " " if "`" in (text[0], text[-1]) else ""
    return f"``{room}{text}{room}``"


def render() -> str:
    """The whole page."""
    messages: dict[str, set[str]] = defaultdict(set)
    for path in sorted((ROOT / "kfp_components").rglob("*.py")):
        if path.relative_to(ROOT / "kfp_components").parts[0] not in ELSEWHERE:
            for name, text in raised(path):
                messages[name].add(text)
    lines = [HEAD]
    for one in classes():
        lines += [f"## {one.__name__}: exit code {one.exit_code}", "", " ".join((inspect.getdoc(one) or "").split()), ""]
        lines += [f"- {quoted(text)}" for text in sorted(messages[one.__name__], key=str.lower)]
        lines += [""] if messages[one.__name__] else []
    return "\n".join(lines).rstrip() + "\n"


def table(model: type[Any]) -> str:
    """The fields of a model of request.py: name, default, what it says."""
    rows = ["| field | default | |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        inner = next((one for one in (field.annotation, *get_args(field.annotation)) if one in PARTS), None)
        told = f"see {inner.__name__}" if inner else field.description or ""
        if name == "protocol":
            told = f"{', '.join(f'`{one}`' for one in get_args(field.annotation))}: {told}"
        given = field.get_default(call_default_factory=True)
        default = "required" if field.is_required() else "" if given is None or isinstance(given, tuple | list | dict) else f"`{given}`"
        rows.append(f"| `{name}` | {default} | {told.replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


PARTS = (
    request.Media,
    request.ExpectedText,
    request.ExpectedVectors,
    request.ExpectedAudio,
    request.ExpectedStream,
    request.ExpectedTensor,
    request.SmokePace,
)


def tables(text: str) -> str:
    """A page with the tables of models between their marks written anew."""

    def one(found: re.Match[str]) -> str:
        return f"<!-- {found[1]} -->\n{table(getattr(request, found[1]))}\n<!-- end -->"

    return re.sub(r"<!-- ([A-Z]\w+) -->\n.*?<!-- end -->", one, text, flags=re.DOTALL)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with what is there instead of writing")
    check = parser.parse_args().check
    for page, text in ((PAGE, render()), (CASES_PAGE, tables(CASES_PAGE.read_text(encoding="utf-8")))):
        if not check:
            page.write_text(text, encoding="utf-8")
        elif page.read_text(encoding="utf-8") != text:
            raise SystemExit(f"{page.relative_to(ROOT)} is not what the sources say; run `make docs` and commit")


if __name__ == "__main__":
    main()
