"""The values: jobs, their states, their names; and the errors."""

import json
import uuid

import pytest

from bgmiddleware import Channel, Job, JobState, Priority, Progress, RecordedResponse, errors
from bgmiddleware._jobs import _KINDS, key_of, new_token


@pytest.mark.parametrize("state", JobState)
def test_four_of_the_six_states_are_ends(state):
    assert state.ended == (state in {"finished", "failed", "cancelled", "lost"})


def test_states_and_channels_are_the_words_that_users_see():
    assert [f"{state}" for state in JobState] == ["pending", "running", "finished", "failed", "cancelled", "lost"]
    assert [f"{channel}" for channel in Channel] == ["request", "output", "body"]
    assert JobState("lost") is JobState.LOST


@pytest.mark.parametrize(
    ("value", "name"),
    [(Job("key", "title"), "key"), (Progress(1), "done"), (RecordedResponse("200 OK", ()), "status")],
)
def test_values_do_not_change(value, name):
    with pytest.raises(AttributeError):
        setattr(value, name, "new")


def test_a_new_job_is_pending_and_empty():
    job = Job("key", "title")
    assert (job.state, job.reason, job.request, job.response, job.progress) == (JobState.PENDING, "", {}, None, None)
    assert (job.output_end, job.output_dropped, job.body_end) == (0, None, 0)


@pytest.mark.parametrize(
    ("started_at", "ended_at", "now", "elapsed"),
    [
        (None, None, 100.0, 0.0),
        (None, 50.0, 100.0, 0.0),  # it never began
        (10.0, None, 100.0, 90.0),
        (10.0, 30.5, 100.0, 20.5),
        (10.0, 10.0, 100.0, 0.0),
        (10.0, None, 9.0, 0.0),  # the clock was set back
        (10.0, 9.0, 100.0, 0.0),
    ],
)
def test_a_job_says_how_long_it_ran(started_at, ended_at, now, elapsed):
    assert Job("key", "title", started_at=started_at, ended_at=ended_at).elapsed(now) == elapsed


@pytest.mark.parametrize(
    ("done", "total", "percent"),
    [
        (0, 10, 0.0),
        (5, 10, 50.0),
        (1, 3, 100 / 3),
        (10, 10, 100.0),
        (11, 10, 100.0),
        (-1, 10, 0.0),
        (0.25, 0.5, 50.0),
        (5, None, None),
        (5, 0, None),
        (0, 0, None),
        (5, -1, None),
    ],
)
def test_a_progress_is_in_percent_where_there_is_a_total(done, total, percent):
    assert Progress(done, total).percent == percent


@pytest.mark.parametrize(("status", "code"), [("200 OK", 200), ("503 ", 503), ("418 I'm a teapot", 418)])
def test_a_response_knows_its_code(status, code):
    assert RecordedResponse(status, ()).code == code


def test_a_token_is_a_random_uuid_in_its_canonical_form():
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    for token in tokens:
        assert str(uuid.UUID(token)) == token
        assert uuid.UUID(token).version == 4


def test_a_key_is_a_digest_that_does_not_tell_the_token():
    token = "c0ffee00-1234-4678-9abc-def012345678"
    key = key_of(token)
    assert key == key_of(token) == "f6b4199b4d7b8c91da88c10d92b61463"
    assert key != key_of(token[:-1] + "9")
    assert set(key) <= set("0123456789abcdef")  # safe as a file's name
    assert not set(token.split("-")) & {key[:8], key[-12:]}


# The errors.


