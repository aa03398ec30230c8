"""Clients that do not give their memory back, or take long to: who is killed, and who is not."""

from __future__ import annotations

from signal import SIGKILL

from daemon_bench import PAGE_BYTES, Puppet, StartDaemon


def test_a_revoke_that_is_ignored_ends_the_process_at_its_deadline(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon(options=("--revoke-timeout-s", "0.3"))
    deaf = daemon.model("deaf", kv_cache=3 * PAGE_BYTES)
    deaf.do("enter")
    deaf.do("ignore_revokes")
    other = daemon.model("other", kv_cache=2 * PAGE_BYTES)
    other.do("enter")
    assert deaf.ended_by() == SIGKILL
    refusal = daemon.status().refusals[-1]
    assert (refusal.model, refusal.pid) == ("deaf", deaf.process.pid)
    assert refusal.message.startswith("killed: it was asked for its memory 0.")
    assert "--revoke-timeout-s" in refusal.message


def test_a_revoke_that_fails_is_told_and_ends_the_process_at_its_deadline(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon(options=("--revoke-timeout-s", "0.3"))
    stuck = daemon.model("stuck", kv_cache=3 * PAGE_BYTES)
    stuck.do("enter")
    stuck.do("fail_revokes", "device lost\n\x1b[31m" + "x" * 5000)
    other = daemon.model("other", kv_cache=2 * PAGE_BYTES)
    other.do("enter")
    assert stuck.ended_by() == SIGKILL
    told, killed = [r.message for r in daemon.status().refusals]
    assert told.startswith("device lost  [31mxxx")
    assert len(told) == 1000
    assert killed.startswith("killed")


def test_a_step_that_was_said_to_last_outlives_the_deadline(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(options=("--revoke-timeout-s", "0.3"))
    slow = daemon.model("slow", kv_cache=2 * PAGE_BYTES)
    slow.do("last", 600.0)
    slow.do("enter")
    deaf = daemon.model("deaf", kv_cache=PAGE_BYTES)
    deaf.do("enter")
    deaf.do("ignore_revokes")
    other = daemon.model("other", kv_cache=4 * PAGE_BYTES)
    other.start("enter")
    assert deaf.ended_by() == SIGKILL  # revoked at the same moment
    slow.do("fill", "kv_cache", 7)
    slow.do("leave")
    other.answer()
    assert other.do("values", "kv_cache") == [0]
    other.do("leave")
    slow.do("enter")
    assert slow.do("values", "kv_cache") == [7]


def test_an_obedient_model_is_not_killed_by_a_later_deadline(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(options=("--revoke-timeout-s", "0.5"))
    models = [daemon.model(name, kv_cache=3 * PAGE_BYTES) for name in "ab"]
    for number in range(1, 31):
        model: Puppet = models[number % 2]
        model.do("enter")
        assert model.do("values", "kv_cache") == [max(0, number - 2)]
        model.do("fill", "kv_cache", number)
        model.do("leave")
    assert [model.process.poll() for model in models] == [None, None]
