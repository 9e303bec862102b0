"""How tests wait (tests/patience.py)."""

import patience
import pytest


def test_a_condition_is_asked_again_until_it_is_true() -> None:
    answers = iter([0, None, "", "there"])
    assert patience.until(lambda: next(answers), "the answer") == "there"


def test_an_error_counts_as_not_yet_and_is_told_at_the_end() -> None:
    def check() -> bool:
        raise OSError("nobody listens")

    with pytest.raises(AssertionError, match=r"waited 0 s for the server; the last look gave OSError\('nobody listens'\)"):
        patience.until(check, "the server", idle_s=0.01)


def test_a_machine_that_stood_still_gets_its_last_look() -> None:
    looks: list[int] = []

    def check() -> bool:
        looks.append(len(looks))
        return len(looks) == 2

    assert patience.until(check, "the second look", idle_s=0.0)


@pytest.mark.parametrize(("given", "factor"), [("3", 3.0), ("0.2", 1.0)])
def test_the_factor_can_be_given_and_is_never_below_one(monkeypatch: pytest.MonkeyPatch, given: str, factor: float) -> None:
    monkeypatch.setenv(patience.ENVIRONMENT, given)
    found = patience.calibrated.__wrapped__()
    assert found.factor == factor and patience.ENVIRONMENT in str(found)


def test_the_calibration_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(patience.ENVIRONMENT, raising=False)
    found = patience.calibrated.__wrapped__()
    assert 1.0 <= found.factor <= patience.MOST
    assert found.took_s is not None and f"took {found.took_s:.2f} s here" in str(found)
