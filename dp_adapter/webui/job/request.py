"""The request of a job, and what the job itself has that the adapter cannot work with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dp_adapter.errors import SettingsError, WeightsError
from dp_adapter.settings import Settings
from dp_adapter.settings.result_sections import RESULT
from dp_adapter.webui.host import compat, options, shared_session
from dp_adapter.webui.job import inner_jobs
from dp_adapter.webui.job.stop import FROM_PANEL
from dp_adapter.webui.parameters import infotext_photos, xyz_grid

if TYPE_CHECKING:
    from dp_adapter.hosts.attach.sites import Base

_NO_MODEL = (None, "", "None", "none", "Use same checkpoint")


def read_request(p: Any, args: Sequence[object]) -> Settings:
    """The request of a job: the panel's or the API's, with what X/Y/Z says for this cell of its grid.

    Pictures in it are kept by the session, and ``photo:HASH`` stands for them from here on.

    Raises:
        SettingsError, PictureError: a field or a picture is refused.
    """
    settings = xyz_grid.settings_of(p, args)
    if not settings.enabled:
        return settings
    if inner_jobs.is_inner(p):
        settings = inner_jobs.request_inside(p, settings)
    else:
        always, report = options.read(), settings.report
        report = replace(report, enabled=report.enabled or always.report, masks=report.masks or always.masks)
        settings = replace(settings, report=report)
    return infotext_photos.keep_pictures(settings, shared_session.session().photos.keep)


def asks_for_nobody(p: Any, settings: Settings) -> bool:
    """Whether the panel is open and has no photo: opening it enables it. A request of the API has to name somebody."""
    if settings.references or not getattr(p, FROM_PANEL, False):
        return False
    try:  # one person may be in the model itself
        return not shared_session.known_models().facts(settings.model).personal
    except WeightsError:
        return True


def tell_nobody(p: Any) -> None:
    """Says below the picture, and in its parameters, that there was no photo."""
    p.extra_generation_params[f"{RESULT}identity"] = "none acted: there was no photo"
    if not inner_jobs.is_inner(p):
        p.comment("DP-Adapter: there was no photo, so the picture was made without the adapter. Drop one to use it.")


def require_own_unet() -> None:
    """Raises SettingsError where a replacement UNet runs instead of the model's."""
    replacement = compat.alternative_unet()
    if replacement:
        raise SettingsError(
            "enabled",
            f"the UNet '{replacement}' runs in place of the model's, and no adapter can reach into it",
            "Choose 'None' under Settings > Stable Diffusion > SD Unet, or disable DP-Adapter.",
        )


def require_hires_family(p: Any, settings: Settings, base: Base) -> None:
    """The hires pass may use a checkpoint of another family; better said now than after the first pass.

    Raises:
        SettingsError: it does, and the adapter should act in it.
    """
    name = getattr(p, "hr_checkpoint_name", None)
    if not getattr(p, "enable_hr", False) or name in _NO_MODEL or not settings.in_hires_pass().enabled:
        return
    if shared_session.base_of_file(name) not in (None, base):
        raise SettingsError(
            "hires.use",
            f"the hires checkpoint '{name}' is of another family than the adapter",
            "Use 'off', or choose another hires checkpoint.",
            "off",
        )


def refiner_note(p: Any) -> str:
    """A note where the job's refiner is a model that the adapter cannot reach; else empty."""
    start = getattr(p, "refiner_switch_at", None)
    if getattr(p, "refiner_checkpoint", None) in _NO_MODEL or start is None or start >= 1:
        return ""
    if not compat.refiner_leaves_model(p):
        return ""
    return "the refiner works without the identity: Forge changes the model without asking extensions."
