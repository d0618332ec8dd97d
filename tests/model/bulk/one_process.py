"""The workers' code without Ray: blocks through their Arrow form, one after the other, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from model.bulk.block_fields import Fields, from_table, to_table


class OneProcess:
    """Takes the place of Ray, not of anything of ours."""

    num_cpus = 1

    def run(
        self,
        worker: Callable[..., Any],
        arguments: Mapping[str, Any],
        blocks: Sequence[Fields],
        *,
        threads: int = 1,
    ) -> Iterator[dict[str, Any]]:
        work = worker(**arguments)
        for number, block in enumerate(blocks):
            for fields in work(*from_table(to_table(block))):
                yield from from_table(to_table({"block": number, **fields}))
