"""Edit modes as data: what a mode sets where the user left a field automatic, and which words it adds."""

from dp_adapter.edits.expressions import EXPRESSIONS
from dp_adapter.edits.mode import Mode, Words
from dp_adapter.edits.own import Modes
from dp_adapter.edits.prompts import Stage, stages, with_words
from dp_adapter.edits.resolve import Edit, Facts, before, described_by, filled, needs_reference_age, resolve
from dp_adapter.edits.table import TABLE
from dp_adapter.edits.told import described, mode_parameters

__all__ = [
    "EXPRESSIONS",
    "TABLE",
    "Edit",
    "Facts",
    "Mode",
    "Modes",
    "Stage",
    "Words",
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
