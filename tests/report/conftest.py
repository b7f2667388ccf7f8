"""Pages with fewer resamples, for tests that look at a page and not at its numbers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from caltune.metrics import compare, summarise
from caltune.report import change, page


@pytest.fixture(scope="module")
def few_draws() -> Iterator[None]:
    """Pages of this module take 40 resamples where a user's take 1,000."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "summarise", partial(summarise, draws=40))
        patch.setattr(page, "compare", partial(compare, draws=40))
        patch.setattr(change, "compare", partial(compare, draws=40))
        yield
