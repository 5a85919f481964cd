"""A look at a run in progress from outside its workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plait.engine.events import CacheUse
from plait.engine.machine import private_memory
from plait.engine.moments import Level, Open, Sample

if TYPE_CHECKING:
    from plait.engine.executor import _Run as Run
    from plait.engine.worker import Host


def look(run: Run) -> Sample:
    """How far a run is now."""
    host = run.host
    lanes = tuple([Level(lane.name, lane.state, lane.spent(), lane.read, lane.written) for lane in host.watch.lanes.all()])
    with run.condition:
        opened = tuple([Open(o.component, o.task.passes, o.done, o.current.units if o.current is not None else 0) for o in run.open])
    return Sample(
        host.watch.now(),
        max(0, private_memory() - host.watch.baseline_bytes),
        run.ledger.used_bytes,
        host.pool.leased(),
        sum(lane.read for lane in lanes),
        host.sink.bytes_written,
        host.done_read,
        host.done_written,
        lanes,
        opened,
    )


def counts(host: Host) -> dict[str, int]:
    """How often what the plan does not foresee has happened, by `Note.kind`."""
    report, use = host.report, host.report.cache or CacheUse()
    cached = {"cache_hit": use.hits, "cache_miss": use.misses, "cache_stored": use.stored, "cache_damaged": use.damaged}
    return {"recount": report.recounted, "gpu_retry": host.pool.retries, **cached}
