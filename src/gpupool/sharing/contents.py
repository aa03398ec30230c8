"""Which pages have what in them, so that one page can be behind several models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping

from gpupool._core import PagePool


class Contents:
    """What models say that their pages have, or should have. Not thread safe.

    A page is known by what is in it for as long as somebody has it: a region that is shared is
    mapped for reading alone.
    """

    def __init__(self, pages: PagePool) -> None:
        """Know nothing yet."""
        self._pages = pages
        self._wanted: dict[int, Mapping[int, bytes]] = {}
        self._present: dict[bytes, int] = {}
        self._content: dict[int, bytes] = {}
        self._holders: dict[int, set[int]] = {}
        self._together: Counter[frozenset[int]] = Counter()  # pages by who has them, of several
        self._wrong: set[int] = set()  # found to be, and somebody's still
        self._changes = 0
        self._found: dict[int, tuple[int, dict[int, int]]] = {}

    def declare(self, key: int, contents: Mapping[int, bytes]) -> None:
        """What a model's pages will have, by their places among those that can be warm."""
        self._found.pop(key, None)
        if contents:
            self._wanted[key] = contents
        else:
            self._wanted.pop(key, None)

    def wants(self, key: int) -> bool:
        """Whether a model has said so."""
        return key in self._wanted

    def has(self, key: int, pages: Mapping[int, int]) -> None:
        """A model's pages have, by their places, what it declared."""
        wanted = self._wanted.get(key, {})
        for place, page in pages.items():
            content = wanted.get(place)
            if content is None:
                continue
            known = self._content.setdefault(page, content)
            if known != content:  # somebody is wrong about it, so nobody else gets it
                self._present.pop(known, None)
                continue
            if page not in self._wrong:
                self._present.setdefault(content, page)
            self._hold(page, {*self._holders.get(page, ()), key})
        self._changes += 1

    def matches(self, key: int, first: int) -> dict[int, int]:
        """Pages of others that a model could have, by place; none before the place ``first``."""
        wanted = self._wanted.get(key)
        if not wanted or not self._present:
            return {}
        changes, found = self._found.get(key, (-1, {}))
        if changes != self._changes:
            found, used = {}, set(self._pages.owned(key))
            for place, content in wanted.items():
                page = self._present.get(content)
                if page is not None and page not in used:
                    found[place] = page
                    used.add(page)
            self._found[key] = self._changes, found
        return {place: page for place, page in found.items() if place >= first}

    def took(self, key: int, pages: Iterable[int]) -> None:
        """A model has them too, from now on."""
        for page in pages:
            self._hold(page, {*self._holders[page], key})
        self._changes += 1

    def gave_back(self, key: int, pages: Iterable[int]) -> None:
        """A model has these no more."""
        for page in pages:
            holders = self._holders.get(page)
            if holders is None:
                continue
            self._hold(page, holders - {key})
            if page not in self._holders:
                self._wrong.discard(page)
                content = self._content.pop(page)
                if self._present.get(content) == page:
                    del self._present[content]
        self._changes += 1

    def distrust(self, key: int, pages: Collection[int]) -> set[int]:
        """A model found something else on these: all it is to have is looked for on no page now.

        On none of them nothing changes. Returns the others that have some of the ``pages``.
        """
        if not pages:
            return set()
        for content in self._wanted.get(key, {}).values():
            self._present.pop(content, None)
        self._changes += 1
        wrong = [page for page in pages if page in self._holders]
        self._wrong.update(wrong)
        return {holder for page in wrong for holder in self._holders[page]} - {key}

    def have_wrong(self) -> set[int]:
        """The models that have pages which were found wrong."""
        return {holder for page in self._wrong for holder in self._holders[page]}

    def left_to_others(self, last: Callable[[int], tuple[float, ...]]) -> Counter[int]:
        """How many pages of each model do not come free as it leaves, for others have them as well.

        What several have comes free with the one of them that is asked ``last``, as its order
        says, so that those of all who leave add up to what comes free with all of them.
        """
        left: Counter[int] = Counter()
        for holders, count in self._together.items():
            for key in holders - {max(holders, key=last)}:
                left[key] += count
        return left

    def _hold(self, page: int, holders: set[int]) -> None:
        for many, before in ((-1, self._holders.get(page)), (1, holders)):
            if before is not None and len(before) > 1:
                together = frozenset(before)
                self._together[together] += many
                if self._together[together] == 0:
                    del self._together[together]
        if holders:
            self._holders[page] = holders
        else:
            del self._holders[page]

    def forget(self, key: int) -> None:
        """The model has left."""
        self._wanted.pop(key, None)
        self._found.pop(key, None)
