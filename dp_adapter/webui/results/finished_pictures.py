"""The finished pictures of a job: made anew at the face, judged, chosen among candidates, compared, or left out."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dp_adapter import naming
from dp_adapter.session.results import acted_regions, best_of
from dp_adapter.settings import Report, Settings
from dp_adapter.settings.result_sections import RESULT
from dp_adapter.webui.host import shared_session
from dp_adapter.webui.job import inner_jobs, run_inside
from dp_adapter.webui.job.stop import comment_on_error
from dp_adapter.webui.results import face_pass
from dp_adapter.webui.results.measurements import Measurements

if TYPE_CHECKING:
    from PIL.Image import Image

    from dp_adapter.session import Prepared
    from dp_adapter.session.results.judge import Judge, LikenessVerdict
    from dp_adapter.session.scene import Mask, Picture


_REGION = "dp_adapter_region"  # attribute of an inner job: where its identities acted


@dataclass(frozen=True, eq=False)
class _Made:
    """A finished picture, its seed, what was measured of it on the way, and where an identity acted."""

    image: Image
    seed: int
    facts: Mapping[str, str] = field(default_factory=dict[str, str])
    region: Mask | None = None


class FinishedPictures:
    """One job's finished pictures.

    Args:
        p: the job, before its preparation.
        prepared: gives what the last pass was made with.
        edit_prompts: as ``inner_jobs.prepare_again`` takes it.

    Raises:
        DPAdapterError: there are no photos to compare with.
    """

    def __init__(
        self, p: Any, settings: Settings, prepared: Callable[[], Prepared], edit_prompts: inner_jobs.EditPrompts
    ) -> None:
        self._p = p
        self._settings = settings
        self._prepared = prepared
        self._edit_prompts = edit_prompts
        self._measured = Measurements(p)
        self._left_out: dict[int, Image] = {}
        self._samples: tuple[str, tempfile.TemporaryDirectory[str]] | None = None
        self._judged = best_of.needs_judge(settings.report)
        self._judge: Judge | None = None
        self._before = copy.copy(p)
        if self._judged:
            for person in self._the_judge().unknown:
                p.comment(f"DP-Adapter: no photo of {naming.person(person)} shows a face that can be compared.")

    def before_overlay(self, pp: Any) -> None:
        """A picture as it was sampled; what was painted over by an inpainting mask comes later."""
        self.close()
        edit = self._prepared().mode
        if face_pass.is_wanted(self._p, self._settings, edit) and not run_inside.is_cut_short():
            with comment_on_error(self._p, "the face pass failed, the picture is as it was before"):
                regions = acted_regions.regions_of(self._prepared(), self._p.batch_index)
                done = face_pass.make_faces_anew(self._p, pp, self._settings, edit, self._the_judge(), regions)
                self._measured.add(inner_jobs.picture_number(self._p), {"face pass": done})

    def choose(self, pp: Any) -> None:
        """A picture as it is handed back and saved next: the best of its candidates, with what was measured."""
        if self._judged and not run_inside.is_cut_short():
            with comment_on_error(self._p, "the report failed"):
                self._choose(pp)

    def _choose(self, pp: Any) -> None:
        p, judge, number = self._p, self._the_judge(), inner_jobs.picture_number(self._p)
        made = _Made(pp.image, p.all_seeds[number], region=self._region(pp.image))
        first = best_of.Candidate(0, judge.see(_pixels_of(pp.image)), made)
        chosen = best_of.choose(judge.name, self._settings.report, first, self._make_candidate, self._measure_drift)
        kept = chosen.candidate.made
        if kept is not made:
            pp.image = kept.image
            p.all_seeds = _replace_at(p.all_seeds, number, kept.seed)
            p.seeds = _replace_at(p.seeds, p.batch_index, kept.seed)
        if chosen.left_out:
            self._leave_out(number, pp, chosen.candidate.verdict)
        self._measured.add(number, {**kept.facts, **chosen.facts})
        p.comment(f"DP-Adapter: picture {number + 1} (seed {kept.seed}): {chosen.sentence}.")

    def hand_back(self, processed: Any) -> None:
        """The whole job is done."""
        self.close()
        if inner_jobs.is_inner(self._p) and processed.images:
            setattr(self._p, _REGION, self._region(processed.images[0]))
        made = len(processed.infotexts) - processed.index_of_first_image
        kept = [number for number in range(made) if number not in self._left_out]
        self._measured.settle(kept)
        if not self._left_out:
            return
        blanks = self._left_out.values()
        processed.images = [one for one in processed.images if not any(one is blank for blank in blanks)]
        first = processed.index_of_first_image
        processed.infotexts = processed.infotexts[:first] + [processed.infotexts[first + number] for number in kept]
        for name in ("all_prompts", "all_negative_prompts", "all_seeds", "all_subseeds"):
            if kept:  # the hosts take the first of each
                values = enumerate(getattr(processed, name))
                setattr(processed, name, [value for number, value in values if number not in self._left_out])
        if first and not kept:  # a grid of nothing
            processed.images, processed.infotexts, processed.index_of_first_image = processed.images[first:], [], 0
        self._p.extra_generation_params[f"{RESULT}left out"] = f"{len(self._left_out)} of {made}"

    def close(self) -> None:
        """Gives the job back its folder, wherever it stopped."""
        if self._samples is not None:
            self._p.outpath_samples, folder = self._samples
            self._samples = None
            folder.cleanup()

    def _the_judge(self) -> Judge:
        if self._judge is None:
            from dp_adapter.session.results.judge import Judge

            session = shared_session.session()
            persons = self._prepared().explanation.persons
            encoders = [name for person in persons for name in person.encoders]
            self._judge = Judge(session, self._settings, encoders)
        return self._judge

    def _make_candidate(self, number: int) -> best_of.Candidate[_Made] | None:
        """One more candidate; None where the user ended the search, or it failed."""
        if run_inside.is_stopped():
            return None
        p = self._p
        seed = best_of.candidate_seed(p.all_seeds[inner_jobs.picture_number(p)], number)
        settings = self._settings.replace(report=Report())
        with comment_on_error(p, f"candidate {number + 1} failed"):
            p2 = inner_jobs.prepare_again(p, self._before, seed, settings)
            image = run_inside.run(p, p2, f"candidate {number + 1} of {self._settings.report.best_of}")
            if image is not None:
                made = _Made(image, seed, run_inside.parameters_of(p2, RESULT), getattr(p2, _REGION, None))
                return best_of.Candidate(number, self._the_judge().see(_pixels_of(image)), made)
        return None

    def _region(self, image: Image) -> Mask | None:
        p = self._p
        regions = acted_regions.regions_of(self._prepared(), p.batch_index)
        return acted_regions.union(regions, image.size, getattr(p, "paste_to", None))

    def _measure_drift(self, kept: best_of.Candidate[_Made]) -> best_of.Drift | None:
        """None for what is left out, where the user ended the job, and where it failed."""
        if best_of.is_left_out(self._settings.report, kept.verdict) or run_inside.is_stopped():
            return None
        made = kept.made
        with comment_on_error(self._p, "the picture to measure the drift by failed"):
            p2 = inner_jobs.prepare_again(self._p, self._before, made.seed, Settings(enabled=False), self._edit_prompts)
            plain = run_inside.run(self._p, p2, "the picture without the identity")
            if plain is not None:
                return best_of.measure_drift(_pixels_of(made.image), _pixels_of(plain), made.region)
        return None

    def _leave_out(self, number: int, pp: Any, verdict: LikenessVerdict) -> None:
        """Takes a picture out of the results: a blank one stands for it until the host has written it, to be deleted.

        The hosts decide whether to save before they ask scripts, but look up the folder afterwards.
        """
        from PIL import Image

        p = self._p
        pp.image = self._left_out[number] = Image.new("RGB", pp.image.size, (72, 76, 84))
        folder = tempfile.TemporaryDirectory(prefix="dp-adapter-", ignore_cleanup_errors=True)
        self._samples = (p.outpath_samples, folder)
        p.outpath_samples = folder.name
        least, asked = verdict.least or 0.0, self._settings.report.least or 0.0
        p.comment(
            f"DP-Adapter: picture {number + 1} is left out and not saved: its likeness {least:.2f} is below the "
            f"{asked:.2f} that were asked for."
        )


def _pixels_of(image: Image) -> Picture:
    import numpy as np

    return np.asarray(image.convert("RGB"), np.uint8)


def _replace_at(values: list[int], place: int, value: int) -> list[int]:
    """A copy, since the hosts use one list for what was asked and what is done."""
    return [*values[:place], value, *values[place + 1 :]]
