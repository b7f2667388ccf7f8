"""What Prometheus is told: requests and their time, what waits, and how sure the answers are."""

from __future__ import annotations

from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

from caltune.serving.answering import Answer, Answerer
from caltune.serving.batching import Batcher

PATHS = ("/v1/answers", "/healthz", "/metrics", "/openapi.json")
TENTHS = [tenth / 10 for tenth in range(1, 11)]


class Meters:
    """Counts of one application, in a registry of its own. They hold no text and no address."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self, answerer: Answerer, batcher: Batcher[Any, Any]) -> None:
        self._registry = CollectorRegistry()
        where = {"registry": self._registry}
        self._requests = Counter("caltune_requests", "Requests by path and status", ["path", "status"], **where)
        self._seconds = Histogram("caltune_request_seconds", "Time of a question's request", **where)
        self._sure = Histogram("caltune_max_prob", "Probability of the answers", buckets=TENTHS, **where)
        self._abstained = Counter("caltune_abstained", "Answers that the policy would rather not give", **where)
        Gauge("caltune_waiting", "Questions that wait for the model", **where).set_function(lambda: batcher.waiting)
        loaded = {
            "model": answerer.name,
            "model_version": answerer.version,
            "calibration_version": answerer.calibration_version or "",
        }
        Info("caltune_model", "What is loaded", **where).info(loaded)

    def observe(self, path: str, status: int, seconds: float) -> None:
        """One request; a path that is none of ours is not named, or anyone could add names."""
        self._requests.labels(path if path in PATHS else "other", str(status)).inc()
        if path == PATHS[0]:
            self._seconds.observe(seconds)

    def answered(self, answer: Answer) -> None:
        """One answer."""
        self._sure.observe(answer.max_prob)
        if answer.abstain:
            self._abstained.inc()

    def text(self) -> bytes:
        """All of it in the text format."""
        return generate_latest(self._registry)
