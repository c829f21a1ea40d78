"""Which weight versions exist and where their bytes are: the newest, plus those being read.

The bytes lie in the object store; this registry lives in the driver and holds the handles, since an
object is freed when its last handle goes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from safeladder.commit_points import reached
from safeladder.errors import FencedError
from safeladder.records import WeightManifest
from safeladder.weight_payload import WeightPayload


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedWeights:
    """One version: its manifest, and where its bytes are."""

    manifest: WeightManifest
    payload: WeightPayload


class WeightStore:
    """Commit point of a publication: a version exists once ``commit`` returned.

    >>> store = WeightStore(fence=3)
    >>> manifest = WeightManifest(version=1, fence=3, tensors=())
    >>> store.commit(PublishedWeights(manifest=manifest, payload=WeightPayload(chunks=("handle",))))
    >>> store.newest.manifest.version
    1
    """

    def __init__(self, fence: int) -> None:
        self._fence = fence
        self._versions: dict[int, PublishedWeights] = {}
        self._readers: Counter[int] = Counter()

    @property
    def newest(self) -> PublishedWeights | None:
        """The version that engines should load, or None before the first publication."""
        return self._versions[max(self._versions)] if self._versions else None

    @property
    def versions(self) -> list[int]:
        """Versions whose bytes are still held."""
        return sorted(self._versions)

    def commit(self, weights: PublishedWeights) -> None:
        """Make a version visible. Raises ``FencedError`` if an older driver published it and
        ``ValueError`` if it is not newer than what is there."""
        reached("publication.told")
        manifest = weights.manifest
        if manifest.fence < self._fence:
            raise FencedError(
                f"version {manifest.version} was published under fence {manifest.fence}, "
                f"this run is at {self._fence}"
            )
        newest = self.newest
        if newest is not None and manifest.version <= newest.manifest.version:
            raise ValueError(
                f"version {manifest.version} is not newer than {newest.manifest.version}"
            )
        self._versions[manifest.version] = weights
        reached("publication.committed")
        self._drop_unused()

    def acquire(self, version: int) -> PublishedWeights:
        """Hold a version while an engine reads it. Raises ``KeyError`` if it is gone."""
        weights = self._versions[version]
        self._readers[version] += 1
        return weights

    def release(self, version: int) -> None:
        """The reader is done, or dead."""
        self._readers[version] -= 1
        self._drop_unused()

    def _drop_unused(self) -> None:
        newest = max(self._versions, default=-1)
        for version in [v for v in self._versions if v != newest and self._readers[v] <= 0]:
            del self._versions[version]
            del self._readers[version]
