"""How much of a split's activations is kept on disk: one rule, numbers in, a plan out.

The boundary is always the deepest frozen one. It saves the most work of all, and it is the smallest
on disk: channels double where height and width halve (a test holds both for every backbone and
depth). So no other boundary can be the better choice, and what is left to decide is how many blocks
of 64 patches are kept there.

A run of ``passes`` passes meets each of ``n_views = min(views, passes)`` views, so without a cache
the trunk runs ``passes`` times over a patch that is kept, and with it ``n_views`` times. Keeping
the share s of the blocks saves s · (1 - n_views / passes) of the trunk's work in this run.

1. All is kept where all fits: writing costs about a hundredth of computing, and later runs with
   the same trunk (another trial, another head) save everything.
2. Otherwise as many blocks are kept, each in all its views, as fit, if that saves at least
   :data:`LEAST_SAVING` of the trunk's work in this run; the rest is computed in every pass.
3. Otherwise nothing is kept: the disk would fill up for nothing.
"""

from dataclasses import dataclass

from src.data.batches import VIEW_BLOCK, n_batches

LEAST_SAVING = 0.1
"""Share of the trunk's work that part of a split must save in a run to be worth its disk."""

_PAGE_BYTES = 4096  # of a file system: a block takes whole ones, and at most one to find it by


@dataclass(frozen=True)
class CachePlan:
    """Which blocks of a split are kept, and why.

    Attributes
    ----------
    n_blocks : blocks of 64 patches the split has
    n_kept : the first so many of them are kept
    n_bytes : disk that takes at most
    saving : share of the trunk's work that this saves in the run, 0 to 1
    reason : for the log; None where all is kept
    """

    n_blocks: int
    n_kept: int
    n_bytes: int
    saving: float
    reason: str | None


def plan_cache(
    *, n_patches: int, patch_bytes: int, views: int, passes: int, max_bytes: int
) -> CachePlan:
    """Decide for a split of ``n_patches``, each ``patch_bytes`` a view, within ``max_bytes``.

    ``max_bytes`` below 0 is 0.
    """
    n_blocks = n_batches(n_patches, VIEW_BLOCK)
    n_views = min(views, passes)
    whole_bytes = n_views * block_bytes(patch_bytes)  # a block in all its views
    n_fit = min(n_blocks, max(0, max_bytes) // whole_bytes)
    share = n_fit / n_blocks
    saving = share * (1 - n_views / passes)
    if n_fit == n_blocks:
        return CachePlan(n_blocks, n_blocks, n_blocks * whole_bytes, saving, None)
    needed = f"all would take {n_blocks * whole_bytes / 1e9:,.1f} GB (cache.max_gb)"
    if saving < LEAST_SAVING:
        reason = (
            f"no activations are kept: the {100 * share:.0f} % that fit would save "
            f"{100 * saving:.0f} % of the frozen layers' work; {needed}"
        )
        return CachePlan(n_blocks, 0, 0, 0.0, reason)
    reason = (
        f"{100 * share:.0f} % of the activations are kept, which saves {100 * saving:.0f} % of the "
        f"frozen layers' work; {needed}"
    )
    return CachePlan(n_blocks, n_fit, n_fit * whole_bytes, saving, reason)


def block_bytes(patch_bytes: int) -> int:
    """Disk that a block of 64 patches takes in one view: whole pages, and one of the file's map."""
    pages = -(-VIEW_BLOCK * patch_bytes // _PAGE_BYTES)
    return (pages + 1) * _PAGE_BYTES
