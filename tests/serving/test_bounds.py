"""What clients can make grow has bounds: see ``docs/explanation/security.rst``, which lists them all."""

import logging

import pytest

from bgmiddleware import Job, MemoryRegistry
from bgmiddleware._jobs import key_of
from bgmiddleware._serving import estimates
from bgmiddleware._serving.estimates import Estimates
from bgmiddleware._starting.joining import Beginnings


def test_estimates_of_urls_that_clients_make_up_are_bounded() -> None:
    known = Estimates()
    with MemoryRegistry() as registry:
        for number in range(estimates._REMEMBERED + 50):
            known.of(registry, Job(key_of("one"), f"GET /{number}"))
    assert len(known._made) == estimates._REMEMBERED == 256


def test_what_was_warned_of_requests_that_cannot_be_joined_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    beginnings = Beginnings()
    for number in range(150):
        beginnings.tell([f"shop.{number}"])
        beginnings.tell([f"shop.{number}"])
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 100


def test_names_of_jobs_that_can_be_joined_are_gone_with_their_jobs() -> None:
    with MemoryRegistry(max_jobs=3) as registry:
        for number in range(50):
            key = key_of(str(number))
            registry.add(Job(key, "one", name=f"name {number}", name_salt="salt", keeps_name=True))
            registry.request_cancel(key)
        assert len(registry._names) == len(registry._records) == 3


def test_expired_keys_that_are_remembered_are_as_many_as_jobs_may_be() -> None:
    with MemoryRegistry(max_jobs=3) as registry:
        for number in range(50):
            registry.add(Job(key_of(str(number)), "one"))
            registry.request_cancel(key_of(str(number)))
        assert len(registry._expired) == 3
