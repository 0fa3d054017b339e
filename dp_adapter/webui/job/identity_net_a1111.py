"""IdentityNet through A1111's extension for ControlNet: a control beside those of its units, one for each person.

No unit is made: units are read before our script runs, are written into the infotext, and add their picture to the
results. [Mikubill/sd-webui-controlnet@56cec5b scripts/hook.py, scripts/controlnet.py]
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dp_adapter.errors import HostError
from dp_adapter.webui.host import compat, shared_session
from dp_adapter.webui.host.controlnet import controlnets, extension_names

if TYPE_CHECKING:
    from torch import Tensor

    from dp_adapter.core.types import Step, Tokens
    from dp_adapter.session.assembly.identity_net import Net, NetPerson

_SET_BY_HOOK = ("sample", "sample_before_CN_hack")  # of the job, by which the extension marks the texts of its units
_OFF = "Switch IdentityNet off."


@contextmanager
def add_controls(p: Any, net: Net, call: Callable[[], Step | None]) -> Generator[None]:
    """Inside the ``with``, the UNet's ControlNet has one control more for each person.

    Args:
        p: the WebUI's processing object, while it samples.
        call: the call of the UNet that runs: the extension does not say what its rows are.

    Raises:
        HostError: the extension cannot take it beside what it does already.
    """
    names = extension_names()
    loaded = shared_session.control_model(net.model)
    unet: Any = compat.diffusion_model(p.sd_model)
    loaded.to(dtype=p.sd_model.dtype)
    controls = [_control_params(names, loaded, net, person, call) for person in net.persons]
    network = _find_network(unet)
    with _add_to_units(network, controls) if network is not None else _add_network(p, unet, names["hook"], controls):
        yield


@contextmanager
def _add_to_units(network: Any, controls: list[Any]) -> Generator[None]:
    """The controls among those of the user's units."""
    network.control_params += controls
    try:
        yield
    finally:
        if network.control_params is not None:  # else the extension ended it
            network.control_params[:] = [one for one in network.control_params if one not in controls]


@contextmanager
def _add_network(p: Any, unet: Any, hook: Any, controls: list[Any]) -> Generator[None]:
    """The controls in a network of our own, where the user has no unit."""
    if "_original_forward" in unet.__dict__:
        raise HostError("Another job's ControlNet is in the UNet", _OFF)
    forward: Any = unet.__dict__.get("forward")
    job: dict[str, Any] = p.__dict__
    before = {name: job[name] for name in _SET_BY_HOOK if name in job}
    network = hook.UnetHook(lowvram=False)
    try:
        network.hook(model=unet, sd_ldm=p.sd_model, control_params=controls, process=p)
        # Texts are marked when a sampling begins; this one has begun, and the next one has a control of its own.
        for name in _SET_BY_HOOK:
            job.pop(name, None)
        job.update(before)
        yield
    finally:
        try:
            network.restore()
        finally:
            # It leaves the UNet's forward as an attribute of the instance.
            unet.__dict__.pop("forward", None)
            if forward is not None:
                unet.forward = forward


class PersonControl:
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


def _find_network(unet: Any) -> Any | None:
    """The extension's network that is in a UNet for units of the user's; None for none."""
    for script in controlnets():
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


def _control_params(
    names: Mapping[str, Any], model: Any, net: Net, person: NetPerson, call: Callable[[], Step | None]
) -> Any:
    import torch

    hint = torch.as_tensor(person.hint).permute(2, 0, 1)[None].float() / 255  # [1, 3, h, w]
    device = names["devices"].get_device_for("controlnet")
    return names["ControlParams"](
        control_model=PersonControl(model, person.tokens, person.hint.shape[:2], call),
        preprocessor={"name": "none", "preprocessor_resolution": -1, "threshold_a": -1, "threshold_b": -1},
        hint_cond=hint.to(device),
        weight=net.weight,
        guidance_stopped=False,
        start_guidance_percent=0.0,
        stop_guidance_percent=net.end,
        advanced_weighting=None,
        control_model_type=names["ControlModelType"].ControlNet,
        hr_hint_cond=None,
        global_average_pooling=False,
        soft_injection=False,
        cfg_injection=False,
        effective_region_mask=None if person.mask is None else person.mask[:, None].float().to(device),
    )
