"""Groups: patches that must stay on one side of a split.

A group is a connected component of patches that share a key: the slide they were cut from or its
stand-in, their exact pixels, their set of near-duplicates. A further reason to keep patches
together is one more column of keys.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from src.data.components import connected_components
from src.data.near_duplicates import near_duplicate_sets
from src.data.split_table import SINGLE
from src.data.stain_groups import stain_clusters
from src.system.errors import ProjectError

GroupBy = Literal["auto", "slide", "stain", "patch"]

GROUPS_ARE = {
    "slide": "slides",
    "stain": "stain clusters, a stand-in for slides",
    "patch": "single patches",
}


class GroupingError(ProjectError):
    """These patches can't be grouped as asked."""


@dataclass(frozen=True)
class Grouping:
    """The group of each of n labelled patches, and what may be said of them.

    Attributes
    ----------
    group_by : slide, stain or patch
    names : (n,) str, equal for patches of one group
    near : (n,) Int64, key of the set of near-duplicates, null where there is none
    train_only : (n,) bool, True in every group that holds a patch of unknown slide, or a blank one
        where stain clusters stand in: nobody can tell which slide such a patch shares
    slide_disjoint : whether keeping groups whole keeps slides whole; needs every patch's slide
    n_slides : known slides
    n_slides_joined : slides (or their stand-ins) that share a group with another, by identical
        pixels or near-duplicates
    n_without_slide : patches of unknown slide
    n_without_stain : blank patches, where stain clusters are the groups
    n_duplicates : patches whose exact pixels another patch has too
    n_near_duplicates : patches with a near-duplicate, exact ones included
    """

    group_by: str
    names: NDArray[np.str_]
    near: pd.Series
    train_only: NDArray[np.bool_]
    slide_disjoint: bool
    n_slides: int
    n_slides_joined: int
    n_without_slide: int
    n_without_stain: int
    n_duplicates: int
    n_near_duplicates: int


def group_patches(patches: pd.DataFrame, *, group_by: GroupBy, seed: int) -> Grouping:
    """Group n labelled patches, whatever the order of the rows.

    A group bears the name of its slide (the first in alphabetical order where several are joined),
    ``stain:<cluster>``, or ``patch:<first id>`` where it has neither. Where stain clusters are the
    groups, patches that look alike are in the cluster of most of them.

    Parameters
    ----------
    patches : columns id (unique), slide (null where unknown), sha256, flags, phash and the moments
        of optical density
    group_by : auto is slide where any slide is known, else stain
    seed : of the stain clusters

    Raises
    ------
    GroupingError
        ``slide`` was asked for and no slide is known.
    """
    patches = patches.reset_index(drop=True)
    slides, sha256 = patches["slide"], patches["sha256"]
    chosen = _choose(group_by, slides)
    near = near_duplicate_sets(patches)
    look_alikes = pd.Series(connected_components([sha256, near]))
    units = _units(chosen, patches, look_alikes, seed)
    component = connected_components([units, look_alikes])
    units_of_component = units.groupby(component).nunique()
    slide_known = slides.notna().to_numpy(dtype=bool)
    unplaced = units.isna().to_numpy(dtype=bool) & (chosen != "patch")
    return Grouping(
        group_by=chosen,
        names=_component_names(component, patches["id"], units),
        near=near,
        train_only=_in_component_with(component, unplaced),
        slide_disjoint=chosen == "slide" and bool(slide_known.all()) and len(patches) > 0,
        n_slides=int(slides.nunique()),
        n_slides_joined=int(units_of_component[units_of_component > 1].sum()),
        n_without_slide=int((~slide_known).sum()),
        n_without_stain=int(unplaced.sum()) if chosen == "stain" else 0,
        n_duplicates=int(sha256.duplicated(keep=False).sum()),
        n_near_duplicates=int(near.notna().sum()),
    )


def _choose(group_by: GroupBy, slides: pd.Series) -> str:
    any_known = bool(slides.notna().any())
    if group_by == "auto":
        return "slide" if any_known else "stain"
    if group_by == "slide" and not any_known:
        raise GroupingError(
            "split.group_by is slide, but no patch's slide is known; name a table in "
            "ingest.slides, or set split.group_by to stain (a stand-in) or patch"
        )
    return group_by


def _units(group_by: str, patches: pd.DataFrame, look_alikes: pd.Series, seed: int) -> pd.Series:
    """(n,) str, what keeps patches together beside their pixels; null where nothing does.

    ``look_alikes`` (n,) are equal for patches that must stay together for their pixels' sake.
    """
    if group_by == "slide":
        return patches["slide"]
    nothing = pd.Series(None, index=patches.index, dtype="str")
    if group_by == "patch":
        return nothing
    clusters = stain_clusters(patches, seed=seed)
    together = _most_common_within(clusters, look_alikes).dropna()
    named = together.map(lambda number: f"stain:{number:03d}")
    return named.astype("str").reindex(patches.index)


def _most_common_within(clusters: pd.Series, look_alikes: pd.Series) -> pd.Series:
    """Each patch in the cluster of most of its look-alikes, the first of equally many.

    A cluster is only a stand-in: a patch may change it, where two slides would have to be joined.
    """
    of_several = look_alikes.duplicated(keep=False) & clusters.notna()
    commonest = (
        clusters[of_several].groupby(look_alikes[of_several]).agg(lambda found: found.mode()[0])
    )
    moved = look_alikes[of_several].map(commonest).astype(clusters.dtype)
    return moved.reindex(clusters.index).fillna(clusters)


def _component_names(
    component: NDArray[np.int64], ids: pd.Series, units: pd.Series
) -> NDArray[np.str_]:
    first_id = _first_of_component(component, ids)
    first_unit = _first_of_component(component, units.dropna())
    names = first_unit.reindex(first_id.index)
    named = names.where(names.notna(), SINGLE + first_id)
    return np.asarray(named.loc[component.tolist()], dtype=np.str_)


def _first_of_component(component: NDArray[np.int64], values: pd.Series) -> pd.Series:
    """Component → its first value in alphabetical order; ``values`` is indexed by position."""
    by_value = pd.DataFrame({"value": values, "component": component[values.index]})
    first = by_value.sort_values("value").drop_duplicates("component")
    return first.set_index("component")["value"].astype(object)


def _in_component_with(
    component: NDArray[np.int64], marked: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    return np.isin(component, component[marked])
