"""The profiles by name, and what the selected ones need and expose together."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from msgspec import Struct, structs

from celery_exporter.metrics.model import PREFIX, TASK_LABELS, MetricFamily, MetricOptions, Profile
from celery_exporter.metrics.profiles import danihodovic, flower, native, ovalmoney, triss, triton, zerok

PROFILES = {
    module.PROFILE.name: module.PROFILE
    for module in (native, triton, triss, danihodovic, ovalmoney, zerok, flower)
}


#: Gauges that a standby shows, too. The others are of the present, which it does not know. The maximum of a
#: last time is right whichever replica received that event: without it, a nightly task seems to be absent
#: after a takeover.
_SHOWN_BY_STANDBY = frozenset(
    {
        "celery_broker_up",
        "celery_task_last_timestamp_seconds",
        "celery_worker_last_heartbeat_timestamp_seconds",
    }
)


class ProfilesClashError(Exception):
    """Two profiles define one metric name differently; the text is one line for the user."""


class Selection(Struct, frozen=True):
    """The rows that the selected profiles expose, and the data that they need.

    `labels` are the optional labels that aggregates are kept by, of `TASK_LABELS`. The bounds are all upper
    bucket bounds, in seconds, that one of the profiles exposes.
    """

    names: tuple[str, ...]
    options: MetricOptions
    rows: tuple[MetricFamily, ...]
    labels: tuple[str, ...]
    runtime_bounds: tuple[float, ...]
    wait_bounds: tuple[float, ...]
    clients: bool
    hosts: bool
    prefetched: bool
    latency: bool


def select(names: Sequence[str], options: MetricOptions, prefix: str = PREFIX) -> Selection:
    """Return what these profiles need and expose.

    Raises ProfilesClashError if two of them define one metric name differently.
    """
    profiles = [PROFILES[name] for name in dict.fromkeys(names)]
    needed = {label for profile in profiles for label in profile.labels(options)}
    tables = [
        (profile, profile.rows(structs.replace(options, needs_merge=needed != set(profile.labels(options)))))
        for profile in profiles
    ]
    return Selection(
        tuple(profile.name for profile in profiles),
        options,
        tuple(_combined(tables, prefix)),
        tuple(label for label in TASK_LABELS if label in needed),
        _union(options.buckets or profile.buckets for profile in profiles),
        _union(options.queue_wait_buckets or profile.queue_wait_buckets for profile in profiles),
        any(profile.clients(options) for profile in profiles),
        any(profile.hosts for profile in profiles),
        any(profile.prefetched for profile in profiles),
        any(profile.latency for profile in profiles),
    )


def _combined(tables: Iterable[tuple[Profile, list[MetricFamily]]], prefix: str) -> Iterable[MetricFamily]:
    """Return the rows of all profiles, each name once, and the exporter's own rows.

    The exporter's own rows are always exposed.
    """
    defined: dict[str, tuple[MetricFamily, Profile]] = {}
    for profile, rows in tables:
        for row in map(_of_active_replica, rows):
            name = row.full_name(prefix)
            first_row, first_profile = defined.setdefault(name, (row, profile))
            if _form(first_row) != _form(row):
                raise ProfilesClashError(
                    f"--profile: {first_profile.name} and {profile.name} define {name} differently: "
                    f"{_described(first_row)} and {_described(row)}; remove one of the two from --profile"
                )
    own = {row.full_name(prefix): row for row in native.EXPORTER_ROWS}
    return ({name: row for name, (row, _) in defined.items()} | own).values()


def _of_active_replica(row: MetricFamily) -> MetricFamily:
    """Return a row that has no samples on a standby, if it is a gauge of the present.

    What a replica has counted itself stays: the sums over all replicas are those of one exporter.
    """
    if row.type != "gauge" or row.name in _SHOWN_BY_STANDBY:
        return row
    samples = row.samples
    return structs.replace(
        row, samples=lambda snapshot: () if snapshot.exporter.active is False else samples(snapshot)
    )


def _form(row: MetricFamily) -> tuple[object, ...]:
    return row.type, set(row.labels), row.buckets, row.decimal


def _described(row: MetricFamily) -> str:
    bounds = (
        f" and buckets {', '.join(f'{bound:g}' for bound in row.buckets)}" if row.buckets is not None else ""
    )
    return f"a {row.type} with {', '.join(row.labels) or 'no labels'}{bounds}"


def _union(bounds: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
    return tuple(sorted({bound for profile_bounds in bounds for bound in profile_bounds}))


def overview(profile: Profile) -> str:
    """Return a paragraph that describes the profile and names its metrics."""
    names = ", ".join(row.name for row in profile.rows(MetricOptions()))
    return textwrap.fill(f"{profile.name}: {profile.about}. {names}", 100, subsequent_indent="  ")


def table(profile: Profile) -> str:
    """Return the profile's metrics as text, with remarks where values differ from the original's."""
    return "\n".join(
        f"{row.name}{{{', '.join(row.labels)}}} ({row.type})\n    {row.help}"
        + (f"\n    Differs: {row.remark}." if row.remark else "")
        for row in profile.rows(MetricOptions())
    )