@pytest.mark.parametrize(
    ("error", "bases"),
    [
        (errors.ConfigurationError("x"), (errors.BackgroundError, ValueError)),
        (errors.JobNotFound("k" * 32), (errors.BackgroundError,)),
        (errors.JobExpired("k" * 32), (errors.BackgroundError,)),
        (errors.QueueFull("x"), (errors.BackgroundError,)),
        (errors.BadRequestBody("x"), (errors.BackgroundError,)),
        (errors.BodyTooLarge(1), (errors.BadRequestBody,)),
        (errors.RegistryError("x"), (errors.BackgroundError,)),
        (errors.BadOffset(1), (errors.RegistryError,)),
        (errors.Fenced("k" * 32), (errors.RegistryError,)),
        (errors.JobExists("k" * 32), (errors.RegistryError,)),
        (errors.RegistryFull("x", 1), (errors.RegistryError,)),
        (errors.JobCancelled(), (BaseException,)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_each_error_is_what_the_tree_says(error, bases):
    for base in bases:
        assert isinstance(error, base)
    assert f":class:`{type(error).__name__}`" in errors.__doc__
    assert type(error).__name__ in errors.__all__
    assert str(error)


def test_a_cancel_is_not_swallowed_by_except_exception():
    assert not issubclass(errors.JobCancelled, (Exception, errors.BackgroundError))
    assert errors.JobCancelled("deadline").reason == "deadline"


@pytest.mark.parametrize("error", [errors.JobNotFound, errors.JobExpired, errors.JobExists, errors.Fenced])
def test_an_error_shows_only_the_beginning_of_a_key(error):
    key = "0123456789abcdef" * 2
    assert error(key).key == key
    assert "01234567…" in str(error(key))
    assert "89ab" not in str(error(key))


def test_a_setting_that_is_wrong_is_named_with_its_value_and_what_is_allowed():
    error = errors.ConfigurationError.of_setting("ttl", -1, "a number above 0")
    assert str(error) == "ttl = -1: expected a number above 0"
    error = errors.ConfigurationError.of_setting("executor", "x", ["thread", "process"])
    assert str(error) == "executor = 'x': expected one of process, thread"


def test_a_job_comes_back_from_its_document_as_it_was():
    job = Job(
        "key",
        "title ☃",
        state=JobState.RUNNING,
        reason="why",
        created_at=1.25,
        started_at=2.5,
        cancel_requested_at=3.0,
        runner="me",
        lease_expires_at=4.0,
        owner="ann",
        version="2",
        deadline=60.0,
        priority=Priority.HIGH,
        groups={"mark": 1},
        fingerprint="0f",
        request={"PATH_INFO": "/caf\xc3\xa9"},
        response=RecordedResponse("200 OK", (("X-Y", "\xff"), ("X-Y", "2")), complete=False),
        progress=Progress(1, 2.5, "rows"),
        output_end=10,
        output_dropped=(3, 5),
        body_end=7,
        receipt={"runner": "me", "cpu_time": 0.5},
    )
    for each in (job, Job("key", "title"), Job("", "")):
        assert Job.from_document(json.loads(json.dumps(each.to_document()))) == each
        assert Job.from_document(json.loads(json.dumps(each.to_brief_document()))) == each


def test_a_brief_document_has_only_what_tells_a_job_from_a_new_one():
    assert Job("key", "title").to_brief_document() == {"key": "key", "title": "title"}
    assert Job("key", "title", reason="why", body_end=3).to_brief_document().keys() - {"key", "title"} == {
        "reason",
        "body_end",
    }


def test_a_document_of_a_newer_version_is_read_as_far_as_it_is_known():
    assert Job.from_document({"key": "key", "title": "title", "shoe_size": 47}) == Job("key", "title")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("title", 1),
        ("created_at", "soon"),
        ("expires_at", []),
        ("owner", 7),
        ("groups", None),
        ("request", []),
        ("response", "200 OK"),
        ("output_end", 1.5),
        ("output_dropped", 3),
        ("output_dropped", [1]),
        ("progress", {"total": 1}),
        ("state", "paused"),
        ("key", None),
    ],
)
def test_a_document_whose_fields_are_of_another_kind_is_of_no_job(name, value):
    with pytest.raises((ValueError, TypeError, KeyError)):
        Job.from_document({**Job("key", "title").to_document(), name: value})


def test_what_a_document_may_hold_is_known_of_every_field():
    assert _KINDS.keys() == set(Job._fields)


def test_a_progress_of_a_newer_version_is_read_as_far_as_it_is_known():
    document = {**Job("key", "title").to_document(), "progress": {"done": 1, "colour": "red"}}
    assert Job.from_document(document).progress == Progress(1)


def test_a_document_from_before_there_were_priorities_is_of_a_normal_job():
    document = Job("key", "title").to_document()
    del document["priority"]
    assert Job.from_document(document).priority is Priority.NORMAL


def test_a_higher_priority_has_a_lower_rank():
    assert [priority.rank for priority in (Priority.HIGH, Priority.NORMAL, Priority.LOW)] == [0, 1, 2]


def test_a_job_reads_as_lost_when_its_time_has_run_out():
    pending = Job("key", "title", expires_at=10.0)
    assert pending.as_of(9.9) is pending
    assert pending.as_of(10.0).state is JobState.LOST
    leased = Job("key", "title", state=JobState.RUNNING, lease_expires_at=10.0)
    assert leased.as_of(9.9) is leased
    assert leased.as_of(10.0).state is JobState.LOST
    assert leased.changed(cancel_requested_at=1.0).as_of(10.0).state is JobState.CANCELLED
    assert leased.changed(lease_expires_at=None).as_of(1e12).state is JobState.RUNNING
