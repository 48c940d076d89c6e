"""Cascade on speech: a grammar at the edge, free English in the cloud.

It gives accuracy, cloud share and latency by threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import aiohttp

from hybrid_world.real import Pair, pair
from hybrid_world.utterances import GRAMMAR, Utterance, errors

THRESHOLDS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
RTT_S = 0.05


@dataclass(frozen=True, slots=True)
class Heard:
    """The results of one utterance at both sides and by the cascade.

    Times are in seconds, errors in words.
    """

    utterance: Utterance
    edge_s: float
    edge_errors: int
    cloud_s: float
    cloud_errors: int
    confidence: float
    cascade_s: float
    cascade_errors: int
    asked_cloud: bool

    @property
    def words(self) -> int:
        return len(self.utterance.text.split())


async def listen(utterances: Sequence[Utterance], threshold: float) -> list[Heard]:
    """Transcribe each at the edge, in the cloud, and by the cascade.

    `threshold` is the cascade's; all processes are real.
    """
    speech = {"SPEECH__PLUGIN": "speech", "SPEECH__SLOTS": "1"}
    edge = {
        **speech,
        "SPEECH__GRAMMAR": str(GRAMMAR),
        "SPEECH__BACKGROUND": "true",
        "CLOUD__PLUGIN": "http",
        "CLOUD__URL": "{link}",
        "BOTH__PLUGIN": "hybrid",
        "BOTH__MODE": "cascade",
        "BOTH__EDGE": "speech",
        "BOTH__CLOUD": "cloud",
        "BOTH__MODELS": "pocketsphinx",
        "BOTH__THRESHOLD": str(threshold),
    }
    async with pair(edge, speech) as both:
        await both.wan.steady(RTT_S, 20)
        for model in ("speech", "cloud", "both"):
            await _ask(both, f"{model}/pocketsphinx", utterances[0])
        return [await _all_ways(both, each) for each in utterances]


async def _all_ways(both: Pair, utterance: Utterance) -> Heard:
    edge_s, edge, _ = await _ask(both, "speech/pocketsphinx", utterance)
    cloud_s, cloud, _ = await _ask(both, "cloud/pocketsphinx", utterance)
    cascade_s, cascade, headers = await _ask(both, "both/pocketsphinx", utterance)
    return Heard(
        utterance,
        edge_s,
        errors(utterance.text, edge),
        cloud_s,
        errors(utterance.text, cloud),
        float(headers.get("x-gateway-confidence", 0.0)),
        cascade_s,
        errors(utterance.text, cascade),
        headers["x-gateway-cascade"] != "edge",
    )


async def _ask(both: Pair, model: str, utterance: Utterance) -> tuple[float, str, Any]:
    import time

    form = aiohttp.FormData({"model": model})
    form.add_field("file", utterance.data, filename="speech.wav", content_type="audio/wav")
    began = time.monotonic()
    async with both.http.post(f"{both.base}/v1/audio/transcriptions", data=form) as answer:
        value = await answer.json()
        took_s = time.monotonic() - began
    assert answer.status == 200, value
    return took_s, value["text"], answer.headers


def point(heard: Sequence[Heard], threshold: float) -> dict[str, float]:
    """Compute the cascade at a threshold from the results of each side."""
    sure = [each.confidence >= threshold for each in heard]
    wrong = [each.edge_errors if ok else each.cloud_errors for each, ok in zip(heard, sure, strict=True)]
    took = [each.edge_s + (0.0 if ok else each.cloud_s) for each, ok in zip(heard, sure, strict=True)]
    return {
        "threshold": threshold,
        "accuracy": _accuracy(heard, wrong),
        "exact": sum(not each for each in wrong) / len(heard),
        "cloud_share": 1 - sum(sure) / len(heard),
        "mean_s": mean(took),
    }


def curve(heard: Sequence[Heard]) -> list[dict[str, float]]:
    """Return a point for each threshold, and one above all of them."""
    return [point(heard, threshold) for threshold in (*THRESHOLDS, 1.01)]


def measured(heard: Sequence[Heard]) -> dict[str, float]:
    """Return the measured figures of the cascade."""
    wrong = [each.cascade_errors for each in heard]
    return {
        "utterances": len(heard),
        "accuracy": _accuracy(heard, wrong),
        "exact": sum(not each for each in wrong) / len(heard),
        "cloud_share": mean(each.asked_cloud for each in heard),
        "mean_s": mean(each.cascade_s for each in heard),
        "edge_accuracy": _accuracy(heard, [each.edge_errors for each in heard]),
        "edge_mean_s": mean(each.edge_s for each in heard),
        "cloud_accuracy": _accuracy(heard, [each.cloud_errors for each in heard]),
        "cloud_mean_s": mean(each.cloud_s for each in heard),
    }


def _accuracy(heard: Sequence[Heard], wrong: Sequence[int]) -> float:
    """Return the share of correct words."""
    words = sum(each.words for each in heard)
    return max(0.0, 1 - sum(wrong) / words)
