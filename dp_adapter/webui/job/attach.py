"""Puts an injection into the model of whichever WebUI this is, for one pass of sampling."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dp_adapter.errors import HostError
from dp_adapter.hosts.prompts.person_words import FoundWords
from dp_adapter.webui.host import compat

if TYPE_CHECKING:
    from dp_adapter.core.injection import Injection
    from dp_adapter.core.types import Grid, Step
    from dp_adapter.hosts.attach.attachment import Attachment
    from dp_adapter.hosts.prompts.word_positions import SpokenTexts
    from dp_adapter.hosts.rows.a1111_rows import CfgRows


_NO_WORDS = FoundWords(())


@dataclass
class Calls:
    """What the identities had to do with the calls of the UNet so far.

    Attributes:
        seen: whether there was any call.
        within: whether one of them lay in the schedule.
        acting: whether an identity had a region in one of these.
    """

    seen: bool = False
    within: bool = False
    acting: bool = False

    def look(self, injection: Injection, progress: float) -> None:
        """The call at this progress is over; what has its own schedule, or none, is taken to act in every call."""
        self.seen = True
        shown = [one for one in injection.identities if one.visible]
        freely = any(one.uses_photo or one.on_text is not None for one in shown)
        within = freely or injection.schedule.at(progress) != 0
        self.within |= within
        if within and not self.acting:
            self.acting = any(one.region is None or bool(one.region.any()) for one in shown)


class Pass(AbstractContextManager["Pass"]):
    """One pass: inside the ``with``, the UNet carries the injection.

    Args:
        p: the WebUI's processing object, whose ``sd_model`` is the one that samples.
        latent: size of the latents; batch: how many pictures are sampled together.
        words: person words of the prompts, whose attention is kept in ``maps``; none for nobody listens.
        spoken: where the words stand through which persons act; None where nobody does.
        calls: takes what is seen of the calls.

    Attributes:
        maps: what the text attention says so far; None where nobody listens.

    Raises:
        HostError: the model is neither SD1.5 nor SDXL, or the adapter does not fit it.
    """

    def __init__(
        self,
        p: Any,
        injection: Injection,
        latent: Grid,
        batch: int,
        words: FoundWords = _NO_WORDS,
        spoken: SpokenTexts | None = None,
        calls: Calls | None = None,
    ) -> None:
        from dp_adapter.hosts.attach.word_maps import WordMaps

        self._p = p
        self._injection = injection
        self.words = words
        self._spoken = spoken
        self._calls = Calls() if calls is None else calls
        self._called = False
        self.maps = WordMaps(words.tokens, latent) if words.texts else None
        self._stack = ExitStack()
        self._steps = 0  # announced to what is attached now
        self._missed: HostError | None = None
        self._rows: CfgRows | None = None  # A1111 only: Forge says with each call what its rows are
        self._attached: Attachment | None = None
        self._attachment: Attachment | None = None
        self._forge: Attachment | None = None
        if compat.is_forge():
            from dp_adapter.hosts.attach import forge
            from dp_adapter.hosts.attach.forge_options import sampler_rows

            patcher = compat.unet_patcher(p.sd_model)
            rows = sampler_rows(batch, words.prompts if spoken is None else spoken.prompts)
            attach = forge.attach(patcher, injection, rows, latent, maps=self.maps, words=spoken)
            self._attached = self._forge = self._stack.enter_context(attach)
        else:
            self._enter_ldm()

    def __exit__(self, *_: object) -> None:
        if self._attached is not None:
            self._attached.acting.give_up()
        if self._called:
            self._calls.look(self._injection, self.progress)
        self._stack.close()

    def require_acted(self) -> None:
        """To be called when everything was sampled: raises HostError where the identity had to act and could not."""
        if self._missed is not None:
            raise self._missed
        if self._attached is not None and self._injection.active:
            self._attached.acting.require_calls(self._steps)
            self._attached.acting.require()

    @property
    def progress(self) -> float:
        """Of the latest call of the UNet."""
        return 0.0 if self._attached is None else self._attached.progress

    @property
    def call(self) -> Step | None:
        """A1111's call of the UNet that runs; None outside, or where its rows are not known."""
        return None if self._attachment is None else self._attachment.call

    def before_step(self, params: Any) -> str:
        """The denoiser is about to call the UNet: takes what it calls it with; in A1111, follows the refiner.

        Args:
            params: ``CFGDenoiserParams``, after the refiner's switch.

        Returns:
            A note for the user where the refiner is a model that the adapter cannot reach; else empty.
        """
        if self._called:
            self._calls.look(self._injection, self.progress)
        self._called = True
        if self._forge is not None:
            self._steps += 1
            self._forge.announce(params.x)
            return ""
        if self._p.sd_model.sd_checkpoint_info is not self._checkpoint:
            try:
                self.require_acted()
            except HostError as error:  # for the end: the host hides what its hooks raise
                self._missed = error
            self._stack.close()
            try:
                self._enter_ldm()
            except HostError as error:
                self._rows, self._checkpoint = None, self._p.sd_model.sd_checkpoint_info
                return f"The refiner works without the identity: {error}"
        self._steps += 1
        if self._rows is not None:
            conds = params.denoiser.sampler.sampler_extra_args["cond"].batch
            self._rows.announce(_conds_list(conds), params.x, params.text_cond, params.text_uncond)
        return ""

    def _enter_ldm(self) -> None:
        from dp_adapter.hosts.attach import ldm
        from dp_adapter.hosts.rows.a1111_rows import CfgRows

        rows = CfgRows()
        unet = compat.diffusion_model(self._p.sd_model)
        alphas = getattr(self._p.sd_model, "alphas_cumprod", None)
        attach = ldm.attach(unet, self._injection, rows, maps=self.maps, words=self._spoken, alphas_cumprod=alphas)
        self._attached = self._attachment = self._stack.enter_context(attach)
        self._steps = 0
        self._rows, self._checkpoint = rows, self._p.sd_model.sd_checkpoint_info


def _conds_list(batch: list[list[Any]]) -> list[list[tuple[int, float]]]:
    """Per picture the rows of its parts (AND) and their weights, as prompt_parser.reconstruct_multicond_batch."""
    listed: list[list[tuple[int, float]]] = []
    row = 0
    for parts in batch:
        listed.append([(row + i, float(part.weight)) for i, part in enumerate(parts)])
        row += len(parts)
    return listed
