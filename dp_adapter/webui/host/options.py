"""The settings page "DP-Adapter", and what it says."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SECTION = ("dp_adapter", "DP-Adapter")
SCRIPT = "dp_adapter"  # the stem of scripts/dp_adapter.py, by which ADetailer knows us
LEVELS = ("debug", "info", "warning", "error")
_NAMES, _ONLY_SELECTED = "ad_script_names", "ad_only_selected_scripts"  # ADetailer's options


@dataclass(frozen=True)
class Option:
    """One line of the page.

    Attributes:
        flag: the command-line flag that gives its default, without ``dp_adapter_``.
        reload: whether it takes "Reload UI" to act.
        restricted: whether requests to the WebUI's API may not change it.
    """

    name: str
    default: str | int | bool
    label: str
    info: str
    bounds: tuple[int, int, int] | None = None
    choices: Sequence[str] = ()
    lines: int = 1
    flag: str = ""
    reload: bool = False
    restricted: bool = False

    @property
    def key(self) -> str:
        return f"dp_adapter_{self.name}"


OPTIONS: tuple[Option, ...] = (
    Option(
        "model_dirs",
        "",
        "Further folders with adapter models",
        "one per line; models/dp_adapter, models/ipadapter and models/ControlNet are always searched",
        lines=3,
        reload=True,
        restricted=True,
    ),
    Option(
        "checkpoints",
        2,
        "Adapter models kept in memory",
        "each takes 30 to 1700 MB of main memory; those used least recently go first",
        bounds=(1, 8, 1),
        flag="cache",
        reload=True,
    ),
    Option(
        "checkpoints_mb",
        4096,
        "Memory for adapters in MB",
        "adapters stay loaded for as long as their files fit",
        bounds=(256, 65536, 256),
        reload=True,
    ),
    Option(
        "photos_mb",
        256,
        "Memory for dropped photos in MB",
        "photos that were dropped into the panel are kept for as long as they fit",
        bounds=(16, 4096, 16),
        reload=True,
    ),
    Option("report", False, "Report the likeness of every picture", "as if 'Report' were ticked in every request"),
    Option("masks", False, "Hand back mask pictures", "as if 'Mask pictures' were ticked in every request"),
    Option("save_masks", False, "Save mask pictures beside the generated ones", "where they are handed back"),
    Option(
        "paste",
        True,
        "Pasted parameters restore the DP-Adapter panel",
        "parameters of pictures made without DP-Adapter disable it",
    ),
    Option("loglevel", "info", "Messages in the console", "", choices=LEVELS, flag="loglevel"),
)


@dataclass(frozen=True)
class WebUIOptions:
    """The page's values, as their lines say."""

    model_dirs: str
    checkpoints: int
    checkpoints_mb: int
    photos_mb: int
    report: bool
    masks: bool
    save_masks: bool
    paste: bool
    loglevel: str


def read() -> WebUIOptions:
    """What the page says; before the page exists, what flags and defaults say."""
    from modules import shared

    values = {option.name: getattr(shared.opts, option.key, default_of(option)) for option in OPTIONS}
    # Sliders give floats, and an edited config.json anything.
    return WebUIOptions(**{name: type(_DEFAULTS[name])(value) for name, value in values.items()})


_DEFAULTS: dict[str, Any] = {option.name: option.default for option in OPTIONS}


def default_of(option: Option) -> Any:
    """The default of an option: its flag's value where that is given."""
    from modules import shared

    flag = getattr(shared.cmd_opts, f"dp_adapter_{option.flag}", None) if option.flag else None
    return option.default if flag is None else flag


def register() -> None:
    """Adds the page; for the host's ``on_ui_settings``, which it calls before each build of its page."""
    from modules import shared

    for option in OPTIONS:
        info = shared.OptionInfo(
            default_of(option),
            option.label,
            *_choose_component(option),
            section=SECTION,
            restrict_api=option.restricted,
            onchange=set_up_log if option.name == "loglevel" else None,
        )
        info = info.info(option.info) if option.info else info
        shared.opts.add_option(option.key, info.needs_reload_ui() if option.reload else info)
    # It keeps no value: what is shown as its value is the button's caption.
    button = shared.OptionInfo(JOIN_CAPTION, "", _make_join_button, section=SECTION)
    button.do_not_save = True
    shared.opts.add_option("dp_adapter_join_adetailer", button)
    set_up_log()


def _choose_component(option: Option) -> tuple[Any, dict[str, Any] | None]:
    import gradio as gr

    if option.bounds is not None:
        low, high, step = option.bounds
        return gr.Slider, {"minimum": low, "maximum": high, "step": step}
    if option.choices:
        return gr.Dropdown, {"choices": list(option.choices)}
    return (gr.Textbox, {"lines": option.lines}) if option.lines > 1 else (None, None)


def set_up_log() -> None:
    """Makes the package's messages appear in the console at the chosen level."""
    log = logging.getLogger("dp_adapter")
    level = read().loglevel
    log.setLevel(level.upper() if level in LEVELS else logging.INFO)
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("DP-Adapter: %(message)s"))
        log.addHandler(handler)
        log.propagate = False


JOIN_CAPTION = "Keep the identity in ADetailer's pass"


def _make_join_button(value: str, elem_id: str, **_: Any) -> Any:
    import gradio as gr
    from modules import shared

    button = gr.Button(value=value, elem_id=elem_id)
    line = gr.HTML(elem_id=f"{elem_id}_said")
    # ADetailer's own box shows the old list, which "Apply settings" would write back.
    components: dict[str, Any] = shared.settings_components or {}
    box = components.get(_NAMES)

    def join() -> list[Any]:
        words = join_adetailer(shared.opts)
        return [words] if box is None else [words, getattr(shared.opts, _NAMES)]

    button.click(fn=join, inputs=[], outputs=[line] if box is None else [line, box])
    return button


def join_adetailer(opts: Any) -> str:
    """Adds us to the scripts that ADetailer runs in its pass over each face, and returns what happened in words.

    ADetailer (Bing-su/adetailer) takes file stems with commas between from its option ``ad_script_names``.
    """
    from modules import shared

    if _NAMES not in opts.data_labels:
        return "ADetailer is not installed."
    names = [name.strip() for name in str(getattr(opts, _NAMES)).split(",") if name.strip()]
    if SCRIPT in names or not getattr(opts, _ONLY_SELECTED, True):
        return "ADetailer keeps the identity already."
    try:
        opts.set(_NAMES, ",".join([*names, SCRIPT]))
        opts.save(shared.config_filename)
    except (AssertionError, OSError) as error:  # settings may be frozen by flags, or the file write-protected
        return f"ADetailer's settings cannot be changed: {error}."
    return f"ADetailer now keeps the identity: '{SCRIPT}' is in its list of scripts."
