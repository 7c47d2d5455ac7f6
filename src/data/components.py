"""Connected components: what is joined, directly or through others."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def components_of_pairs(pairs: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Number, (n,), of the component of each of n nodes, joined by ``pairs`` (m, 2) of them."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components as components_of

    ones = np.ones(len(pairs), dtype=np.int8)
    edges = coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    _, component = components_of(edges, directed=False)
    return np.asarray(component, dtype=np.int64)


def connected_components(keys: Sequence[pd.Series]) -> NDArray[np.int64]:
    """Number, for each of n rows, the component it is in; rows with an equal key are connected.

    Each series of ``keys`` is (n,); a null key connects nothing, and equal values in two different
    series are not the same key.
    """
    n = len(keys[0])
    pairs, n_nodes = [], n
    for key in keys:
        codes, values = pd.factorize(key)
        has_key = np.flatnonzero(codes >= 0)
        pairs.append(np.stack([has_key, codes[has_key] + n_nodes], axis=1))
        n_nodes += len(values)
    return components_of_pairs(np.concatenate(pairs), n_nodes)[:n]
