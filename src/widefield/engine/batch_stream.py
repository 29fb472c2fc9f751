"""The rest of an epoch's batches, drawn as an uninterrupted run would have drawn them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from widefield._core.errors import RunError
from widefield.engine.random_state import restore_rng_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from widefield.engine.protocol import Loader


def stream(
    loader: Loader,
    epoch: int,
    start: int,
    rng: Mapping[str, Tensor] | None,
    failed: Callable[[RunError, int | None], RunError],
) -> Iterator[Any]:
    """Yield the batches of an epoch.

    Args:
        loader: Of this rank.
        epoch: Index of the epoch, from 0.
        start: Index of the first batch.
        rng: Random state at the checkpoint of a resumed run, which training goes on with.
        failed: Makes the error to raise of one that the loader raises and the index of the batch that did not come,
            None if the random state is not yet that of the run.

    Raises:
        RunError: If the loader fails or ends before its length.
    """
    length = len(loader)
    if rng is not None and start == 0:
        restore_rng_state(rng)
    source = iter(loader.epoch(epoch, start)) if start < length else iter(())
    try:
        for index in range(start, length):
            try:
                batch = next(source)
            except StopIteration:
                raise RunError(
                    f"The loader ended after {index} of the {length} batches that its length promises in epoch "
                    f"{epoch + 1}: mend its __len__."
                ) from None
            except RunError as error:
                raise failed(error, index if rng is None else None) from error
            if rng is not None:
                # Within an epoch the iterator has drawn its own seeds before the checkpoint, not after it.
                restore_rng_state(rng)
                rng = None
            yield batch
    finally:
        close = getattr(source, "close", None)
        if close is not None:
            close()
