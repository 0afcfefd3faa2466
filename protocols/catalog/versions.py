"""The version records known, as one DAG a name: heads, history, and what to let go first when room is short.

All that is asked here is a function of the set of records alone, never of the order in which they came; that is
what makes two catalogs with the same records agree.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from protocols.catalog.clock import Clock
from protocols.catalog.records import PARENTS_MAX, VersionRecord
from protocols.ids import Digest, PeerId, VersionId
from protocols.names import InvalidName, ModelName


class _Name:
    """The versions of one name. `children` counts how many of them list an id as parent."""

    __slots__ = ("children", "floor", "heads", "versions")

    def __init__(self) -> None:
        self.versions: dict[VersionId, VersionRecord] = {}
        self.children: dict[bytes, int] = {}
        self.heads: tuple[VersionRecord, ...] | None = None
        # Whatever is not later than this was history when room ran out; met again it would pose as a head.
        self.floor: Clock | None = None


def _age(record: VersionRecord) -> tuple[Clock, VersionId]:
    return record.clock, record.id()


class Versions:
    """At most `count_max` records and about `size_bytes_max` of memory; superseded ones go first, oldest first.

    What `own` states always has room: however much others publish, a host knows its own models.
    """

    def __init__(self, count_max: int, size_bytes_max: int, own: PeerId | None = None) -> None:
        self._own = own
        self._count_max = count_max
        self._size_bytes_max = size_bytes_max
        self._by_id: dict[VersionId, VersionRecord] = {}
        self._names: dict[str, _Name] = {}
        self._history: dict[VersionId, None] = {}
        self._by_manifest: dict[Digest, dict[VersionId, None]] = {}
        self._manifests_of_blob: dict[Digest, dict[Digest, None]] = {}
        self._declined: dict[bytes, None] = {}
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, version_id: object) -> bool:
        return version_id in self._by_id

    def get(self, version_id: bytes) -> VersionRecord | None:
        """The record of an id, if known."""
        return self._by_id.get(VersionId(version_id))

    def ids(self) -> list[VersionId]:
        """All ids, in the order in which they came."""
        return list(self._by_id)

    def declined(self, version_id: bytes) -> bool:
        """Whether this record was let go before, so that asking for it again would be for nothing."""
        return version_id in self._declined

    def add(self, record: VersionRecord) -> list[VersionId]:
        """Take in a record; gives the ids let go for it, which may hold its own."""
        version_id = record.id()
        if version_id in self._by_id:
            return []
        known = self._names.get(record.name)
        if known is not None and known.floor is not None and record.clock <= known.floor:
            self._decline(version_id)
            return [version_id]
        self._insert(record)
        return self._make_room(record) if self._over(1.0) else []

    def _over(self, share: float) -> bool:
        return len(self._by_id) > share * self._count_max or self.size_bytes > share * self._size_bytes_max

    def _make_room(self, newcomer: VersionRecord) -> list[VersionId]:
        # A sixteenth at a time, so that the sort is paid once in many records.
        let_go: list[VersionId] = []
        for record in sorted((self._by_id[i] for i in self._history), key=_age):
            if not self._over(15 / 16):
                break
            self._let_go(record)
            let_go.append(record.id())
        if self._over(1.0) and newcomer.id() in self._by_id and newcomer.author != self._own:
            # No history is left to let go, and what is here is somebody's head: the newcomer is refused.
            self._let_go(newcomer)
            let_go.append(newcomer.id())
        return let_go

    def _insert(self, record: VersionRecord) -> None:
        version_id = record.id()
        self._declined.pop(version_id, None)
        self._by_id[version_id] = record
        self.size_bytes += record.memory_bytes
        name = self._names.setdefault(record.name, _Name())
        name.versions[version_id] = record
        for parent in record.parents:
            name.children[parent] = name.children.get(parent, 0) + 1
            if parent in name.versions:
                self._history[VersionId(parent)] = None
        if version_id in name.children:
            self._history[version_id] = None
        name.heads = None
        same = self._by_manifest.setdefault(record.manifest_digest, {})
        if not same:
            for blob in record.blobs:
                self._manifests_of_blob.setdefault(blob.digest, {})[record.manifest_digest] = None
        same[version_id] = None

    def _let_go(self, record: VersionRecord) -> None:
        version_id = record.id()
        self._decline(version_id)
        del self._by_id[version_id]
        self.size_bytes -= record.memory_bytes
        name = self._names[record.name]
        del name.versions[version_id]
        name.heads = None
        superseded = self._history.pop(version_id, version_id) is None
        if superseded and (name.floor is None or record.clock > name.floor):
            name.floor = record.clock
        for parent in record.parents:
            name.children[parent] -= 1
            if not name.children[parent]:
                del name.children[parent]
                self._history.pop(VersionId(parent), None)
        if not name.versions and name.floor is None:
            del self._names[record.name]
        same = self._by_manifest[record.manifest_digest]
        del same[version_id]
        if not same:
            self._forget_manifest(record)

    def _forget_manifest(self, record: VersionRecord) -> None:
        del self._by_manifest[record.manifest_digest]
        for blob in record.blobs:
            manifests = self._manifests_of_blob[blob.digest]
            del manifests[record.manifest_digest]
            if not manifests:
                del self._manifests_of_blob[blob.digest]

    def _decline(self, version_id: VersionId) -> None:
        self._declined[version_id] = None
        if len(self._declined) > self._count_max:
            del self._declined[next(iter(self._declined))]

    def _current(self, name: _Name) -> list[VersionRecord]:
        """The versions nothing follows, less those that only repeat history.

        A version without parents was made by a host that knew no history (it found the model in its store). Where
        its manifest is already part of the name's history, it says nothing that was not said and superseded.
        """
        history = {r.manifest_digest for r in name.versions.values() if r.id() in name.children}
        return [
            r
            for r in name.versions.values()
            if r.id() not in name.children and (r.parents or r.manifest_digest not in history)
        ]

    def heads(self, name: str) -> tuple[VersionRecord, ...]:
        """The heads of a name, one for each manifest, latest first; more than one is a conflict.

        Hosts that adopt the same model make equal versions without knowing of each other: no conflict. The earliest
        of them stands for all, so that another host adopting the same changes nothing.
        """
        known = self._names.get(name)
        if known is None:
            return ()
        if known.heads is None:
            earliest: dict[Digest, VersionRecord] = {}
            for record in sorted(self._current(known), key=_age):
                earliest.setdefault(record.manifest_digest, record)
            known.heads = tuple(sorted(earliest.values(), key=_age, reverse=True))
        return known.heads

    def parents_for(self, name: str, manifests: Sequence[Digest]) -> tuple[bytes, ...]:
        """The ids that a version following these head manifests lists as parents: each's representative at least."""
        known = self._names.get(name)
        if known is None:
            return ()
        representatives = [record.id() for record in self.heads(name)]
        current = sorted(self._current(known), key=lambda r: (r.id() not in representatives, *_age(r)))
        return tuple(sorted([r.id() for r in current if r.manifest_digest in manifests][:PARENTS_MAX]))

    def of_manifest(self, manifest_digest: Digest) -> list[VersionRecord]:
        """Every version with this manifest, earliest first."""
        return sorted((self._by_id[i] for i in self._by_manifest.get(manifest_digest, ())), key=_age)

    def manifests_with_blob(self, digest: Digest) -> list[Digest]:
        """The manifests that name a blob."""
        return list(self._manifests_of_blob.get(digest, ()))

    def names(self) -> list[str]:
        """All names with a version, sorted."""
        return sorted(name for name, known in self._names.items() if known.versions)

    def name_count(self) -> int:
        """How many names there are."""
        return len(self._names)

    def find(self, pattern: str) -> list[str]:
        """The names a glob matches in their display or full form, whatever the case; a plain name gets its defaults."""
        wanted = pattern.lower()
        if not any(sign in pattern for sign in "*?["):
            try:
                wanted = ModelName.parse(pattern).full().lower()
            except InvalidName:
                return []
        return [name for name in self.names() if _matches(name, wanted)]


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name.lower(), pattern) or fnmatchcase(ModelName.parse(name).display().lower(), pattern)
