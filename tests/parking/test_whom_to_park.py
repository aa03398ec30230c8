"""Whom the policy asks to park, for any models: nobody too many, and nobody too late."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from gpupool.schedule.parking import ImagesView, Wishes, whom_to_park
from gpupool.schedule.turns import Residency

TURN_S = 4.0
NOW_S = 10.0
TIMES = st.integers(0, 20).map(float)


@dataclass
class World:
    """Models, some of which could not park when they were asked last."""

    views: list[ImagesView]
    failed: set[int]
    missing: int
    room: int
    idle_only: bool

    def at(self, now_s: float) -> Wishes:
        """What is decided then, if nothing else happens."""
        views = [
            replace(view, never=view.key in self.failed and view.not_before_s > now_s)
            for view in self.views
        ]
        return whom_to_park(
            tuple(views), self.missing, self.room, now_s, TURN_S, idle_only=self.idle_only
        )

    def without(self, keys: set[int]) -> World:
        """Once these have been asked."""
        gone = [view for view in self.views if view.key in keys]
        return replace(
            self,
            views=[view for view in self.views if view.key not in keys],
            missing=self.missing - sum(view.size_bytes for view in gone),
            room=self.room - sum(view.file_bytes for view in gone),
        )


@st.composite
def worlds(draw: st.DrawFn) -> World:
    count = draw(st.integers(1, 5))
    views = [
        ImagesView(
            key,
            draw(st.integers(1, 4)),
            draw(st.integers(0, 4)),
            draw(st.sampled_from(list(Residency))),
            draw(TIMES),
            draw(TIMES),
            draw(st.booleans()),
            not_before_s=draw(TIMES),
            comes=draw(st.booleans()),
        )
        for key in range(count)
    ]
    failed = draw(st.sets(st.integers(0, count - 1)))
    missing = draw(st.integers(1, sum(view.size_bytes for view in views)))
    room = draw(st.sampled_from([4, 8, 100]))
    return World(views, failed, missing, room, draw(st.booleans()))


@settings(max_examples=500)
@given(worlds())
def test_nobody_is_asked_too_many_or_too_late(world: World) -> None:
    wishes = world.at(NOW_S)
    asked = {wish.key for wish in wishes.asked}
    assert world.without({wish.key for wish in wishes.asked[:-1]}).missing > 0
    left = world.without(asked)
    assert left.room >= 0
    if not wishes.possible:
        assert not asked
        return
    if left.missing <= 0:
        return
    # Until it looks again there is nobody whom it would ask.
    ends_s = [view.since_s + TURN_S for view in world.views]
    times_s = {*ends_s, *(view.not_before_s for view in world.views)}
    for at_s in times_s:
        if at_s > NOW_S and (wishes.wake_at_s is None or at_s < wishes.wake_at_s):
            assert not left.at(at_s).asked
