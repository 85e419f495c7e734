"""The order in which `doctor` prints its checks has each of them once."""

from __future__ import annotations

from celery_exporter.doctor import problems as doctor_problems
from celery_exporter.doctor.check_order import CHECKS_BY_SUBJECT
from celery_exporter.doctor.remedies import REFUSALS
from celery_exporter.status import problems as status_problems
from celery_exporter.status.finding import Problem


def test_every_check_of_the_tables_is_in_the_order_once():
    names = [name for checks in CHECKS_BY_SUBJECT.values() for name in checks]
    rows = [*vars(status_problems).values(), *vars(doctor_problems).values()]
    checks = {row.check for row in rows if isinstance(row, Problem)} | {row.check for row in REFUSALS}
    assert sorted(names) == sorted(checks | {"virtual-host"})
