"""Definitions: mistakes are told at once, and what is pinned is what matters."""

from __future__ import annotations

import pytest

from daydo_db import Database, SchemaOutdated
from daydo_pipeline import Cost, Flow, InputsInvalid, Owner, Runs, RunsConfig
from daydo_pipeline.testing import FakeProvider, MemoryQuota, cutout


async def work(call, **inputs):
    return inputs


def not_async(call):
    return None


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        (lambda flow: flow.step("Mask!", work), "lower-case"),
        (lambda flow: flow.step("mask"), "either a function or provider="),
        (lambda flow: flow.step("mask", work, provider="x"), "either a function or provider="),
        (lambda flow: flow.step("mask", not_async), "async def"),
        (lambda flow: flow.step("mask", work, timeout_s=0), "timeout_s"),
        (lambda flow: flow.step("mask", work, retries=21), "retries"),
        (lambda flow: (flow.step("mask", work), flow.step("mask", work)), "taken"),
        (lambda flow: flow.step("mask", work, image=Flow("other").input("photo")), "another flow"),
        (lambda flow: flow.step("mask", work, image=Flow("other").step("x", work)), "no earlier step"),
        (lambda flow: flow.step("mask", work, images=[flow.input("photo")]), "JSON"),
        (lambda flow: flow.step("mask", work, params={"raw": b"x"}), "JSON"),
        (lambda flow: [flow.step(f"s{n}", work) for n in range(51)], "at most 50"),
        (lambda flow: flow.input("not a name"), "Python name"),
        (lambda flow: (flow.input("a"), flow.input("a", default=1)), "two defaults"),
        (lambda flow: (flow.step("mask", work), flow.seal(), flow.step("more", work)), "already"),
    ],
)
def test_a_mistake_in_a_flow_is_told_where_it_is_made(mistake, says):
    """A ValueError that names flow and step, at import time and not in the first run."""
    with pytest.raises(ValueError, match=says):
        mistake(Flow("cutout"))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Runs(Database("sqlite://"), flows=[Flow("empty")]), "no steps"),
        (lambda: Runs(Database("sqlite://"), flows=[cutout()], providers={"matting": FakeProvider()}), "quota="),
        (lambda: Runs(Database("sqlite://"), flows=[cutout()], quota=MemoryQuota()), "matting"),
        (
            lambda: Runs(
                Database("sqlite://"),
                flows=[cutout(), cutout()],
                providers={"matting": FakeProvider()},
                quota=MemoryQuota(),
            ),
            "twice",
        ),
        (lambda: Flow("Cutout"), "lower-case"),
        (lambda: Flow("cutout", version=0), "version"),
        (lambda: Cost("credits", 0), "positive"),
        (lambda: Owner("", ""), "1 to 128"),
        (lambda: Owner("a b", "u"), "1 to 128"),
        (lambda: Owner("", "x" * 129), "1 to 128"),
        (lambda: Owner("x" * 129, "u"), "1 to 128"),
        (lambda: RunsConfig(lease_s=0), "lease_s"),
    ],
)
def test_what_cannot_work_is_not_built(make, says):
    """A run that could never finish, or never be paid, is a ValueError before anything starts."""
    with pytest.raises(ValueError, match=says):
        make()


def test_arguments_are_resolved():
    """Inputs of the run, whole outputs, their fields, and constants; params stay apart."""
    flow = Flow("x")
    first = flow.step("first", work, a=flow.input("photo"), b=3)
    second = flow.step("second", work, all=first, part=first["deep"]["er"], params={"size": flow.input("size")})
    assert second.step == "second"
    inputs, outputs = {"photo": "p", "size": 9}, {"first": {"deep": {"er": 1}}}
    assert flow.steps[0].arguments(inputs, outputs) == ({"a": "p", "b": 3}, {})
    assert flow.steps[1].arguments(inputs, outputs) == ({"all": {"deep": {"er": 1}}, "part": 1}, {"size": 9})


def test_inputs_are_completed():
    """Defaults fill in, also None and false ones; what is missing or unknown is named."""
    flow = Flow("x")
    flow.input("photo")
    flow.input("feather", default=None)
    assert flow.complete({"photo": "p"}) == {"photo": "p", "feather": None}
    assert flow.complete({"photo": "p", "feather": 2}) == {"photo": "p", "feather": 2}
    with pytest.raises(InputsInvalid) as refused:
        flow.complete({"fether": 2})
    assert {field.field for field in refused.value.fields} == {"photo", "fether"}


def test_the_hash_covers_steps_and_not_tuning():
    """Timeouts, retries and the price may change under one version; bindings, providers and constants may not."""
    base = cutout().hash()
    assert cutout(cost=9, timeout_s=1, retries=0).hash() == base
    assert cutout(version=2).hash() != base
    other = Flow("cutout")
    mask = other.step("mask", provider="other", image=other.input("photo"))
    other.step("compose", work, mask=mask["image"])
    assert other.hash() != base


async def test_start_up_needs_the_tables(database_url):
    """Without migrations nothing starts, and the error is the command to run."""
    flow = Flow("x")
    flow.step("work", work)
    async with Database(database_url) as db:
        with pytest.raises(SchemaOutdated, match="daydo_pipeline"):
            async with Runs(db, flows=[flow]):
                pass
