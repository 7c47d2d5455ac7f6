"""How a training step is compiled on a CPU: gradients and XLA, by what was measured."""

from typing import NamedTuple


class StepChoice(NamedTuple):
    """``fast``: traced inside ``fast_input_gradients``; ``xla``: ``jit_compile``."""

    fast: bool
    xla: bool


def best_step(*, depth: int) -> StepChoice:
    """The fastest way on a CPU to train the top ``depth`` residual blocks of ResNet50.

    Fast gradients without XLA wherever there are convolutions to train: in no cell did another
    way win by more than noise, whatever the input size, BatchNorm and oneDNN. Patches/s of
    processor time of two cores, batch 32, ``python -m benchmarks.fast_gradient``:

    ======  ====  =====  =========  =====  ==========  =====  =========
    oneDNN  px    depth  BatchNorm  stock  stock, XLA  fast   fast, XLA
    ======  ====  =====  =========  =====  ==========  =====  =========
    on      96    1      frozen     481    414         530    399
    on      96    3      frozen     132    134         144    142
    on      96    9      frozen     60     47          64     52
    on      64    1      frozen     610    51          845    52
    on      64    3      frozen     235    18          243    18
    off     96    1      frozen     132    415         470    419
    off     96    1      train      115    310         346    327
    off     96    3      frozen     34     119         132    121
    off     96    3      train      37     127         126    126
    ======  ====  =====  =========  =====  ==========  =====  =========

    oneDNN is on by default on processors with AVX512-VNNI and off on others; off is where the stock
    gradient is slow. At 64 px conv5 sees 2×2 px, less than its kernel, for which XLA has no fast
    convolution, in either direction.
    """
    return StepChoice(fast=depth > 0, xla=False)
