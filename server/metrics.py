"""The serving half's metrics.

Names follow Prometheus' conventions (base units, ``_total`` on counters). Every label has few values: methods, codes,
kinds, and the versions that are still of interest; never a conversation, a rater or an id.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from prometheus_client import Counter, Gauge, Histogram, Metric, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from thumbwheel.store import Store
from thumbwheel.turn_log import TurnLog

# A creation time beside every counter doubles the page and tells nobody anything here.
disable_created_metrics()  # type: ignore[no-untyped-call]

REQUESTS = Counter("thumbwheel_requests_total", "Calls that have ended, by method and status code.", ["method", "code"])
RUNNING_CALLS = Gauge(
    "thumbwheel_running_calls", "Calls that have begun and not ended, those included whose caller has stopped reading."
)
UNREAD_STREAMS = Counter(
    "thumbwheel_unread_streams_total", "Streams that ran out of time because their callers had stopped reading."
)

TIME_TO_FIRST_TOKEN = Histogram(
    "thumbwheel_time_to_first_token_seconds",
    "From the arrival of a chat call to the first token of its first answer, the wait for a place included.",
    buckets=(0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 20, 60),
)
TIME_PER_OUTPUT_TOKEN = Histogram(
    "thumbwheel_time_per_output_token_seconds",
    "Mean time between the tokens of an answer, one observation an answer.",
    buckets=(0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1),
)
TOKENS = Counter("thumbwheel_tokens_total", "Chat tokens: prompt tokens read, completion tokens sampled.", ["kind"])

QUEUED_ANSWERS = Gauge("thumbwheel_queued_answers", "Chat answers that wait for a place.")
RUNNING_ANSWERS = Gauge("thumbwheel_running_answers", "Answers that hold a place, by who asked for them.", ["source"])
REVOKED_ROLLOUTS = Counter(
    "thumbwheel_revoked_rollouts_total", "Rollout samples that gave their place to a chat answer and started again."
)

LIVE_VERSION = Gauge("thumbwheel_live_version_info", "1 for the version that answers on this server.", ["version"])
SWAPS = Counter("thumbwheel_swaps_total", "Attempts to make another version live on this server.", ["result"])
SWAP_SECONDS = Histogram(
    "thumbwheel_swap_seconds",
    "From the news of a change to the moment when new requests use the new version.",
    buckets=(0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
CROSSED_ANSWERS = Counter(
    "thumbwheel_crossed_answers_total", "Answers that more than one version sampled (server.weights = merged)."
)
REFUSED_ADAPTERS = Counter("thumbwheel_refused_adapters_total", "Adapters that failed verification.", ["reason"])

LIMITED_CALLS = Counter(
    "thumbwheel_limited_calls_total", "Calls refused because their caller has used up a limit.", ["reason"]
)
REFUSED_CALLERS = Counter(
    "thumbwheel_refused_callers_total", "Calls without a valid key or token, or with one of another scope.", ["reason"]
)

VOTES = Counter(
    "thumbwheel_votes_total", "Votes on disk, by kind, value and rated version.", ["kind", "value", "version"]
)
IMPORTED_VOTES = Counter("thumbwheel_imported_votes_total", "Votes from elsewhere by what became of them.", ["status"])
VOTE_SECONDS = Histogram(
    "thumbwheel_vote_seconds",
    "From the arrival of a vote to the moment when it is on disk.",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)

LOGGED_ANSWERS = Counter("thumbwheel_logged_answers_total", "Answers by what became of their record.", ["status"])
STORE_DURABLE = Gauge("thumbwheel_store_durable", "1 if the store fsyncs before it answers and never evicts.")

MAX_VERSIONS = 16
"""Versions that have vote series at a time; the ones longest without a vote lose theirs."""

_voted_versions: OrderedDict[str, set[tuple[str, str]]] = OrderedDict()


def count_vote(kind: str, value: str, version: str) -> None:
    """Counts a vote; forgets the series of the version that has gone longest without one when there are too many."""
    _voted_versions.setdefault(version, set()).add((kind, value))
    _voted_versions.move_to_end(version)
    if len(_voted_versions) > MAX_VERSIONS:
        oldest, series = _voted_versions.popitem(last=False)
        for old_kind, old_value in series:
            VOTES.remove(old_kind, old_value, oldest)
    VOTES.labels(kind, value, version).inc()


def show_live(version: str) -> None:
    """Makes `version` the only one that LIVE_VERSION shows."""
    LIVE_VERSION.clear()
    LIVE_VERSION.labels(version).set(1)


class StoreState(Collector):
    """Shows what the store and the turn log count themselves; to be registered while they are in use."""

    def __init__(self, store: Store, turn_log: TurnLog) -> None:
        self._store = store
        self._turn_log = turn_log

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "thumbwheel_store_errors_total", "Operations that the store failed or refused.", value=self._store.failures
        )
        yield CounterMetricFamily(
            "thumbwheel_corrupt_turns_total", "Turns that failed their checksum.", value=self._turn_log.corrupt
        )
        yield GaugeMetricFamily(
            "thumbwheel_turn_log_buffered_answers",
            "Answers in memory until the store is back.",
            value=self._turn_log.pending,
        )
