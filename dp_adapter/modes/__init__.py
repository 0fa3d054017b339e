"""Edit modes as data: what a mode sets where the user left a field automatic, and which words it adds."""

from dp_adapter.modes.describe import describe_mode, mode_parameters
from dp_adapter.modes.expressions import EXPRESSIONS
from dp_adapter.modes.mode import Mode, ModeWords, ResolvedMode
from dp_adapter.modes.prompts import PromptStage, add_words, split_stages
from dp_adapter.modes.resolve import (
    ModeFacts,
    describe_effect,
    drop_unread_fields,
    fill_in,
    needs_reference_age,
    resolve_mode,
)
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
    "add_words",
    "describe_effect",
    "describe_mode",
    "drop_unread_fields",
    "fill_in",
    "mode_parameters",
    "needs_reference_age",
    "resolve_mode",
    "split_stages",
]
