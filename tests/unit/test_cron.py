"""Cron as Kubeflow and Kubernetes take it: what is refused, with the field's name, and the times that come."""

from datetime import datetime
from itertools import islice

import pytest

from kfp_components import errors
from kfp_components.workflows import cron

SATURDAY = datetime(2026, 11, 28, 7, 30)


@pytest.mark.parametrize(
    ("text", "kubeflow", "times"),
    [
        ("0 6 * * 1", "0 0 6 * * 1", ["11-30 06:00:00", "12-07 06:00:00", "12-14 06:00:00"]),
        ("*/20 7 * * *", "0 */20 7 * * *", ["11-28 07:40:00", "11-29 07:00:00", "11-29 07:20:00"]),
        ("30 0 6 ? * mon-fri", "30 0 6 ? * mon-fri", ["11-30 06:00:30", "12-01 06:00:30", "12-02 06:00:30"]),
        ("0 0 13 * 5", "0 0 0 13 * 5", ["12-04 00:00:00", "12-11 00:00:00", "12-13 00:00:00"]),  # the 13th, and each Friday
        ("0 0 */10 * 0", "0 0 0 */10 * 0", ["01-31 00:00:00", "02-21 00:00:00", "03-21 00:00:00"]),  # a star: both have to be so
        ("15 5/6 1,15 jan,JUL *", "0 15 5/6 1,15 jan,JUL *", ["01-01 05:15:00", "01-01 11:15:00", "01-01 17:15:00"]),
        ("@weekly", "0 0 0 * * 0", ["11-29 00:00:00", "12-06 00:00:00", "12-13 00:00:00"]),
        ("0 0 29 2 *", "0 0 0 29 2 *", ["02-29 00:00:00", "02-29 00:00:00"]),
    ],
)
def test_the_next_times(text: str, kubeflow: str, times: list[str]) -> None:
    found = cron.parse(text)
    assert found.kubeflow == kubeflow
    assert [f"{time:%m-%d %H:%M:%S}" for time in islice(found.times(SATURDAY), len(times))] == times


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("61 6 * * 1", "minute '61': it takes 0 to 59"),
        ("0 24 * * *", "hour '24': it takes 0 to 23"),
        ("0 6 0 * *", "day of month '0': it takes 1 to 31"),
        ("0 6 * 13 *", "month '13': it takes 1 to 12, or jan to dec"),
        ("0 6 * * 7", "day of week '7': it takes 0 to 6, or sun to sat"),
        ("0 6 * * fri-mon", "day of week 'fri-mon'"),
        ("60 0 6 * * 1", "second '60'"),
        ("*/0 6 * * 1", "minute '*/0'"),
        ("0 6 * * MO", "day of week 'MO'"),
        ("0 6 , * *", "day of month ''"),
        ("0 6 L * *", "day of month 'L'"),
        ("0 6 * * ²", "day of week '²'"),
        ("0 6 30 2 *", "such a day never comes"),
        ("monday", "it has 1 field"),
        ("", "it has 0 field"),
        ("@every 1h", "it has 2 field"),
    ],
)
def test_what_is_wrong_is_named(text: str, words: str) -> None:
    with pytest.raises(errors.RequestInvalid) as told:
        cron.parse(text)
    assert words in str(told.value) and repr(text) in str(told.value)


def test_kubernetes_has_no_seconds() -> None:
    assert cron.parse("0 6 * * 1").kubernetes == cron.parse("0 0 6 * * 1").kubernetes == "0 6 * * 1"
    with pytest.raises(errors.RequestInvalid, match="without seconds"):
        _ = cron.parse("30 0 6 * * 1").kubernetes
