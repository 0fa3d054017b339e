"""What was measured of each picture, on its way into that picture's infotext and into the answer's ``info``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dp_adapter.settings.result_sections import RESULT


class Measurements:
    """The ``DP-Adapter result …`` parameters of one job, a value per picture.

    The hosts write a picture's infotext right after its hooks, and index lists by its place in the batch instead of
    the job; so the parameters are functions until the job is done, and lists of all its pictures from then on.
    """

    def __init__(self, p: Any) -> None:
        for key in [key for key in p.extra_generation_params if key.startswith(RESULT)]:
            del p.extra_generation_params[key]  # of a job that this object did before
        self._p = p
        self._values: dict[str, dict[int, str]] = {}

    def add(self, picture: int, facts: Mapping[str, str]) -> None:
        """Facts about one picture of the job, counted from 0, by name."""
        for name, value in facts.items():
            self._values.setdefault(name, {})[picture] = value
            self._p.extra_generation_params[RESULT + name] = self._written(self._values[name])

    def settle(self, kept: list[int]) -> None:
        """The job is done: values as lists, of these of its pictures."""
        for name, values in self._values.items():
            self._p.extra_generation_params[RESULT + name] = [values.get(picture) for picture in kept]

    @staticmethod
    def _written(values: Mapping[int, str]) -> Any:
        def written(p: Any, index: int, use_main_prompt: bool, all_seeds: list[int], **_: Any) -> str | None:
            if use_main_prompt:  # of a grid
                return None
            first = 0 if all_seeds is p.all_seeds else p.iteration * p.batch_size
            return values.get(first + index)

        return written
