"""A language model that grades answers, by its OpenAI-compatible URL; for golden cases whose reference says ``judged``."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from kfp_components import errors, notify
from kfp_components.cluster import Cluster
from kfp_components.quality import llm
from kfp_components.quality.score import Score, excerpt, text_of
from kfp_components.request import PromoteRequest, SmokeCase

if TYPE_CHECKING:
    import httpx

TRIES, TIMEOUT_S = 2, 60.0


def of_request(asked: PromoteRequest, cluster: Cluster) -> JudgeModel | None:
    """The one that a request names. Raises as `token`."""
    rules = asked.options.quality
    return None if rules.judge_url is None else JudgeModel(rules.judge_url, str(rules.judge_model), token(asked, cluster))


def token(asked: PromoteRequest, cluster: Cluster) -> str | None:
    """The judge model's bearer token, None where there is none. Raises as `notify.reader` where it cannot be read."""
    wanted = asked.options.quality.judge_token
    return None if wanted is None else notify.reader(cluster, asked.namespace)(wanted)


class JudgeModel:
    """Several threads may ask it."""

    def __init__(self, url: str, model: str, token: str | None = None, transport: httpx.BaseTransport | None = None) -> None:
        """``url`` as OpenAI's clients take it, such as https://judge.example/v1."""
        import httpx

        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._error = httpx.HTTPError
        self._client = httpx.Client(headers=headers, timeout=TIMEOUT_S, trust_env=False, transport=transport, verify=url.startswith("https:"))
        self._url, self._model = f"{url.rstrip('/')}/chat/completions", model

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    def score(self, case: SmokeCase, answer: Any, found: Score) -> Score:
        """With its judgement, where the case wants one and the answer is of use.

        Raises `Unreachable` where it gives none, whatever the reason: that is no fault of the version.
        """
        criterion = llm.judged(case.reference)
        if criterion is None or found.garbage:
            return found
        asked = json.dumps(case.body, ensure_ascii=False)
        body = {"messages": llm.judge_messages(asked, text_of(answer) or "", criterion), "model": self._model, "temperature": 0, "max_tokens": 8}
        for _ in range(TRIES - 1):
            with contextlib.suppress(errors.Unreachable):
                return llm.with_judgement(found, case.reference, self._judgement(body))
        return llm.with_judgement(found, case.reference, self._judgement(body))

    def _judgement(self, body: dict[str, Any]) -> float:
        try:
            response = self._client.post(self._url, json=body)
            said = text_of(response.json()) if response.status_code == 200 else None
        except (self._error, ValueError) as error:
            raise errors.Unreachable(f"quality.judge_url {self._url}: {type(error).__name__}: {error}") from error
        value = None if said is None else llm.judgement(said)
        if value is None:
            told = f"status {response.status_code}, no text" if said is None else f"no number from 0 to 10: {excerpt(said)}"
            raise errors.Unreachable(f"quality.judge_url {self._url}: the answer is {told}")
        return value
