"""What a model for speech hears in the answers of a text-to-speech model: `options.quality.asr_url`."""

from __future__ import annotations

import base64
import threading
from urllib.parse import urlsplit

import httpx

from kfp_components import errors
from kfp_components.cluster import Cluster, Endpoint
from kfp_components.probes import Prober
from kfp_components.request import CLUSTER_HOST, Media, SmokeCase

PATIENCE_S = 120.0


class Ear:
    """Asks that model for transcriptions, as its clients do: of a Service of the cluster by the way that the cluster knows."""

    def __init__(self, url: str, cluster: Cluster, transport: httpx.BaseTransport | None = None) -> None:
        self._url, self._cluster, self._transport = url, cluster, transport
        self._prober: Prober | None = None
        self._lock = threading.Lock()

    def __call__(self, sound: bytes) -> str:
        """The words in a WAV file. Raises `Unreachable` where it does not tell, whatever the reason: that is no fault of who spoke."""
        media = Media(uri="data:,", media_type="audio/wav")
        media = media.model_copy(update={"uri": f"data:audio/wav;base64,{base64.b64encode(sound).decode()}"})
        case = SmokeCase(name="what it hears", protocol="openai_transcription", media=media, timeout_s=PATIENCE_S)
        (found,) = self._asked().run([case])
        text = found.value.get("text") if isinstance(found.value, dict) else None
        if found.problem is not None or not isinstance(text, str):
            raise errors.Unreachable(f"quality.asr_url {self._url}: {found.problem or 'the answer holds no text'}")
        return text

    def close(self) -> None:
        """Give the connections back."""
        if self._prober is not None:
            self._prober.__exit__(None, None, None)

    def _asked(self) -> Prober:
        with self._lock:
            if self._prober is None:
                path = urlsplit(self._url).path.rstrip("/")
                self._prober = Prober(self._endpoint(), path.rpartition("/")[2], path, self._transport)
            return self._prober

    def _endpoint(self) -> Endpoint:
        parts = urlsplit(self._url)
        host = parts.hostname or ""
        if parts.scheme == "http" and CLUSTER_HOST.fullmatch(host):
            service, namespace, *_ = host.split(".")
            try:
                return self._cluster.endpoint(service, namespace, parts.port or 80)
            except errors.NotFound as error:
                raise errors.Unreachable(f"quality.asr_url {self._url}: {error}") from error
        return Endpoint(f"{parts.scheme}://{parts.netloc}", parts.netloc, (self._url,))
