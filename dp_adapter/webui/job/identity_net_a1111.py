"""IdentityNet through A1111's extension for ControlNet: a control beside those of its units, one for each person.

No unit is made: units are read before our script runs, are written into the infotext, and add their picture to the
results. [Mikubill/sd-webui-controlnet@56cec5b scripts/hook.py, scripts/controlnet.py]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp_adapter.errors import HostError
from dp_adapter.webui.host import compat, shared_session

if TYPE_CHECKING:
    from torch import Tensor

    from dp_adapter.core.types import Step, Tokens
    from dp_adapter.session.assembly.identity_net import Net, NetPerson

_KINDS = ("ControlNet", "InstantID")  # the extension calls it the latter by the file's name
_SET_BY_HOOK = ("sample", "sample_before_CN_hack")  # of the job, by which the extension marks the texts of its units
_OFF = "Switch IdentityNet off."


class ExtensionControl(AbstractContextManager["ExtensionControl"]):
    """Inside the ``with``, the UNet's ControlNet has one control more for each person.

    Args:
        p: the WebUI's processing object, while it samples.
        call: the call of the UNet that runs.

    Raises:
        HostError: the extension cannot take it beside what it does already.
    """

    def __init__(self, p: Any, net: Net, call: Callable[[], Step | None]) -> None:
        parts = _parts()
        loaded = shared_session.control_model(net.model)
        unet: Any = compat.diffusion_model(p.sd_model)
        loaded.to(dtype=p.sd_model.dtype)
        self._params = [_params(parts, loaded, net, person, call) for person in net.persons]
        self._network, self._own = _network_in(unet), None
        if self._network is not None:
            self._network.control_params += self._params
            return
        if "_original_forward" in unet.__dict__:
            raise HostError("Another job's ControlNet is in the UNet", _OFF)
        self._unet = unet
        self._forward: Any = unet.__dict__.get("forward")
        job: dict[str, Any] = p.__dict__
        kept = {name: job[name] for name in _SET_BY_HOOK if name in job}
        self._own = parts["hook"].UnetHook(lowvram=False)
        self._own.hook(model=unet, sd_ldm=p.sd_model, control_params=self._params, process=p)
        # Texts are marked when a sampling begins; this one has begun, and the next one has a control of its own.
        for name in _SET_BY_HOOK:
            job.pop(name, None)
        job.update(kept)

    def __exit__(self, *_: object) -> None:
        if self._network is not None and self._network.control_params is not None:  # else the extension ended it
            mine = self._params
            self._network.control_params[:] = [one for one in self._network.control_params if one not in mine]
        if self._own is not None:
            self._own.restore()
            # It leaves the UNet's forward as an attribute of the instance.
            self._unet.__dict__.pop("forward", None)
            if self._forward is not None:
                self._unet.forward = self._forward
        self._network = self._own = None


class Told:
    """A control model that is asked with a person's tokens in place of the text; in all else it is the model.

    Args:
        size: of the keypoint picture, height and width in px.
    """

    def __init__(self, model: Any, tokens: Tokens, size: tuple[int, int], call: Callable[[], Step | None]) -> None:
        self._model, self._tokens, self._size, self._call = model, tokens, size, call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, *, x: Tensor, context: Tensor, **rest: Any) -> Any:
        """Raises HostError where rows or places are not those of the sampler's step."""
        import torch

        step, size = self._call(), (8 * x.shape[-2], 8 * x.shape[-1])
        if step is None or len(step.rows) != len(x):
            raise HostError(f"IdentityNet was called with {len(x)} rows, and nothing says what they are", _OFF)
        if size != self._size:
            raise HostError(
                f"IdentityNet's keypoints are for {self._size[1]} x {self._size[0]} px, and the UNet makes "
                f"{size[1]} x {size[0]}",
                "An extension makes the picture in tiles: switch that or IdentityNet off.",
            )
        tokens = self._tokens
        rows = [tokens.cond if row.kind == "cond" else tokens.uncond for row in step.rows]
        return self._model(x=x, context=torch.stack(rows).to(context), **rest)


def load(path: Path) -> Any:
    """A control model as the extension loads it, on the CPU. Raises HostError where the file is none that it knows."""
    parts = _parts()
    try:
        model, kind = parts["build_model_by_guess"](parts["load_state_dict"](str(path)), None, str(path))
    except Exception as error:  # the extension raises plain ones
        raise _no_control(path) from error
    if kind.name not in _KINDS:
        raise _no_control(path)
    return model


def _no_control(path: Path) -> HostError:
    return HostError(f"{path.name} is no ControlNet that this WebUI can load", "Choose InstantID's IdentityNet.")


def _parts() -> Mapping[str, Any]:
    """What the extension's script works with: names of its module, which no import reaches."""
    entry: Any = compat.controlnets()[0].controlnet_main_entry
    names: dict[str, Any] = entry.__func__.__globals__
    return names


def _network_in(unet: Any) -> Any | None:
    """The extension's network that is in a UNet for units of the user's; None for none."""
    for script in compat.controlnets():
        network = script.latest_network
        if network is not None and network.control_params is not None and network.model is unet:
            if "eparate" in str(script.ui_batch_option_state[0]):
                raise HostError(
                    "ControlNet gives each picture of the batch a unit of its own",
                    "Set ControlNet's Batch Option to 'All ControlNet units for all images in a batch', or switch "
                    "IdentityNet off.",
                )
            return network
    return None


def _params(parts: Mapping[str, Any], model: Any, net: Net, person: NetPerson, call: Callable[[], Step | None]) -> Any:
    import torch

    hint = torch.as_tensor(person.hint).permute(2, 0, 1)[None].float() / 255  # [1, 3, h, w]
    device = parts["devices"].get_device_for("controlnet")
    return parts["ControlParams"](
        control_model=Told(model, person.tokens, person.hint.shape[:2], call),
        preprocessor={"name": "none", "preprocessor_resolution": -1, "threshold_a": -1, "threshold_b": -1},
        hint_cond=hint.to(device),
        weight=net.weight,
        guidance_stopped=False,
        start_guidance_percent=0.0,
        stop_guidance_percent=net.end,
        advanced_weighting=None,
        control_model_type=parts["ControlModelType"].ControlNet,
        hr_hint_cond=None,
        global_average_pooling=False,
        soft_injection=False,
        cfg_injection=False,
        effective_region_mask=None if person.mask is None else person.mask[:, None].float().to(device),
    )
