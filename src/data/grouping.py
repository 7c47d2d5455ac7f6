"""Groups: patches that must stay on one side of a split.

A group is a connected component of patches that share a key: the slide they were cut from, or
their exact pixels. A further reason to keep patches together is one more column of keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray


@dataclass(frozen=True)
class Grouping:
    """The group of each of n labelled patches, and what may be said of them.

    Attributes
    ----------
    names : (n,) str, equal for patches of one group
    train_only : (n,) bool, True in every group that holds a patch of unknown slide while other
        slides are known: nobody can tell which slide such a patch shares
    slide_disjoint : whether keeping groups whole keeps slides whole; needs every patch's slide
    n_slides : known slides
    n_slides_joined : slides that share a group with another slide, by identical pixels
    n_without_slide : patches of unknown slide
    n_duplicates : patches whose exact pixels another patch has too
    """

    names: NDArray[np.str_]
    train_only: NDArray[np.bool_]
    slide_disjoint: bool
    n_slides: int
    n_slides_joined: int
    n_without_slide: int
    n_duplicates: int


def group_patches(ids: pd.Series, slides: pd.Series, sha256: pd.Series) -> Grouping:
    """Group n patches by slide and by identical pixels, whatever the order of the rows.

    A group bears the name of its slide (the first in alphabetical order where identical pixels
    join several), or ``patch:<first id>`` where no slide is known.

    Parameters
    ----------
    ids : (n,) unique patch ids
    slides : (n,) slide names, null where unknown
    sha256 : (n,) digests of the pixels
    """
    ids, slides, sha256 = (column.reset_index(drop=True) for column in (ids, slides, sha256))
    component = connected_components([slides, sha256])
    slide_known = slides.notna().to_numpy(dtype=bool)
    names = _component_names(component, ids, slides)
    slides_of_component = slides.groupby(component).nunique()
    return Grouping(
        names=names,
        train_only=_in_component_with(component, ~slide_known & slide_known.any()),
        slide_disjoint=bool(slide_known.all()) and len(ids) > 0,
        n_slides=int(slides.nunique()),
        n_slides_joined=int(slides_of_component[slides_of_component > 1].sum()),
        n_without_slide=int((~slide_known).sum()),
        n_duplicates=int(sha256.duplicated(keep=False).sum()),
    )


def connected_components(keys: Sequence[pd.Series]) -> NDArray[np.int64]:
    """Number, for each of n rows, the component it is in; rows with an equal key are connected.

    Each series of ``keys`` is (n,); a null key connects nothing, and equal values in two different
    series are not the same key.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components as components_of

    n = len(keys[0])
    rows, nodes, n_nodes = [], [], n
    for key in keys:
        codes, values = pd.factorize(key)
        has_key = np.flatnonzero(codes >= 0)
        rows.append(has_key)
        nodes.append(codes[has_key] + n_nodes)
        n_nodes += len(values)
    row, node = np.concatenate(rows), np.concatenate(nodes)
    edges = coo_array((np.ones(len(row), dtype=np.int8), (row, node)), shape=(n_nodes, n_nodes))
    _, component = components_of(edges, directed=False)
    return np.asarray(component[:n], dtype=np.int64)


def _component_names(
    component: NDArray[np.int64], ids: pd.Series, slides: pd.Series
) -> NDArray[np.str_]:
    first_id = _first_of_component(component, ids)
    first_slide = _first_of_component(component, slides.dropna())
    names = first_slide.reindex(first_id.index)
    named = names.where(names.notna(), "patch:" + first_id)
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
