"""What a host needs for one generation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from dp_adapter.core.injection import Injection
from dp_adapter.core.text.text_side import PromptPerson
from dp_adapter.modes import ResolvedMode
from dp_adapter.session.assembly.identity_net import Net
from dp_adapter.session.explanation import Explanation
from dp_adapter.session.regions.tracker import Tracker
from dp_adapter.weights.duplicate_lora import is_same


@dataclass(frozen=True)
class Prepared:
    """What a host needs, and what is told to the user.

    Attributes:
        tracker: moves regions while the picture forms; None where all of them stay.
        mode: the mode at work, whose words go into the prompts; None where the adapter is off, and without words
            where nobody acts.
        net: InstantID's IdentityNet, for hosts that have a ControlNet; None for none.
        prompt_persons: who acts through a word, and how prompts have to speak of them; nobody where nobody acts.
    """

    injection: Injection
    explanation: Explanation
    tracker: Tracker | None = None
    mode: ResolvedMode | None = None
    net: Net | None = None
    prompt_persons: tuple[PromptPerson, ...] = ()

    def without_lora(self, path: Path) -> Prepared | None:
        """The same without the checkpoint's own LoRA, if a file that the host applies holds it too; else None."""
        if not is_same(path, [entry for entry, _ in self.injection.lora]):
            return None
        injection = replace(self.injection, lora=())
        return replace(self, injection=injection, explanation=replace(self.explanation, lora=0.0))
