"""Goals and weights by class of models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from gpupool.cli import main
from gpupool.errors import UsageError
from gpupool.schedule.work import Goals
from gpupool.simulate.classes import OTHERS, ModelClass, classes_of, load_classes
from gpupool.simulate.simulation import Hardware, simulate
from gpupool.simulate.synthetic import synthetic_trace

FILE = """
[[classes]]
name = "chat"
models = ["chat-*", "model_000[0-3]"]
ttft_s = 2
weight = 4

[[classes]]
name = "batch"
models = ["model_000?", "b"]
tbt_s = 1
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "goals.toml"
    path.write_text(text)
    return path


def test_what_a_class_does_not_say_is_as_elsewhere(tmp_path: Path) -> None:
    chat, batch = load_classes(written(tmp_path, FILE), Goals(9.0, 0.3))
    assert (chat.goals, chat.weight) == (Goals(2.0, 0.3), 4.0)
    assert (batch.goals, batch.weight) == (Goals(9.0, 1.0), 1.0)


def test_the_first_class_that_has_a_model_is_its_own(tmp_path: Path) -> None:
    classes = load_classes(written(tmp_path, FILE), Goals())
    found = classes_of(["x", "model_0002", "model_0004", "chat-", "b"], classes, Goals())
    names = {model: of.name for model, of in found.items()}
    assert names == {
        "model_0002": "chat",
        "chat-": "chat",
        "model_0004": "batch",
        "b": "batch",
        "x": OTHERS,
    }
    assert list(dict.fromkeys(names.values())) == ["chat", "batch", OTHERS]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "classes"),
        ("[[classes]]\nname = 'a'\nmodels = []\n", "classes"),
        ("[[classes]]\nname = 'a'\nmodels = ['b']\nwait_s = 1\n", "wait_s"),
        ("[[classes]]\nname = 'a'\nmodels = ['b']\nweight = 0\n", "weight"),
        ("[[classes]]\nname = 'a'\nmodels = ['b']\nweight = nan\n", "weight"),
        ("[[classes]]\nname = 'a'\nmodels = ['b']\nttft_s = -1\n", "ttft_s"),
        ("[[classes]]\nname = 'others'\nmodels = ['b']\n", "two classes are named others"),
        ("[[classes]]\nname = 'a'\nmodels = ['b']\n" * 2, "two classes are named a"),
        ("[[classes]\n", "line 1"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path: Path, text: str, says: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UsageError, match=says) as caught:
        load_classes(path, Goals())
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_class_without_a_model_is_refused() -> None:
    classes = [ModelClass("a", Goals()), ModelClass("b", Goals(), patterns=("x*",))]
    with pytest.raises(UsageError, match="the class b has no model"):
        classes_of(["x1", "y"], classes, Goals())


TRACE = synthetic_trace(models=12, rate_per_s=0.3, duration_s=60, seed=3)
NAMES = sorted({arrival.model for arrival in TRACE})


@settings(max_examples=25)
@given(
    st.lists(st.integers(0, 2), min_size=len(NAMES), max_size=len(NAMES)),
    st.sampled_from(["fcfs", "aegaeon", "deadlines"]),
    st.integers(1, 2),
)
def test_the_figures_of_classes_are_parts_of_the_whole(
    places: list[int], policy: str, groups: int
) -> None:
    goals = [Goals(1.0, 0.05), Goals(5.0, 0.2)]
    classes = [
        ModelClass(str(place), goals[place], 1.0 + 3 * place, tuple(own))
        for place in range(2)
        if (own := [name for name, of in zip(NAMES, places, strict=True) if of == place])
    ]
    found = simulate(TRACE, policy, Hardware(devices=2, groups=groups), classes=classes)
    if not classes:
        assert found.classes == ()
        return
    assert sum(of.requests for of in found.classes) == found.requests
    assert sum(of.models for of in found.classes) == found.models
    low, high = (pick(of.attainment_tokens for of in found.classes) for pick in (min, max))
    assert low <= found.attainment_tokens <= high
    total = sum(of.attainment_time * of.requests for of in found.classes)
    assert total / found.requests == pytest.approx(found.attainment_time)
    for of in found.classes:
        if of.name != OTHERS:
            assert (of.goal_ttft_s, of.goal_tbt_s) == tuple(
                getattr(goals[int(of.name)], name) for name in ("ttft_s", "tbt_s")
            )


def test_classes_that_are_as_all_others_change_nothing() -> None:
    hardware = Hardware(devices=1)
    plain = simulate(TRACE, "deadlines", hardware)
    same = simulate(TRACE, "deadlines", hardware, classes=[ModelClass("all", Goals(), 5.0)])
    assert same.ttft_s == plain.ttft_s and same.switches == plain.switches
    assert same.classes[0].attainment_tokens == plain.attainment_tokens


def test_under_overload_a_class_of_more_weight_has_more_in_time() -> None:
    trace = synthetic_trace(models=60, rate_per_s=0.2, duration_s=120)
    half = [f"model_{place:04}" for place in range(0, 60, 2)]
    shares = []
    for weight in (1.0, 4.0):
        classes = [ModelClass("half", Goals(), weight, tuple(half))]
        found = simulate(trace, "deadlines", Hardware(devices=3), classes=classes)
        shares.append([of.attainment_tokens for of in found.classes])
        assert found.attainment_tokens < 0.8
    (half_even, _), (half_more, rest_more) = shares
    assert half_more > half_even + 0.05
    assert half_more > rest_more + 0.1


def test_the_command_has_a_line_for_each_class(tmp_path: Path) -> None:
    path = str(written(tmp_path, FILE))
    given_ = ("simulate", "--models", "12", "--duration-s", "60", "--goals", path)
    runner = CliRunner()
    done = runner.invoke(main, [*given_, "--policy", "fcfs", "--policy", "deadlines"])
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.stdout.split("\n\n")[-1].splitlines()[1:]]
    assert [row[:2] for row in rows] == [
        [name, policy] for name in ("chat", "batch", OTHERS) for policy in ("fcfs", "deadlines")
    ]
    found = json.loads(runner.invoke(main, [*given_, "--json", "-"]).stdout)
    chat = found["classes"][0]
    assert (chat["name"], chat["goal_ttft_s"], chat["weight"], chat["models"]) == ("chat", 2, 4, 4)
    assert "not_there" in runner.invoke(main, ["simulate", "--goals", "not_there"]).stderr
    bad = runner.invoke(main, [*given_[:4], "1", *given_[5:]])
    assert bad.exit_code != 0 and "the class batch has no model" in bad.stderr
