"""One job: from settings to an adapter that is in the UNet while a pass is sampled, and out of it again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dp_adapter import hints
from dp_adapter.errors import DPAdapterError, SettingsError
from dp_adapter.hosts.prompts.person_words import FoundWords
from dp_adapter.settings import Settings
from dp_adapter.webui.host import compat, options, shared_session
from dp_adapter.webui.job import duplicate_lora, inner_jobs, scenes
from dp_adapter.webui.job.attach import Calls, Pass
from dp_adapter.webui.job.encode_pictures import picture_encoder
from dp_adapter.webui.job.identity_net_forge import control_of
from dp_adapter.webui.job.stop import stopped
from dp_adapter.webui.parameters import describe_job, infotext_photos, xyz_grid
from dp_adapter.webui.previews.live_overlay import Overlay
from dp_adapter.webui.previews.preview_decoders import decoder
from dp_adapter.webui.previews.preview_hooks import PreviewHooks
from dp_adapter.webui.prompts import prompt_edits, word_positions
from dp_adapter.webui.results import face_pass
from dp_adapter.webui.results.finished_pictures import FinishedPictures

if TYPE_CHECKING:
    from torch import Tensor

    from dp_adapter.core.types import Grid, Step
    from dp_adapter.hosts.attach.sites import Base
    from dp_adapter.session import Prepared, Scene
    from dp_adapter.session.regions.tracker import Tracker

_NO_MODEL = (None, "", "None", "none", "Use same checkpoint")


def settings_for(p: Any, args: Sequence[object]) -> Settings:
    """The request of a job: the panel's or the API's, with what X/Y/Z says for this cell of its grid.

    Pictures in it are put on the shelf, and ``photo:HASH`` stands for them from here on.

    Raises:
        SettingsError, PictureError: a field or a picture is refused.
    """
    settings = xyz_grid.settings_of(p, args)
    if not settings.enabled:
        return settings
    if inner_jobs.is_inner(p):
        return infotext_photos.kept(inner_jobs.as_inner(p, settings), shared_session.session().photos.keep)
    always = options.read()
    if always.report or always.masks:
        report = settings.report
        enabled, masks = report.enabled or always.report, report.masks or always.masks
        settings = replace(settings, report=replace(report, enabled=enabled, masks=masks))
    return infotext_photos.kept(settings, shared_session.session().photos.keep)


class Job:
    """The adapter's part in one job.

    Args:
        p: the WebUI's processing object.

    Raises:
        DPAdapterError: photo, model or settings cannot be used; nothing has been sampled yet.
    """

    def __init__(self, p: Any, settings: Settings) -> None:
        self._p = p
        self._asked = self._settings = settings
        self._pass: Pass | None = None
        self._control: AbstractContextManager[object] | None = None
        self._began = False  # whether the host said that it samples
        self._watching: PreviewHooks | None = None
        self._overlay: Overlay | None = None
        self._told: dict[str, None] = {}
        self._steps: list[float] = []  # progress at the calls of the pass that are over
        self._called = False
        self._acted: list[Tensor] = []  # regions [S, h, w] in which an identity acted at the end of each batch
        self._calls: Calls | None = None  # of this batch, in which an identity was in the UNet
        base = shared_session.base_of(p.sd_model)
        # Init pictures are cut to size in the job's own preparation; until then only photos and model are checked.
        self._first = self._prepare(settings, scenes.first_pass(p, base, initialised=False))
        if (hinted := prompt_edits.hinted(p, settings, self._first.prompt_persons)) != settings:
            self._settings = hinted
            self._first = self._prepare(hinted, scenes.first_pass(p, base, initialised=False))
        self._current = self._first  # of the pass
        self._decode = decoder(settings.tracking.decoder, base)
        self._check_hires(base)
        self._check_refiner()
        self._hires = self._in_hires_pass(base)
        self.outcome = FinishedPictures(p, self._settings, self._last_acting, self._worded)
        self._describe("")
        self._wording = prompt_edits.Wording.put(p, (self._first, self._hires))

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
            self._first = self._prepare(self._settings, scenes.first_pass(p, shared_session.base_of(p.sd_model)))
        replaced = compat.alternative_unet()
        if replaced and self._first.injection.active:
            raise SettingsError(
                "enabled",
                f"the UNet '{replaced}' runs in place of the model's, and no adapter can reach into it",
                "Choose 'None' under Settings > Stable Diffusion > SD Unet, or disable DP-Adapter.",
            )
        self._tell(self._first)
        acts = self._first.injection.active or self._hires.injection.active
        self._wording.take_back(p, number, acts)
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
        p = self._p
        self._current = self._first
        if getattr(p, "is_hr_pass", False):
            settings = self._settings.in_hires_pass()
            scene = scenes.hires_pass(p, shared_session.base_of(p.sd_model), latent)
            self._current = self._prepare(settings, scene, self._first.tracker)
            self._tell(self._current)
        if self._current.injection.active:
            if self._current.net is not None:
                self._control = control_of(p, self._current.net, self._call)
            people = self._current.prompt_persons
            spoken = word_positions.spoken(p, people) if people else None
            self._calls = self._calls or Calls()
            heard = self._words()
            self._pass = inside = Pass(p, self._current.injection, latent, batch, heard, spoken, self._calls)
            if self._settings.report.overlay:
                self._overlay = Overlay(self._regions_now, batch)
            if self._current.tracker is not None:
                self._watching = PreviewHooks(
                    p, self._current.tracker, self._decode, inside, self._current.injection.schedule.at
                )

    def before_step(self, params: Any) -> None:
        """The denoiser is about to call the UNet."""
        if not self._began:
            self._begin_late(params)
        if self._pass is not None:
            self._steps += [self._pass.progress] if self._called else []
            self._called = True
            if note := self._pass.before_step(params):
                self._comment(note)

    def _begin_late(self, params: Any) -> None:
        """An extension samples by itself and does not tell scripts before it does (DemoFusion)."""
        from dp_adapter.core.types import Grid

        try:
            pictures = params.denoiser.sampler.sampler_extra_args["cond"].batch
            self.before_pass(Grid(*params.x.shape[-2:]), len(pictures))
        except DPAdapterError as error:  # the host hides what its hooks raise
            self._comment(f"this picture has no identity: {error}")

    def close(self) -> None:
        """Takes the adapter out of the UNet, wherever the job stopped."""
        if self._overlay is not None:
            self._overlay.__exit__()
            self._overlay = None
        if self._watching is not None:
            self._watching.__exit__()
            self._watching = None
        if self._pass is not None:
            self._tell_what_was_done(self._pass.progress)
            self._pass.__exit__()
            self._pass = None
        if self._control is not None:
            self._control.__exit__(None, None, None)
            self._control = None
        self.outcome.close()

    def _tell_what_was_done(self, progress: float) -> None:
        """
        Args:
            progress: at the last call of the pass.
        """
        from dp_adapter.session.explain import explain_inaction

        steps, self._steps = [*self._steps, progress] if self._called else [], []
        self._called = False
        tracker = self._current.tracker
        notes = explain_inaction(self._current.injection, steps) or (() if tracker is None else tracker.notes())
        for note in notes:
            self._comment(note)

    def hand_back(self, processed: Any) -> None:
        """Adds what was asked for to the job's pictures: the regions at their end, white where an identity acts."""
        import numpy as np
        from PIL import Image

        self.outcome.hand_back(processed)
        describe_job.add_notes(self._p, list(self._told))
        if not self._settings.report.masks:
            return
        size = processed.images[0].size if processed.images else (self._p.width, self._p.height)
        pictures = [
            Image.fromarray(np.uint8(mask.numpy() * 255 + 0.5)).resize(size, Image.Resampling.BILINEAR)
            for masks in self._acted
            for mask in masks
        ]
        processed.images += pictures
        processed.infotexts += [processed.info] * len(pictures)
        if options.read().save_masks:
            from modules import images

            for picture in pictures:
                images.save_image(picture, self._p.outpath_samples, "", suffix="-dp-adapter-region", p=self._p)

    def _words(self) -> FoundWords:
        """The person words to listen to; none where no region waits for them."""
        tracker = self._current.tracker
        if tracker is None or not tracker.wants_attention:
            return FoundWords(())
        return word_positions.find(self._p, tracker.plan.words)

    def _call(self) -> Step | None:
        return None if self._pass is None else self._pass.call

    def _regions_now(self) -> dict[int, Tensor | None]:
        return {number: one.region for number, one in enumerate(self._current.injection.identities)}

    def _prepare(self, settings: Settings, scene: Scene, before: Tracker | None = None) -> Prepared:
        scene = replace(
            scene,
            bytes_per_number=compat.bytes_per_number(self._p.sd_model),
            encode_picture=picture_encoder(self._p),
            controls=compat.has_controlnet(),
        )
        prepared, note = duplicate_lora.without(self._p, shared_session.session().prepare(settings, scene, before))
        if note:
            self._comment(note)
        return prepared

    def _in_hires_pass(self, base: Base) -> Prepared:
        """What the hires pass will be made with, as far as its words are concerned."""
        if not getattr(self._p, "enable_hr", False) or self._settings.hires.use == "same":
            return self._first
        scene = scenes.first_pass(self._p, base, initialised=False)
        return self._prepare(self._settings.in_hires_pass(), scene)

    def _worded(self, prompts: prompt_edits.Pair, hires: bool) -> prompt_edits.Pair:
        """Prompt and negative prompt of a picture as they are sampled."""
        return prompt_edits.worded(prompts, self._hires if hires else self._first)

    def finish(self, pp: Any) -> None:
        """A picture as it was sampled, before the host writes its parameters."""
        self.outcome.before_overlay(pp)
        self._describe(self._why_idle())

    def _why_idle(self) -> str:
        """Why nothing acted in this batch, in few words; empty where something did, or nobody could see it."""
        if face_pass.wanted(self._p, self._settings, self._first.mode):
            return ""
        if self._calls is None:
            return self._first.explanation.idle
        if self._calls.acting or not self._calls.seen:
            return ""
        return "its region stayed empty" if self._calls.within else "no step fell into its span"

    def _describe(self, idle: str) -> None:
        mode = shared_session.session().modes.of(self._asked.mode)
        describe_job.describe(self._p, self._asked, mode, self._first.explanation, idle)

    def _last_acting(self) -> Prepared:
        """What the last pass in which an identity acted was made with."""
        return self._current if self._current.injection.active else self._first

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
                raise stopped(str(error)) from error
            finally:
                self._acted += [mask for mask in self._regions_now().values() if mask is not None]
                self.close()
                idle = self._why_idle()
                self._describe(idle)
                if idle and self._calls is not None and not self._calls.within:  # others were told before, or by it
                    self._comment(f"No identity acted: {idle}.")

        p.sample = sample

    def _require_acted(self) -> None:
        if self._pass is not None:
            self._pass.require_acted()

    def _check_hires(self, base: Base) -> None:
        """The hires pass may use a checkpoint of another family; better said now than after the first pass."""
        p = self._p
        name = getattr(p, "hr_checkpoint_name", None)
        if not getattr(p, "enable_hr", False) or name in _NO_MODEL or not self._settings.in_hires_pass().enabled:
            return
        if shared_session.base_of_file(name) not in (None, base):
            raise SettingsError(
                "hires.use",
                f"the hires checkpoint '{name}' is of another family than the adapter",
                "Use 'off', or choose another hires checkpoint.",
                "off",
            )

    def _check_refiner(self) -> None:
        p = self._p
        at = getattr(p, "refiner_switch_at", None)
        if getattr(p, "refiner_checkpoint", None) in _NO_MODEL or at is None or at >= 1:
            return
        if compat.refiner_leaves_model(p):
            self._comment("the refiner works without the identity: Forge changes the model without asking extensions.")

    def _tell(self, prepared: Prepared) -> None:
        """Notes go below the picture, once each."""
        for note in prepared.explanation.notes:
            self._comment(note)

    def _comment(self, note: str) -> None:
        note = hints.shown(note)
        if note not in self._told:
            self._told[note] = None
            self._p.comment(f"DP-Adapter: {note}")
