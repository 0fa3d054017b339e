"""The AlwaysOn script: hooks only. What they do stands in ``job.job``."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from modules import scripts

from dp_adapter.webui.host import compat, forge_widths, webui_hints
from dp_adapter.webui.job import stop_in_panel
from dp_adapter.webui.job.stop import FROM_PANEL, stop_on_error, warn

if TYPE_CHECKING:
    from dp_adapter.webui.job.job import Job

TITLE = "DP-Adapter"
_JOB = "dp_adapter_run"  # attribute of a job's processing object


def register() -> None:
    """Tells the WebUI what to call; it forgets all of it at "Reload UI"."""
    webui_hints.use_webui_hints()
    compat.on_event("cfg_denoiser", _before_step)
    compat.on_event("before_ui", _before_ui)
    compat.on_event("ui_settings", _settings_page)
    compat.on_event("app_started", _routes)
    compat.on_event("after_component", _after_component)
    compat.on_event("script_unloaded", _forget)
    forge_widths.register()


class DPAdapterScript(scripts.Script):
    """Keeps nothing of a job or a panel: the host builds several panels and runs several jobs with one instance."""

    setup_for_ui_only = True  # of ``setup``; the hosts' own name

    def title(self) -> str:
        return TITLE

    def show(self, is_img2img: bool) -> object:
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        if compat.wants_defaults_only():
            from dp_adapter.settings import Settings
            from dp_adapter.webui.panel.widget_values import args_of

            return [SimpleNamespace(value=value) for value in args_of(Settings(enabled=False))]
        from dp_adapter.webui.host import options, shared_session
        from dp_adapter.webui.panel import build_panel
        from dp_adapter.webui.parameters.paste import NOTE, Paster

        built = build_panel.build(self, is_img2img)
        paster = Paster(shared_session.session, lambda: options.read().paste, warn)
        self.infotext_fields = paster.fields({**built.by_name, NOTE: built.status})
        self.paste_field_names = [restore for _, restore in self.infotext_fields]
        return built.components

    def setup(self, p: Any, *args: Any) -> None:
        """Once per job of the panel, before the host does anything with it."""
        stop_in_panel.return_stops(p.scripts)

    def process(self, p: Any, *args: Any) -> None:
        """Once per job, before anything is sampled."""
        _end(p)
        # Off costs nothing, not even an import.
        if _off(args) and not hasattr(p, "dp_adapter_overrides"):
            return
        setattr(p, FROM_PANEL, not getattr(p, "is_api", False) and args[:1] in ((None,), ("",)))
        with stop_on_error(p):
            from dp_adapter.webui.job.job import Job
            from dp_adapter.webui.job.request import asks_for_nobody, read_request, tell_nobody
            from dp_adapter.webui.parameters.describe_job import forget

            forget(p)
            settings = read_request(p, args)
            if settings.enabled and asks_for_nobody(p, settings):
                tell_nobody(p)
            elif settings.enabled:
                setattr(p, _JOB, Job(p, settings))

    def process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        if job := _job_of(p):
            with stop_on_error(p):
                job.before_batch(int(kwargs["batch_number"]))

    def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
        if job := _job_of(p):
            from dp_adapter.core.types import Grid

            with stop_on_error(p):
                x = kwargs["x"]
                job.before_pass(Grid(*x.shape[-2:]), len(x))

    def postprocess_image(self, p: Any, pp: Any, *args: Any) -> None:
        if job := _job_of(p):
            job.before_composite(pp)

    def postprocess_image_after_composite(self, p: Any, pp: Any, *args: Any) -> None:
        if job := _job_of(p):
            job.finished.choose(pp)

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
        if job := _job_of(p):
            if job.is_of(p):
                job.hand_back(processed)
            _end(p)


def _off(args: Sequence[Any]) -> bool:
    """Whether there is no request of the API's and the panel is off or was never filled; see ``widget_values.ARGS``."""
    request, enabled = [*args, None, None][:2]
    return (request == "" and (enabled is None or enabled is False)) or all(one is None for one in args)


def _job_of(p: Any) -> Job | None:
    return getattr(p, _JOB, None)


def _end(p: Any) -> None:
    """Forgets the job that this processing object did before: Loopback and others use one several times."""
    job: Job | None = p.__dict__.pop(_JOB, None)
    if job is not None and job.is_of(p):
        job.close()


def _before_step(params: Any) -> None:
    if job := _job_of(params.denoiser.p):
        job.before_step(params)


def _before_ui() -> None:
    from dp_adapter.webui.panel.host_components import HOST
    from dp_adapter.webui.parameters import xyz_grid

    HOST.start_page()
    xyz_grid.register()


def _settings_page() -> None:
    from dp_adapter.webui.host import options

    options.register()


def _routes(_demo: Any, app: Any) -> None:
    from dp_adapter.webui.api import routes

    routes.add_routes(app)


def _after_component(component: Any, **kwargs: Any) -> None:
    from dp_adapter.webui.panel.host_components import HOST

    HOST.remember(component, **kwargs)
    # The host's button that unloads the checkpoint unloads ours, too.
    if kwargs.get("elem_id") == "sett_unload_sd_model":
        component.click(fn=_release, inputs=[], outputs=[])


def _release() -> None:
    from dp_adapter.webui.host import shared_session

    shared_session.release()


def _forget() -> None:
    from dp_adapter.webui.host import shared_session

    shared_session.forget()
