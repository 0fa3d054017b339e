"""The face pass through the host's own img2img, as ADetailer does it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dp_adapter import naming
from dp_adapter.session.results import face_pass_plan as plan
from dp_adapter.webui.host import compat, shared_session
from dp_adapter.webui.job import inner_jobs, run_inside

if TYPE_CHECKING:
    from dp_adapter.modes import ResolvedMode
    from dp_adapter.session.results.judge import Judge
    from dp_adapter.session.scene import Mask
    from dp_adapter.settings import Settings


def is_wanted(p: Any, settings: Settings, edit: ResolvedMode | None) -> bool:
    """Whether this job's faces are to be made anew; ``auto`` leaves them to ADetailer where that runs."""
    return plan.is_wanted(settings, edit) and (settings.face_pass.use == "on" or not compat.adetailer_runs(p))


def make_faces_anew(
    p: Any, pp: Any, settings: Settings, edit: ResolvedMode | None, judge: Judge, regions: Mapping[int, Mask | None]
) -> str:
    """Makes the persons' faces of a picture anew, largest first.

    Args:
        pp: holds the picture, and takes the new one.
        regions: of the persons that acted.

    Returns:
        What was done, in words.
    """
    import numpy as np
    from PIL import Image

    from dp_adapter.session.results.judge import find

    picture = np.asarray(pp.image.convert("RGB"), np.uint8)
    faces = find(shared_session.session().encoders, picture)
    if not faces or not regions:
        p.comment("DP-Adapter: the face pass found no face in the picture.")
        return "no face"
    theirs = judge.whose(picture, faces, regions)
    done, asked = 0, settings.face_pass
    side = plan.side(asked, shared_session.native_size(p.sd_model), p.width, p.height)
    for person, face in sorted(theirs.items(), key=lambda one: -one[1].size):
        if run_inside.is_stopped():
            break
        part = plan.square(face, picture.shape[1], picture.shape[0], side)
        start = Image.fromarray(plan.enlarge_square(picture, part))
        request = plan.request(settings, edit, person)
        p2 = inner_jobs.prepare_face(p, start, asked.strength, request)
        made = run_inside.run(p, p2, f"{naming.face(done)} of {len(theirs)}")
        if made is None:
            break
        picture = plan.paste_square(picture, np.asarray(made.convert("RGB"), np.uint8), part, face)
        pp.image = Image.fromarray(picture)
        done += 1
    return f"{done} of {len(theirs)}"
