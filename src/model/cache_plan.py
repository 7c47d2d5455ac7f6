"""How much of a split's activations is kept on disk: one rule, numbers in, a plan out.

The boundary is always the deepest frozen one: everything below it is computed once, and in a
residual network it is also the smallest, because channels double where height and width halve.

Keeping an activation costs a write (about a hundredth of computing it) and pays from its second
use on, in this run or in a later one with the same trunk. So all is kept where all fits. Where it
doesn't, a run of ``epochs`` passes meets each view of a patch ``epochs / views`` times: if that is
at most once, nothing kept would be read again and nothing is kept; otherwise as many blocks as fit
are kept, each in all its views, and the rest is computed anew in every epoch.
"""

from dataclasses import dataclass

from src.data.batches import VIEW_BLOCK, n_batches


@dataclass(frozen=True)
class CachePlan:
    """Which blocks of a split are kept.

    Attributes
    ----------
    n_blocks : blocks of 64 patches the split has
    n_kept : the first so many of them are kept
    n_views : views that the run will meet
    n_bytes : disk that takes
    """

    n_blocks: int
    n_kept: int
    n_views: int
    n_bytes: int

    @property
    def reason(self) -> str | None:
        """Why not all is kept, for the log; None where all is."""
        if self.n_kept == self.n_blocks:
            return None
        share = 100 * self.n_kept / self.n_blocks
        return (
            f"{share:.0f} % of the activations are kept, the rest is computed in every epoch; "
            "raise cache.max_gb to keep more"
        )


def plan_cache(
    *, n_patches: int, patch_bytes: int, views: int, epochs: int, max_bytes: int
) -> CachePlan:
    """Decide for a split of ``n_patches``, each ``patch_bytes`` a view, within ``max_bytes``."""
    n_blocks = n_batches(n_patches, VIEW_BLOCK)
    n_views = min(views, epochs)
    block_bytes = VIEW_BLOCK * patch_bytes * n_views
    n_kept = min(n_blocks, max_bytes // block_bytes)
    if n_kept < n_blocks and epochs <= views:
        n_kept = 0
    return CachePlan(n_blocks, n_kept, n_views, n_kept * block_bytes)
