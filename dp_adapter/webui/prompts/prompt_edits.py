"""A mode's words and the persons' in what is sampled, while pictures tell the prompts that the user wrote.

The hosts make all prompts of a job, styles included, before ``process``. Of these lists each batch gets its own,
read for LoRAs, before ``process_batch``; what is written into pictures and ``params.txt`` comes of the lists later. So
the words stand in the lists until a batch has its prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dp_adapter import naming
from dp_adapter.settings.result_sections import RESULT

if TYPE_CHECKING:
    from dp_adapter.core.text.text_side import PromptPerson
    from dp_adapter.session import Prepared
    from dp_adapter.settings import Settings

# Prompts and negative prompts of all pictures, in the first pass and in the hires pass; without "all_" a batch's.
_ALL = (("all_prompts", "all_negative_prompts"), ("all_hr_prompts", "all_hr_negative_prompts"))
Pair = tuple[str, str]


def edit(pair: Pair, prepared: Prepared) -> Pair:
    """Prompt and negative prompt with the mode's words and the persons'; as they are where nobody acts."""
    if prepared.mode is not None and prepared.mode.words:
        from dp_adapter.modes import add_words

        pair = add_words(*pair, prepared.mode.words)
    if prepared.prompt_persons:
        from dp_adapter.hosts.prompts.prompt_persons import repeated

        pair = repeated(pair[0], prepared.prompt_persons), pair[1]
    return pair


def with_prompt_words(p: Any, settings: Settings, people: Sequence[PromptPerson]) -> Settings:
    """The request with the words that triggers in a job's prompts say are a person's ("a man and a woman img").

    So they are known when the triggers are taken out.
    """
    from dp_adapter.hosts.prompts import prompt_persons

    names = ("all_prompts", "all_hr_prompts")
    prompts: dict[str, None] = dict.fromkeys(text for name in names for text in getattr(p, name, None) or ())
    changes: dict[str, str] = {}
    for before, now in zip(people, prompt_persons.name_persons(tuple(prompts), people), strict=True):
        if now.words != before.words:
            mine = [n for n, one in enumerate(settings.references) if one.identity == now.person]
            changes[f"references[{mine[0]}].words"] = now.words
    return settings.with_fields(changes)


@dataclass(frozen=True)
class PromptEdits:
    """The prompts of a job before and after words came into them, by the name of their list."""

    own: dict[str, list[str]]
    made: dict[str, list[str]]

    @classmethod
    def put(cls, p: Any, passes: Sequence[Prepared]) -> PromptEdits:
        """Puts the words into all prompts of a job, and tells of them in its parameters. For ``process``.

        Args:
            passes: what the first pass is made with, and the hires pass.
        """
        edits = cls({}, {})
        for prepared, names in zip(passes, _ALL, strict=True):
            lists = [getattr(p, name, None) for name in names]
            if not all(lists):  # None without a hires pass
                continue
            pairs = [edit(pair, prepared) for pair in zip(*lists, strict=True)]
            for name, own, made in zip(names, lists, zip(*pairs, strict=True), strict=True):
                if own is not None and list(made) != list(own):
                    edits.own[name], edits.made[name] = list(own), list(made)
                    setattr(p, name, list(made))
        for prepared in reversed(passes):
            p.extra_generation_params.update(_parameters(p, prepared))
        return edits

    def take_back(self, p: Any, batch: int, acts: bool) -> None:
        """Gives the pictures of a batch that is about to be sampled their own prompts back. For ``process_batch``.

        Args:
            batch: its number, from 0.
            acts: whether anybody acts in it, which may only be known now; otherwise it is sampled without the words.
        """
        place = slice(batch * p.batch_size, (batch + 1) * p.batch_size)
        for name, own in self.own.items():
            now, made = list(getattr(p, name)), self.made[name]
            kept = zip(now[place], own[place], made[place], strict=True)
            now[place] = [before if text == words else text for text, before, words in kept]
            setattr(p, name, now)  # what another script has written since then stays
            if not acts:
                _sample(p, name.removeprefix("all_"), now[place])
        if not acts:
            for key in [key for key in p.extra_generation_params if key.startswith(RESULT) and key.endswith("words")]:
                del p.extra_generation_params[key]


def _sample(p: Any, name: str, prompts: list[str]) -> None:
    """Prompts of a batch in place of those that the host has read already."""
    from modules import extra_networks

    setattr(p, name, prompts if "negative" in name else extra_networks.parse_prompts(prompts)[0])


def _parameters(p: Any, prepared: Prepared) -> dict[str, str]:
    """What came into the prompts, as parameters."""
    parameters: dict[str, str] = {}
    if prepared.mode is not None and prepared.mode.words:
        from dp_adapter.modes import mode_parameters

        parameters |= mode_parameters(prepared.mode.words)
    if prepared.prompt_persons:
        from dp_adapter.hosts.prompts.prompt_persons import words_in

        people = prepared.prompt_persons
        first: list[str] = getattr(p, "all_prompts", None) or [""]
        times = {one.person: f" x{one.tokens}" if one.tokens > 1 else "" for one in people}
        words = [
            f"{word}{times[who]} for {naming.person(who)}" for who, word in sorted(words_in(first[0], people).items())
        ]
        parameters |= {f"{RESULT}person words": ", ".join(words)} if words else {}
    return parameters
