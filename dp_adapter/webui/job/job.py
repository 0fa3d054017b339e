"""One job, in the order of the host's hooks: prepared, each batch, each pass, each step, each picture, handed back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dp_adapter.errors import DPAdapterError
from dp_adapter.settings import Settings
from dp_adapter.webui.host import compat, shared_session
from dp_adapter.webui.host.controlnet import has_controlnet
from dp_adapter.webui.host.encoders import picture_encoder
from dp_adapter.webui.job import duplicate_lora, request, scenes
from dp_adapter.webui.job.comments import JobComments
from dp_adapter.webui.job.sampling_pass import ActedCalls, SamplingPass, regions_of
from dp_adapter.webui.job.stop import make_stop
from dp_adapter.webui.parameters import describe_job
from dp_adapter.webui.previews.preview_decoders import choose_decoder
from dp_adapter.webui.prompts import prompt_edits
from dp_adapter.webui.results import face_pass
from dp_adapter.webui.results.finished_pictures import FinishedPictures
from dp_adapter.webui.results.region_masks import hand_back_masks

if TYPE_CHECKING:
    from torch import Tensor

    from dp_adapter.core.types import Grid
    from dp_adapter.hosts.attach.sites import Base
    from dp_adapter.session import Prepared, Scene
    from dp_adapter.session.regions.tracker import Tracker


class Job:
    """The adapter's part in one job.

    Args:
        p: the WebUI's processing object.
        settings: from ``read_request``.

    Raises:
        DPAdapterError: photo, model or settings cannot be used; nothing has been sampled yet.
    """

    def __init__(self, p: Any, settings: Settings) -> None:
        self._p = p
        self._requested = settings
        self._comments = JobComments(p)
        self._pass: SamplingPass | None = None
        self._began = False  # whether the host said that it samples
        self._acted: list[Tensor] = []  # regions [S, h, w] in which an identity acted at the end of each batch
        self._calls: ActedCalls | None = None  # of this batch, in which an identity was in the UNet
        base = shared_session.base_of(p.sd_model)
        self._settings, self._first = self._prepare_first(base)
        self._current = self._first  # of the pass
        self._decode = choose_decoder(settings.tracking.decoder, base)
        request.require_hires_family(p, self._settings, base)
        if note := request.refiner_note(p):
            self._comments.add(note)
        self._hires = self._prepare_hires_words(base)
        self.finished = FinishedPictures(p, self._settings, self._last_acting, self._edit_prompts)
        self._describe("")
        self._prompts = prompt_edits.PromptEdits.put(p, (self._first, self._hires))

    def is_of(self, p: Any) -> bool:
        """False for a copy of the job, on which ADetailer has scripts end and begin while the job goes on."""
        return p is self._p

    def before_batch(self, number: int) -> None:
        """Between preparation and sampling of a batch.

        Args:
            number: of the batch, from 0.

        Raises:
            DPAdapterError: the init picture cannot be used, or a replacement UNet runs instead of the model's.
        """
        p = self._p
        if getattr(p, "init_images", None):
            self._first = self._prepare(
                self._settings, scenes.describe_first_pass(p, shared_session.base_of(p.sd_model))
            )
        if self._first.injection.active:
            request.require_own_unet()
        self._add_notes(self._first)
        acts = self._first.injection.active or self._hires.injection.active
        self._prompts.take_back(p, number, acts)
        self._calls = None
        # Known before anything is sampled, for params.txt; a hires pass may act where the first one does not.
        self._describe("" if getattr(p, "enable_hr", False) else self._why_idle())
        self._wrap_sample()

    def before_pass(self, latent: Grid, batch: int) -> None:
        """Before each sampling: puts the adapter in, taking out that of the pass before.

        Args:
            batch: how many pictures are sampled together.

        Raises:
            DPAdapterError: the identity cannot act in this pass, or could not in the pass before.
        """
        self._require_acted()
        self.close()
        self._began = True
        self._current = self._prepare_pass(latent)
        if not self._current.injection.active:
            return
        self._calls = self._calls or ActedCalls()
        self._pass = SamplingPass(
            self._p,
            self._current,
            latent,
            batch,
            decode=self._decode,
            overlay=self._settings.report.overlay,
            acted=self._calls,
            comments=self._comments,
        )

    def before_step(self, params: Any) -> None:
        """The denoiser is about to call the UNet."""
        if not self._began:
            self._begin_late(params)
        if self._pass is not None:
            self._pass.before_step(params)

    def _begin_late(self, params: Any) -> None:
        """An extension samples by itself and does not tell scripts before it does (DemoFusion)."""
        from dp_adapter.core.types import Grid

        try:
            pictures = params.denoiser.sampler.sampler_extra_args["cond"].batch
            self.before_pass(Grid(*params.x.shape[-2:]), len(pictures))
        except DPAdapterError as error:  # the host hides what its hooks raise
            self._comments.add(f"this picture has no identity: {error}")

    def close(self) -> None:
        """Takes the adapter out of the UNet, wherever the job stopped."""
        leaving, self._pass = self._pass, None
        try:
            if leaving is not None:
                leaving.close()
        finally:
            self.finished.close()

    def before_composite(self, pp: Any) -> None:
        """A picture as it was sampled, before the host writes its parameters."""
        self.finished.before_overlay(pp)
        self._describe(self._why_idle())

    def hand_back(self, processed: Any) -> None:
        """The whole job is done: adds what was asked for to its pictures."""
        self.finished.hand_back(processed)
        describe_job.add_notes(self._p, self._comments.notes)
        if self._settings.report.masks:
            hand_back_masks(self._p, processed, self._acted)

    def _prepare(self, settings: Settings, scene: Scene, before: Tracker | None = None) -> Prepared:
        scene = replace(
            scene,
            bytes_per_number=compat.bytes_per_number(self._p.sd_model),
            encode_picture=picture_encoder(self._p),
            controls=has_controlnet(),
        )
        prepared, note = duplicate_lora.drop_duplicate(
            self._p, shared_session.session().prepare(settings, scene, before)
        )
        if note:
            self._comments.add(note)
        return prepared

    def _prepare_first(self, base: Base) -> tuple[Settings, Prepared]:
        """The request, with persons' words that only the job's prompts say, and what it makes of the first pass.

        Init pictures are cut to size in the job's own preparation; until then only photos and model are checked.
        """
        settings, scene = self._requested, scenes.describe_first_pass(self._p, base, initialised=False)
        prepared = self._prepare(settings, scene)
        with_words = prompt_edits.with_prompt_words(self._p, settings, prepared.prompt_persons)
        return with_words, prepared if with_words == settings else self._prepare(with_words, scene)

    def _prepare_hires_words(self, base: Base) -> Prepared:
        """What the hires pass will be made with, as far as its words are concerned."""
        if not getattr(self._p, "enable_hr", False) or self._settings.hires.use == "same":
            return self._first
        scene = scenes.describe_first_pass(self._p, base, initialised=False)
        return self._prepare(self._settings.in_hires_pass(), scene)

    def _prepare_pass(self, latent: Grid) -> Prepared:
        p = self._p
        if not getattr(p, "is_hr_pass", False):
            return self._first
        scene = scenes.describe_hires_pass(p, shared_session.base_of(p.sd_model), latent)
        prepared = self._prepare(self._settings.in_hires_pass(), scene, self._first.tracker)
        self._add_notes(prepared)
        return prepared

    def _edit_prompts(self, prompts: prompt_edits.Pair, hires: bool) -> prompt_edits.Pair:
        """Prompt and negative prompt of a picture as they are sampled."""
        return prompt_edits.edit(prompts, self._hires if hires else self._first)

    def _wrap_sample(self) -> None:
        """What is attached inside ``p.sample`` comes out when it ends: in full, interrupted or by an exception."""
        p = self._p
        inner: Callable[..., Any] = p.sample
        own: Callable[..., Any] | None = p.__dict__.get("sample")

        def sample(*args: Any, **kwargs: Any) -> Any:
            if own is None:
                del p.sample
            else:
                p.sample = own
            self._began = False
            try:
                made = inner(*args, **kwargs)
                self._require_acted()
                return made
            except DPAdapterError as error:  # a call of the UNet that cannot be adapted
                raise make_stop(str(error)) from error
            finally:
                self._finish_batch()

        p.sample = sample

    def _finish_batch(self) -> None:
        self._acted += [mask for mask in regions_of(self._current.injection).values() if mask is not None]
        self.close()
        idle = self._why_idle()
        self._describe(idle)
        if idle and self._calls is not None and not self._calls.scheduled:  # others were told before, or by it
            self._comments.add(f"No identity acted: {idle}.")

    def _require_acted(self) -> None:
        if self._pass is not None:
            self._pass.require_acted()

    def _last_acting(self) -> Prepared:
        """What the last pass in which an identity acted was made with."""
        return self._current if self._current.injection.active else self._first

    def _why_idle(self) -> str:
        """Why nothing acted in this batch, in few words; empty where something did, or nobody could see it."""
        if face_pass.is_wanted(self._p, self._settings, self._first.mode):
            return ""
        if self._calls is None:
            return self._first.explanation.idle
        if self._calls.acted or not self._calls.called:
            return ""
        return "its region stayed empty" if self._calls.scheduled else "no step fell into its span"

    def _describe(self, idle: str) -> None:
        mode = shared_session.session().modes.of(self._requested.mode)
        describe_job.describe(self._p, self._requested, mode, self._first.explanation, idle)

    def _add_notes(self, prepared: Prepared) -> None:
        for note in prepared.explanation.notes:
            self._comments.add(note)
