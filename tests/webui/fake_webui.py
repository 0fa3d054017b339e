"""The one fake of the WebUIs: their ``modules`` package in memory, and a small page that drives a panel.

``installed()`` needs no gradio; the page does, and works in the versions of both families of WebUIs.
"""

from __future__ import annotations

import json
import re
import sys
import types
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dp_adapter import hints

ALWAYS_VISIBLE = object()


class Script:
    """What an extension's script inherits."""

    is_img2img = False
    is_txt2img = True
    infotext_fields: Any = None
    paste_field_names: Any = None

    def title(self) -> str:
        raise NotImplementedError

    def show(self, is_img2img: bool) -> object:
        return True

    def elem_id(self, item: str) -> str:
        """Different in the two tabs; letters, digits and underscores of the title."""
        tab = "img2img" if self.is_img2img else "txt2img"
        title = re.sub(r"\W", "", self.title().lower().replace(" ", "_"))
        return f"script_{tab}_{title}_{item}"


class Callbacks:
    """``modules.script_callbacks``: keeps what is registered, and calls it when told."""

    def __init__(self) -> None:
        self.registered: dict[str, list[Callable[..., Any]]] = {}

    def __getattr__(self, name: str) -> Callable[..., None]:
        if not name.startswith("on_"):
            raise AttributeError(name)

        def register(callback: Callable[..., Any], **_: Any) -> None:
            self.registered.setdefault(name.removeprefix("on_"), []).append(callback)

        return register

    def fire(self, event: str, *args: Any, **kwargs: Any) -> None:
        for callback in self.registered.get(event, []):
            callback(*args, **kwargs)


def quote(text: object) -> str:
    """As infotext does: JSON where a reader would stumble."""
    plain = str(text)
    return json.dumps(plain, ensure_ascii=False) if any(mark in plain for mark in ",\n:") else plain


class PasteField(tuple[Any, ...]):
    """(component, key or function), with the name the API knows it by."""

    def __new__(cls, component: Any, target: Any, *, api: str | None = None) -> PasteField:
        return super().__new__(cls, (component, target))

    def __init__(self, component: Any, target: Any, *, api: str | None = None) -> None:
        self.component, self.api = component, api
        self.label = target if isinstance(target, str) else None
        self.function = target if callable(target) else None


def _ui_components() -> types.ModuleType:
    """Needs gradio, so it is made only when a panel is built."""
    import gradio as gr

    try:
        from gradio import component_meta
    except ImportError:
        pass
    else:
        # gradio 4 would write files beside this one
        component_meta.create_or_modify_pyi = _nothing

    class Accordion(gr.Checkbox):
        """An accordion whose state is an input; here a plain checkbox above a column."""

        head: Any
        body: Any

        def extra(self) -> Any:
            return self.head

        def __enter__(self) -> Any:
            self.body.__enter__()
            return self

        def __exit__(self, *error: object) -> None:
            self.body.__exit__(*error)

        def get_block_name(self) -> str:
            return "checkbox"

    def accordion(value: bool, *, label: str, elem_id: str) -> Any:
        made = Accordion(value=value, label=label, elem_id=f"{elem_id}-checkbox")
        made.head = gr.Row(elem_id=f"{elem_id}-extra")
        made.body = gr.Column(elem_id=elem_id)
        return made

    def tool_button(value: str = "", **options: Any) -> Any:
        return gr.Button(value=value, size="sm", elem_classes=["tool"], **options)

    return _module("modules.ui_components", InputAccordion=accordion, ToolButton=tool_button)


