"""Puts an injection into the model of whichever WebUI this is, for one pass of sampling."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any, Protocol

from dp_adapter.errors import HostError
from dp_adapter.webui.host import compat

if TYPE_CHECKING:
    from dp_adapter.core.injection import Injection
    from dp_adapter.core.types import Grid, Step
    from dp_adapter.hosts.attach.forge_options import Rows
    from dp_adapter.hosts.attach.word_maps import WordMaps
    from dp_adapter.hosts.prompts.word_positions import SpokenTexts


class AttachedPass(AbstractContextManager["AttachedPass"], Protocol):
    """Inside the ``with``, the UNet carries the injection."""

    @property
    def progress(self) -> float:
        """Of the latest call of the UNet; 0 before the first one."""
        ...

    @property
    def call(self) -> Step | None:
        """The call of the UNet that runs; None outside, and where the host itself says what its rows are."""
        ...

    def before_step(self, params: Any) -> str:
        """Takes what the denoiser is about to call the UNet with.

        Args:
            params: ``CFGDenoiserParams``, after the refiner's switch.

        Returns:
            A note for the user where the refiner is a model that the adapter cannot reach; else empty.
        """
        ...

    def require_acted(self) -> None:
        """To be called when everything was sampled: raises HostError where the identity had to act and could not."""
        ...


def attach(
    p: Any,
    injection: Injection,
    latent: Grid,
    batch: int,
    prompts: int = 1,
    maps: WordMaps | None = None,
    words: SpokenTexts | None = None,
) -> AttachedPass:
    """Puts an injection into the UNet of a job; to be left as a ``with`` is.

    Args:
        p: the WebUI's processing object, whose ``sd_model`` is the one that samples.
        latent: size of the latents; batch: how many pictures are sampled together.
        prompts: how many texts AND joins for each picture.
        maps: takes the attention to the prompts' person words; None where nobody needs it.
        words: where the words stand through which persons act; None where nobody does.

    Raises:
        HostError: the model is neither SD1.5 nor SDXL, or the adapter does not fit it.
    """
    if compat.is_forge():
        from dp_adapter.hosts.attach.forge_options import sampler_rows

        return ForgePass(p, injection, latent, sampler_rows(batch, prompts), maps, words)
    return A1111Pass(p, injection, maps, words)


class ForgePass(AbstractContextManager["ForgePass"]):
    """A pass in Forge, which says with each call of the UNet what its rows are."""

    call = None

    def __init__(
        self,
        p: Any,
        injection: Injection,
        latent: Grid,
        rows: Rows,
        maps: WordMaps | None,
        words: SpokenTexts | None,
    ) -> None:
        from dp_adapter.hosts.attach import forge

        self._active = injection.active
        self._steps = 0
        self._stack = ExitStack()
        attached = forge.attach(compat.unet_patcher(p.sd_model), injection, rows, latent, maps=maps, words=words)
        self._attached = self._stack.enter_context(attached)
        self._stack.callback(self._attached.bypass.give_up)

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def progress(self) -> float:
        return self._attached.progress

    def before_step(self, params: Any) -> str:
        self._steps += 1
        self._attached.announce(params.x)
        return ""

    def require_acted(self) -> None:
        if self._active:
            self._attached.bypass.require_calls(self._steps)
            self._attached.bypass.require()


class A1111Pass(AbstractContextManager["A1111Pass"]):
    """A pass in A1111, which is told each step's rows, and in which a refiner may take the model's place."""

    def __init__(self, p: Any, injection: Injection, maps: WordMaps | None, words: SpokenTexts | None) -> None:
        self._p = p
        self._injection = injection
        self._maps = maps
        self._words = words
        self._stack = ExitStack()
        self._missed: HostError | None = None
        self._enter()

    def _enter(self) -> None:
        from dp_adapter.hosts.attach import ldm
        from dp_adapter.hosts.rows.a1111_rows import CfgRows

        model, rows = self._p.sd_model, CfgRows()
        unet, alphas = compat.diffusion_model(model), getattr(model, "alphas_cumprod", None)
        attach = ldm.attach(unet, self._injection, rows, maps=self._maps, words=self._words, alphas_cumprod=alphas)
        attachment = self._stack.enter_context(attach)
        assert attachment is not None  # of an injection that is active
        self._stack.callback(attachment.bypass.give_up)
        self._attachment = attachment
        self._steps = 0  # announced to what is attached now
        self._rows: CfgRows | None = rows
        self._checkpoint = model.sd_checkpoint_info

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def progress(self) -> float:
        return self._attachment.progress

    @property
    def call(self) -> Step | None:
        return self._attachment.call

    def before_step(self, params: Any) -> str:
        if self._p.sd_model.sd_checkpoint_info is not self._checkpoint and (note := self._follow_refiner()):
            return note
        self._steps += 1
        if self._rows is not None:
            conds = params.denoiser.sampler.sampler_extra_args["cond"].batch
            self._rows.announce(_conds_list(conds), params.x, params.text_cond, params.text_uncond)
        return ""

    def _follow_refiner(self) -> str:
        """Goes over to the model that samples from now on; a note where it cannot be reached."""
        try:
            self.require_acted()
        except HostError as error:  # for the end: the host hides what its hooks raise
            self._missed = error
        self._stack.close()
        try:
            self._enter()
        except HostError as error:
            self._rows, self._checkpoint = None, self._p.sd_model.sd_checkpoint_info
            return f"The refiner works without the identity: {error}"
        return ""

    def require_acted(self) -> None:
        if self._missed is not None:
            raise self._missed
        self._attachment.bypass.require_calls(self._steps)
        self._attachment.bypass.require()


def _conds_list(batch: list[list[Any]]) -> list[list[tuple[int, float]]]:
    """Per picture the rows of its parts (AND) and their weights, as prompt_parser.reconstruct_multicond_batch."""
    listed: list[list[tuple[int, float]]] = []
    row = 0
    for parts in batch:
        listed.append([(row + i, float(part.weight)) for i, part in enumerate(parts)])
        row += len(parts)
    return listed
