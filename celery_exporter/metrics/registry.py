"""Which profiles there are, and what those that are switched on need and show together."""

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


class ProfilesClashError(Exception):
    """Two profiles claim one name; the text is one line for people."""


class Selection(Struct, frozen=True):
    """What the profiles that are switched on show, and what they need to be known for it.

    `labels` are the optional labels that sums are kept under, of `TASK_LABELS`; bounds are all upper bucket
    bounds, in seconds, that one of them shows.
    """

    names: tuple[str, ...]
    shape: MetricOptions
    rows: tuple[MetricFamily, ...]
    labels: tuple[str, ...]
    runtime_bounds: tuple[float, ...]
    wait_bounds: tuple[float, ...]
    clients: bool
    hosts: bool
    prefetched: bool
    latency: bool


def select(names: Sequence[str], shape: MetricOptions, prefix: str = PREFIX) -> Selection:
    """Return what these profiles need and show; raise ProfilesClashError if they cannot be on together."""
    chosen = [PROFILES[name] for name in dict.fromkeys(names)]
    needed = {label for profile in chosen for label in profile.labels(shape)}
    tables = [
        (profile, profile.rows(structs.replace(shape, needs_merge=needed != set(profile.labels(shape)))))
        for profile in chosen
    ]
    return Selection(
        tuple(profile.name for profile in chosen),
        shape,
        tuple(_joined(tables, prefix)),
        tuple(label for label in TASK_LABELS if label in needed),
        _union(shape.buckets or profile.buckets for profile in chosen),
        _union(shape.queue_wait_buckets or profile.queue_wait_buckets for profile in chosen),
        any(profile.clients(shape) for profile in chosen),
        any(profile.hosts for profile in chosen),
        any(profile.prefetched for profile in chosen),
        any(profile.latency for profile in chosen),
    )


def _joined(tables: Iterable[tuple[Profile, list[MetricFamily]]], prefix: str) -> Iterable[MetricFamily]:
    """Return the rows of all, each name once, and the exporter's own, which nobody can do without."""
    claimed: dict[str, tuple[MetricFamily, Profile]] = {}
    for profile, rows in tables:
        for row in rows:
            name = row.full_name(prefix)
            before, by = claimed.setdefault(name, (row, profile))
            if _form(before) != _form(row):
                raise ProfilesClashError(
                    f"--profile: {by.name} and {profile.name} both have {name}, not the same one: "
                    f"{_described(before)} and {_described(row)}; drop one of the two from --profile"
                )
    own = {row.full_name(prefix): row for row in native.EXPORTER_ROWS}
    return ({name: row for name, (row, _) in claimed.items()} | own).values()


def _form(row: MetricFamily) -> tuple[object, ...]:
    return row.type, set(row.labels), row.buckets, row.decimal


def _described(row: MetricFamily) -> str:
    bounds = (
        f" and buckets {', '.join(f'{bound:g}' for bound in row.buckets)}" if row.buckets is not None else ""
    )
    return f"a {row.type} with {', '.join(row.labels) or 'no labels'}{bounds}"


def _union(bounds: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
    return tuple(sorted({bound for each in bounds for bound in each}))


def overview(profile: Profile) -> str:
    """Return a paragraph for people: what the profile is, and its metrics."""
    names = ", ".join(row.name for row in profile.rows(MetricOptions()))
    return textwrap.fill(f"{profile.name}: {profile.about}. {names}", 100, subsequent_indent="  ")


def table(profile: Profile) -> str:
    """Return the profile's metrics for people, with remarks where values differ from the original's."""
    return "\n".join(
        f"{row.name}{{{', '.join(row.labels)}}} ({row.type})\n    {row.help}"
        + (f"\n    Differs: {row.remark}." if row.remark else "")
        for row in profile.rows(MetricOptions())
    )
