"""Hostile and broken input, made by hypothesis and, where it installs, by atheris.

The invariant, for anybody who can publish on the broker: whatever bytes arrive,

- the good events of a batch count,
- each bad one is exactly one malformed,
- memory stays within its bound, and so does time,
- no exception leaves `decode` or `apply`,

and the page that comes of it is one that Prometheus can read, with each label value as it was sent.

What is good, and what one bad one is: a batch is a JSON array, and its items are told apart by brackets and
quotes alone. So an item may be no JSON at all, too deep to be parsed, or no text, and is one malformed; only
where brackets do not balance or a text does not end is there no next item, and what is left is one malformed.
A body that is no array is one item. At most `core.batch.MAX_ITEMS` items are told apart in a body.

    batches.py        JSON texts made by hand, of which it is known what they are
    pipeline.py          the way of a body through decode, apply, ledger, snapshot and page
    test_batches.py   the invariant, for such texts
    test_any_order.py the invariants of the core, for well-formed events of few tasks in any order
    targets.py        what takes bytes off the wire, each with what has to hold
    test_bytes.py     the same bytes for all: made by hypothesis, and those of corpus/
    test_bounds.py    what the worst bodies that we could think of take, in memory and time
    run_atheris.py    targets.py again, by coverage, for as long as one likes

`FUZZ_SECONDS` is about how long pytest takes, and run_atheris.py as well (40, as a part of all tests).
"""
