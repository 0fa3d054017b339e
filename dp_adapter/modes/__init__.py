"""Edit modes as data: what a mode sets where the user left a field automatic, and which words it adds."""

from dp_adapter.modes.describe import described, mode_parameters
from dp_adapter.modes.expressions import EXPRESSIONS
from dp_adapter.modes.mode import Mode, ModeWords
from dp_adapter.modes.prompts import PromptStage, stages, with_words
from dp_adapter.modes.resolve import ModeFacts, ResolvedMode, before, described_by, filled, needs_reference_age, resolve
from dp_adapter.modes.table import TABLE
from dp_adapter.modes.user_modes import Modes

__all__ = [
    "EXPRESSIONS",
    "TABLE",
    "Mode",
    "ModeFacts",
    "ModeWords",
    "Modes",
    "PromptStage",
    "ResolvedMode",
    "before",
    "described",
    "described_by",
    "filled",
    "mode_parameters",
    "needs_reference_age",
    "resolve",
    "stages",
    "with_words",
]
