"""Event handlers that speak: errors end as words in the status line, never as a stack trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from dp_adapter.errors import DPAdapterError
from dp_adapter.webui.panel.gradio_compat import QUIET
from dp_adapter.webui.panel.messages import explain, log_unexpected, status_html

Updates = dict[Any, Any]
Handler = Callable[..., Updates]


@dataclass(frozen=True)
class EventBinder:
    """Binds handlers to events.

    A handler takes its inputs' values and returns updates by component; what it leaves out stays as it is.

    Attributes:
        line: the status line. A handler that does not mention it clears it.
    """

    line: Any

    def on(
        self,
        event: Any,
        handler: Handler,
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        keep_line: bool = False,
        **options: Any,
    ) -> Any:
        """Runs a handler at an event.

        Args:
            keep_line: leaves the line as it is, for drawing what follows from another event that may have spoken.
            options: gradio's own.
        """

        def run(*values: Any) -> Updates:
            return self._answer(handler, values, keep_line)

        return event(fn=run, inputs=list(inputs), outputs=[*outputs, self.line], **{**QUIET, **options})

    def _answer(self, handler: Handler, values: Sequence[Any], keep_line: bool = False) -> Updates:
        try:
            return {self.line: gr.update() if keep_line else "", **handler(*values)}
        except DPAdapterError as error:
            problem = explain(error)
        except Exception as error:  # whatever it is, the page must go on working
            problem = log_unexpected(error)
        gr.Warning(problem)
        return {self.line: status_html(problem, "error")}
