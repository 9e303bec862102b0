"""When a schedule starts runs: cron as Kubeflow Pipelines (robfig/cron 1.2) and Kubernetes (robfig/cron 3) take it.

Fields are minute, hour, day of month, month, day of week; Kubeflow has seconds before them. Five fields given to Kubeflow as they are would be read
as second, minute, hour, day, month, without a word: `Cron.kubeflow` puts the 0 in front. Each field is ``*``, ``?``, a number or name, ``a-b``, with
``/step``, and lists of these with commas; Sunday is 0 (7 is refused by both servers). ``@every``, ``L``, ``W`` and ``#`` are not taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from kfp_components import errors

MONTHS = {name: number for number, name in enumerate(("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"), 1)}
DAYS = {name: number for number, name in enumerate(("sun", "mon", "tue", "wed", "thu", "fri", "sat"))}
NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
EXAMPLE = "such as '0 6 * * 1' (Mondays at 06:00)"
YEARS = 9
"""How far a first time is looked for: 29 February is eight years away at most."""


@dataclass(frozen=True)
class Field:
    """One field: what it is called, and what it may hold."""

    name: str
    least: int
    most: int
    names: tuple[tuple[str, int], ...] = ()


SECOND = Field("second", 0, 59)
FIELDS = (
    Field("minute", 0, 59),
    Field("hour", 0, 23),
    Field("day of month", 1, 31),
    Field("month", 1, 12, tuple(MONTHS.items())),
    Field("day of week", 0, 6, tuple(DAYS.items())),
)


@dataclass(frozen=True)
class Cron:
    """A schedule that was checked: `parse` makes it."""

    fields: tuple[str, ...]
    """Second, minute, hour, day of month, month, day of week, as they were written."""

    @property
    def kubeflow(self) -> str:
        """Six fields."""
        return " ".join(self.fields)

    @property
    def kubernetes(self) -> str:
        """Five fields. Raises `RequestInvalid` where the second is not 0."""
        if self.fields[0] != "0":
            raise errors.RequestInvalid(f"cron {self.kubeflow!r}: Kubernetes takes five fields, without seconds, {EXAMPLE}")
        return " ".join(self.fields[1:])

    def times(self, after: datetime) -> Iterator[datetime]:
        """The next times, in the zone of ``after``, as the server's clock shows them; none where they never come."""
        seconds, minutes, hours, days, months, weekdays = (
            _values(text, field, "") for text, field in zip(self.fields, (SECOND, *FIELDS), strict=True)
        )
        both = any(part[0] in "*?" for text in (self.fields[3], self.fields[5]) for part in text.split(","))
        first = after.replace(microsecond=0) + timedelta(seconds=1)
        day = first.replace(hour=0, minute=0, second=0)
        for _ in range(366 * YEARS):
            in_month, in_week = day.day in days, day.isoweekday() % 7 in weekdays
            if day.month in months and ((in_month and in_week) if both else (in_month or in_week)):
                for hour, minute, second in ((h, m, s) for h in sorted(hours) for m in sorted(minutes) for s in sorted(seconds)):
                    if (at := day.replace(hour=hour, minute=minute, second=second)) >= first:
                        yield at
            day += timedelta(days=1)


def parse(text: str) -> Cron:
    """Five fields, or six with seconds first. Raises `RequestInvalid` that names the field, what is wrong with it, and what it may hold."""
    found = NICKNAMES.get(text.strip().lower(), text).split()
    if len(found) not in (5, 6):
        raise errors.RequestInvalid(
            f"cron {text!r}: it has {len(found)} field(s); give five (minute, hour, day, month, weekday), {EXAMPLE}, or six, seconds first"
        )
    fields = tuple(found if len(found) == 6 else ["0", *found])
    for part, field in zip(fields, (SECOND, *FIELDS), strict=True):
        _values(part, field, text)
    cron = Cron(fields)
    if next(cron.times(datetime.now(UTC)), None) is None:
        raise errors.RequestInvalid(f"cron {text!r}: such a day never comes")
    return cron


def _values(text: str, field: Field, whole: str) -> set[int]:
    """What a field stands for. Raises `RequestInvalid`."""
    found = set[int]()
    for part in text.split(","):
        span, slash, step_text = part.partition("/")
        low, dash, high = span.partition("-")
        step = _number(step_text, field, whole, names=False) if slash else 1
        if low in ("*", "?") and not dash:
            first, last = field.least, field.most
        else:
            first = _number(low, field, whole)
            last = _number(high, field, whole) if dash else field.most if slash else first
        if not field.least <= first <= last <= field.most or step < 1:
            raise _wrong(part, field, whole)
        found.update(range(first, last + 1, step))
    return found


def _number(text: str, field: Field, whole: str, *, names: bool = True) -> int:
    named = dict(field.names).get(text.lower()) if names else None
    if named is not None:
        return named
    if not (text.isascii() and text.isdigit()):
        raise _wrong(text, field, whole)
    return int(text)


def _wrong(text: str, field: Field, whole: str) -> errors.RequestInvalid:
    words = f", or {field.names[0][0]} to {field.names[-1][0]}" if field.names else ""
    return errors.RequestInvalid(
        f"cron {whole!r}: {field.name} {text!r}: it takes {field.least} to {field.most}{words}, '*', rising ranges a-b, /step, and commas"
    )
