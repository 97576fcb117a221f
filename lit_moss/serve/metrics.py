"""The content of `/metrics`: the engine's statistics in the text format of Prometheus."""

from collections.abc import Iterator

from lit_moss.errors import UserError
from lit_moss.serve.counts import Histogram
from lit_moss.serve.engine import Engine

PREFIX = "lit_moss_"


def render(engine: Engine, draining: bool = False) -> tuple[bytes, str]:
    """All metrics of an engine, and their content type. Each call creates its own registry, so that several
    engines in one process are not mixed.

    Args:
        engine: The engine.
        draining: Whether the interfaces already refuse new work.

    Raises:
        UserError: if prometheus-client is missing.
    """
    try:
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
    except ImportError as error:
        raise UserError("/metrics needs prometheus-client: pip install 'lit-moss[serve]'") from error
    from prometheus_client.registry import Collector

    class OfEngine(Collector):
        def collect(self) -> Iterator[object]:
            return _families(engine, draining or engine.draining)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(OfEngine())
    return generate_latest(registry), CONTENT_TYPE_LATEST


def _families(engine: Engine, draining: bool) -> Iterator[object]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    counts, running = engine.counts, engine.rows.running
    gauges = {
        "sessions": ("Open sessions.", len(engine.sessions)),
        "sessions_limit": ("Most open sessions.", engine.limits.max_sessions),
        "replies_running": ("Replies that are being made.", len(running)),
        "replies_paused": (
            "Replies whose client does not read.",
            sum(engine.rows.is_paused(one) for one in running),
        ),
        "sound_tasks_waiting": ("Pieces of sound to be encoded or decoded.", engine.sounds.waiting),
        "kept_contexts": ("Closed sessions whose keys and values are kept.", len(engine.rows.pool)),
        "kept_bytes": ("Memory of these.", engine.rows.pool.bytes),
        "draining": ("1 while sessions are refused before the end.", int(draining)),
    }
    for name, (text, value) in gauges.items():
        yield GaugeMetricFamily(PREFIX + name, text, value=value)
    totals = {
        "sessions_opened": ("Sessions opened.", counts.sessions),
        "sessions_refused": ("Sessions refused.", counts.refused),
        "prefilled_rows": ("Rows of prompts that were computed.", counts.prefilled_rows),
        "cached_rows": ("Rows of prompts whose keys and values were there.", counts.cached_rows),
    }
    for name, (text, value) in totals.items():
        yield CounterMetricFamily(PREFIX + name, text, value=value)
    replies = CounterMetricFamily(
        PREFIX + "replies", "Replies by the reason of their end.", labels=["reason"]
    )
    for reason in ("stop", "length", "cancelled", "failed"):
        replies.add_metric([reason], counts.replies[reason])
    yield replies
    rows = CounterMetricFamily(PREFIX + "rows", "Rows made, by modality.", labels=["modality"])
    for modality in ("text", "speech"):
        rows.add_metric([modality], counts.rows[modality])
    yield rows
    yield _histogram("first_sound_seconds", "From the request to the first sound.", counts.first_sound_sec)


def _histogram(name: str, text: str, histogram: Histogram) -> object:
    from prometheus_client.core import HistogramMetricFamily

    total, buckets = 0, []
    for bound, count in zip([*map(str, histogram.bounds_sec), "+Inf"], histogram.counts, strict=True):
        total += count
        buckets.append((bound, total))
    return HistogramMetricFamily(PREFIX + name, text, buckets=buckets, sum_value=histogram.total_sec)