def _module(name: str, **content: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(content)
    return module


def _nothing(*_: object) -> None:
    pass


class _LazyComponents(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        vars(self).update(vars(_ui_components()))
        return vars(self)[name]


def _device_for(_task: str) -> str:
    return "cpu"


def host_modules(models: Path) -> dict[str, types.ModuleType]:
    """Fresh ``modules.*`` whose model folder is ``models``."""
    callbacks = Callbacks()
    script_callbacks = _module(
        "modules.script_callbacks", fire=callbacks.fire, registered=callbacks.registered, callback_map={}
    )
    script_callbacks.__getattr__ = callbacks.__getattr__  # type: ignore[method-assign]
    content = [
        _module(
            "modules.scripts",
            Script=Script,
            AlwaysVisible=ALWAYS_VISIBLE,
            scripts_data=[],
            basedir=str,
            scripts_txt2img=SimpleNamespace(alwayson_scripts=[]),
            scripts_img2img=SimpleNamespace(alwayson_scripts=[]),
        ),
        script_callbacks,
        _module("modules.paths", models_path=str(models), script_path=str(models.parent)),
        _module(
            "modules.shared",
            opts=SimpleNamespace(data={}),
            cmd_opts=SimpleNamespace(),
            state=SimpleNamespace(interrupted=False, skipped=False, job=""),
            sd_model=None,
        ),
        _module("modules.devices", get_device_for=_device_for),
        _module(
            "modules.sd_models",
            model_data=SimpleNamespace(sd_model=None),
            get_closet_checkpoint_match=lambda _name: None,  # pyright: ignore[reportUnknownLambdaType]
        ),
        _module("modules.sd_unet", current_unet=None),
        _module("modules.infotext_utils", quote=quote, PasteField=PasteField),
        _module("modules.processing", StableDiffusionProcessing=type("StableDiffusionProcessing", (), {})),
        _LazyComponents("modules.ui_components"),
    ]
    package = _module("modules", __path__=[])
    for module in content:
        setattr(package, module.__name__.split(".")[-1], module)
    return {"modules": package, **{module.__name__: module for module in content}}


@contextmanager
def installed(models: Path) -> Generator[dict[str, types.ModuleType]]:
    """The fake host in ``sys.modules``, and what was there before afterwards."""
    fake = host_modules(models)
    before = {name: sys.modules.get(name) for name in fake}
    sys.modules.update(fake)
    try:
        yield fake
    finally:
        hints.use(None)  # the script has said that its user is one of a WebUI
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


# The page.

TOOL_STYLE = "button.tool { max-width: 2.6em; min-width: 2.6em !important; height: 2.4em; padding: 0; }"


class PanelScript(Script):
    """Only the panel of the extension's script; the rest of it is not at stake here."""

    def __init__(self) -> None:
        self.panels: list[Any] = []

    def title(self) -> str:
        return "DP-Adapter"

    def ui(self, is_img2img: bool) -> list[Any]:
        from dp_adapter.webui.panel import build_panel

        self.panels.append(build_panel.build(self, is_img2img))
        return self.panels[-1].components


def page(style: str = "") -> Any:
    """A page with both tabs. "Generate" shows the request that the script args make, or the words of its refusal."""
    import gradio as gr

    from dp_adapter.webui.panel.host_components import HOST

    def host(component: Any) -> Any:
        HOST.remember(component, elem_id=component.elem_id)
        return component

    with gr.Blocks(css=style + TOOL_STYLE) as demo, gr.Tabs():
        for tab in ("txt2img", "img2img"):
            with gr.Tab(tab), gr.Row():
                with gr.Column(elem_id=f"{tab}_settings"):
                    gr.Textbox(label="Prompt", elem_id=f"{tab}_prompt")
                    for side in ("width", "height"):
                        host(gr.Slider(64, 2048, 640, step=8, label=side.title(), elem_id=f"{tab}_{side}"))
                    if tab == "img2img":
                        host(gr.Image(type="pil", elem_id="img2img_image"))
                    script = PanelScript()
                    script.is_img2img, script.is_txt2img = tab == "img2img", tab == "txt2img"
                    args = script.ui(script.is_img2img)
                with gr.Column():
                    generate = gr.Button("Generate", elem_id=f"{tab}_generate")
                    result = gr.Textbox(label="Request", elem_id=f"{tab}_result", lines=8)
                    pasted = gr.Textbox(label="Paste", elem_id=f"{tab}_paste", lines=2)
                    paste = gr.Button("Paste settings", elem_id=f"{tab}_paste_button")
                    gallery = gr.Gallery(elem_id=f"{tab}_gallery")
                    made = gr.File(label="Made picture", elem_id=f"{tab}_result_upload")
                    with gr.Row(elem_id=f"image_buttons_{tab}"):
                        gr.Button("💾", elem_id=f"save_{tab}")
            generate.click(request, args, result)
            paste.click(_pasted, pasted, args[1:])
            made.upload(_shown, made, gallery)
    return demo


def request(*args: object) -> str:
    """JSON of the request that the panel makes, without defaults; an error's words."""
    from dp_adapter.errors import DPAdapterError
    from dp_adapter.webui.panel.widget_values import settings_of

    try:
        return json.dumps(settings_of(args).to_dict(changed_only=True), ensure_ascii=False)
    except DPAdapterError as error:
        return f"refused: {error}"


def _shown(file: Any) -> list[str]:
    return [getattr(file, "name", file)]


def _pasted(text: str) -> list[object]:
    from dp_adapter.settings import Settings
    from dp_adapter.webui.panel.widget_values import values_of

    return list(values_of(Settings.from_json(text)).values())


# The settings page.


class OptionInfo:
    """One option of the settings page."""

    def __init__(
        self,
        default: Any = None,
        label: str = "",
        component: Any = None,
        component_args: Any = None,
        onchange: Any = None,
        section: Any = None,
        restrict_api: bool = False,
    ) -> None:
        self.default, self.label, self.component, self.component_args = default, label, component, component_args
        self.onchange, self.section, self.restrict_api = onchange, section, restrict_api
        self.do_not_save = False
        self.comment_after = ""

    def info(self, info: str) -> OptionInfo:
        self.comment_after += f"({info})"
        return self

    def needs_reload_ui(self) -> OptionInfo:
        self.comment_after += "(requires Reload UI)"
        return self


class Opts:
    """``shared.opts``: values over defaults, readable as attributes."""

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self.data_labels: dict[str, OptionInfo] = {}
        self.saved: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name in self.data:
            return self.data[name]
        if name in self.data_labels:
            return self.data_labels[name].default
        raise AttributeError(name)

    def add_option(self, key: str, info: OptionInfo) -> None:
        self.data_labels[key] = info
        if not info.do_not_save:
            self.data.setdefault(key, info.default)

    def set(self, key: str, value: Any) -> bool:
        info = self.data_labels[key]
        if info.do_not_save or self.data.get(key) == value:
            return False
        self.data[key] = value
        if info.onchange is not None:
            info.onchange()
        return True

    def save(self, filename: str) -> None:
        self.saved.append(filename)

    def components(self) -> dict[str, Any]:
        """The page's components by key, built as the hosts do it; needs gradio and an open page."""
        import gradio as gr

        plain = {str: gr.Textbox, int: gr.Number, bool: gr.Checkbox}
        built: dict[str, Any] = {}
        sys.modules["modules.shared"].settings_components = built  # type: ignore[attr-defined]
        for key, info in self.data_labels.items():
            make = info.component or plain[type(info.default)]
            value = self.data.get(key, info.default)
            built[key] = make(label=info.label, value=value, elem_id=f"setting_{key}", **(info.component_args or {}))
        return built


def with_settings_page(fake: dict[str, types.ModuleType]) -> Opts:
    """Gives a fake host its settings page."""
    opts = Opts()
    vars(fake["modules.shared"]).update(
        opts=opts, OptionInfo=OptionInfo, settings_components=None, config_filename="config.json"
    )
    return opts


# A job, in the order of A1111's processing.py.


class Processing:
    """One txt2img job of ``steps`` calls of the UNet, conds first, with every hook of the host that our script has.

    As in the hosts, what a hook raises is only kept (``reported``); what ``init`` and ``sample`` raise ends the job.

    Args:
        unet: called as (latents, context) -> latents, both with two rows a picture.
    """

    is_hr_pass = False
    enable_hr = False
    sampler: Any = None
    denoising_strength: Any = None

    def __init__(self, sd_model: Any, script: Any, args: list[Any], unet: Callable[..., Any], **settings: Any) -> None:
        self.sd_model, self.script, self.args, self.unet = sd_model, script, args, unet
        self.width = self.height = 128
        self.batch_size, self.n_iter, self.steps = 1, 1, 2
        self.extra_generation_params: dict[str, Any] = {}
        self.comments: list[str] = []
        self.reported: list[Exception] = []
        self.sampled: list[dict[str, list[str]]] = []  # each batch's prompts as the text encoder reads them
        vars(self).update(settings)

    def comment(self, text: str) -> None:
        self.comments.append(text)

    def init(self) -> None:
        pass

    def _hook(self, name: str, *args: Any, **kwargs: Any) -> None:
        try:
            getattr(self.script, name)(self, *args, *self.args, **kwargs)
        except Exception as error:
            self.reported.append(error)

    def cut_prompts(self, batch: int) -> None:
        """A batch's own prompts, as ``parse_extra_network_prompts`` leaves them, where the job has any."""
        place = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
        for name in ("prompts", "negative_prompts", "hr_prompts", "hr_negative_prompts"):
            texts: list[str] | None = getattr(self, f"all_{name}", None)
            if texts is not None:
                setattr(self, name, texts[place])

    def keep_sampled(self) -> None:
        """What ``setup_conds`` encodes."""
        names = ("prompts", "negative_prompts", "hr_prompts", "hr_negative_prompts")
        self.sampled.append({name: list(getattr(self, name)) for name in names if hasattr(self, name)})

    def sample(self, x: Any, cond: Any, uncond: Any) -> Any:
        import torch

        self.sampler = self._new_sampler(cond)
        self._hook("process_before_every_sampling", x=x, noise=x, c=cond, uc=uncond)
        result = self.sampler.sample(x, cond, uncond)
        if self.enable_hr:
            self.is_hr_pass = True
            self.sampler = self._new_sampler(cond)
            x = torch.nn.functional.interpolate(result, scale_factor=2)
            self._hook("process_before_every_sampling", x=x, noise=x, c=cond, uc=uncond)
            result = self.sampler.sample(x, cond, uncond)
            self.is_hr_pass = False
        return result

    def _new_sampler(self, cond: Any) -> Any:
        """As ``sd_samplers.create_sampler``: with a denoiser that is a module and is called once a step."""
        import torch

        p = self

        class Denoiser(torch.nn.Module):
            def forward(self, x: Any, step: int, uncond: Any) -> Any:
                text = torch.stack([part.cond for parts in cond.batch for part in parts])
                rows = torch.cat([x, x])
                denoiser = SimpleNamespace(p=p, sampler=p.sampler)
                params = SimpleNamespace(x=rows, text_cond=text, text_uncond=uncond, denoiser=denoiser)
                sys.modules["modules.script_callbacks"].fire("cfg_denoiser", params)  # type: ignore[attr-defined]
                c, u = p.unet(rows, torch.cat([text, uncond]), step).chunk(2)
                p.sampler.last_latent = p.predicted(c, step)
                return u + 3 * (c - u)

        return SimpleNamespace(
            sampler_extra_args={"cond": cond}, sample=self._sampled, model_wrap_cfg=Denoiser(), last_latent=None
        )

    def predicted(self, denoised: Any, _step: int) -> Any:
        """What the host keeps as the picture predicted so far; tests put another picture here."""
        return denoised

    def _sampled(self, x: Any, _cond: Any, uncond: Any) -> Any:
        for step in range(self.steps):
            x = 0.5 * x + 0.5 * self.sampler.model_wrap_cfg(x, step, uncond)
        return x

    def run(self) -> list[Any]:
        """The whole job: latents of every batch."""
        import torch

        made: list[Any] = []
        self._hook("process")
        self.init()
        for number in range(self.n_iter):
            generator = torch.Generator().manual_seed(number)
            x = torch.randn(self.batch_size, 4, self.height // 8, self.width // 8, generator=generator)
            width = self.unet.context  # type: ignore[attr-defined]
            cond = [torch.randn(7, width, generator=generator) for _ in range(self.batch_size)]
            parts = SimpleNamespace(batch=[[SimpleNamespace(cond=one, weight=1.0)] for one in cond])
            uncond = torch.randn(self.batch_size, 7, width, generator=generator)
            self.cut_prompts(number)
            self._hook("process_batch", batch_number=number)
            self.keep_sampled()
            made.append(self.sample(x, parts, uncond))
        processed = SimpleNamespace(images=[], infotexts=[], info="info", index_of_first_image=0)
        self._hook("postprocess", processed)
        self.processed = processed
        return made
