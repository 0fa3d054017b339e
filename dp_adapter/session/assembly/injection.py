"""People, areas and a checkpoint joined into one generation's injection, and what is told about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dp_adapter.core.injection import Identity, Injection, TextPathway
from dp_adapter.core.schedule import Schedule
from dp_adapter.core.text.text_side import Spoken, TextIdentity
from dp_adapter.modes import ResolvedMode
from dp_adapter.session.assembly import identity_net
from dp_adapter.session.assembly.attention_form import megabytes, with_form
from dp_adapter.session.assembly.prompt_persons import in_words, spoken_of, text_side
from dp_adapter.session.checkpoint_choices import Way, way_of
from dp_adapter.session.explanation import Explanation, PersonExplanation
from dp_adapter.session.photos.features import Person
from dp_adapter.session.regions import sharing_by_words
from dp_adapter.session.regions.forecast import unplaced
from dp_adapter.session.regions.requested_regions import PersonRegion
from dp_adapter.session.regions.tracker import Tracker
from dp_adapter.session.regions.tracker_setup import following_words
from dp_adapter.session.scene import Encode, Scene
from dp_adapter.settings import Settings
from dp_adapter.weights.checkpoint import Checkpoint, TokenOptions

_UNKNOWN_START = 0.15  # without a known region the layout is left to the text first (FastComposer's delay)


@dataclass(frozen=True)
class Prepared:
    """What a host needs, and what is told to the user.

    Attributes:
        tracker: moves regions while the picture forms; None where all of them stay.
        net: InstantID's IdentityNet, for hosts that have a ControlNet; None for none.
        edit: the mode at work, whose words go into the prompts; None where the adapter is off, and without words
            where nobody acts.
        spoken: the persons who act through a word, and how prompts have to speak of them; nobody where nobody acts.
    """

    injection: Injection
    explanation: Explanation
    tracker: Tracker | None = None
    edit: ResolvedMode | None = None
    net: identity_net.Net | None = None
    spoken: tuple[Spoken, ...] = ()


def off(notes: Sequence[str], idle: str = "", left_out: Sequence[str] = ()) -> Prepared:
    told = Explanation(active=False, notes=tuple(notes), idle=idle, left_out=tuple(left_out))
    return Prepared(Injection(()), told)


def prepared_of(
    edit: ResolvedMode,
    checkpoint: Checkpoint,
    variant: str,
    people: dict[int, Person],
    texts: Mapping[int, TextIdentity | None],
    areas: dict[int, PersonRegion],
    tracker: Tracker | None,
    notes: Sequence[str],
    scene: Scene,
    by_words: Mapping[int, sharing_by_words.Shared],
) -> Prepared:
    settings = edit.settings
    way = way_of(settings, checkpoint)
    options = options_of(settings, variant, scene.encode)
    identities, told = _persons(settings, checkpoint, way, options, people, texts, areas, tracker, by_words)
    # Where nothing but a found face gets the identity, the layout is left to the text without a delay.
    tracks = () if tracker is None else [one.number for one in tracker.people]
    waiting = settings.tracking.fallback != "full" or (tracker is not None and tracker.plan.hurried)
    known = all(area.known or (number in tracks and waiting) for number, area in areas.items())
    schedule = _schedule(settings, checkpoint, known, scene.progress)
    injection = _injection(settings, checkpoint, identities, schedule, by_words)
    injection = with_form(settings, injection, scene.bytes_per_number)
    if not injection.active:  # off is off, for the prompts too
        edit = replace(edit, words=(), face_pass=False)
    idle = _why_idle(injection)
    idle_notes = (f"{idle[:1].upper()}{idle[1:]}.",) if idle else ()
    return Prepared(
        injection,
        Explanation(
            active=injection.active,
            model=checkpoint.path.name,
            family=variant,
            base=checkpoint.base,
            blend=way.mode,
            form=injection.form_used,
            form_mb=0.0
            if injection.gated
            else round(megabytes(injection.form_used, injection.identities, scene.bytes_per_number), 1),
            weight=settings.weight,
            span=(schedule.start, schedule.end),
            lora=settings.lora_weight if checkpoint.lora else 0.0,
            persons=tuple(told),
            notes=(
                *edit.notes,
                *notes,
                *sharing_by_words.doubts(by_words),
                *(() if by_words else unplaced(settings, {one.number: one.region for one in told})),
                *idle_notes,
                *_nothing_free(settings, areas, tracker),
            ),
            mode=settings.mode,
            mode_lines=edit.lines,
            words=edit.words,
            idle=idle,
        ),
        tracker,
        edit,
        spoken=tuple(
            spoken_of(settings, one.person, one.on_text)
            for one in identities
            if injection.active and one.on_text is not None
        ),
    )


def _persons(
    settings: Settings,
    checkpoint: Checkpoint,
    way: Way,
    options: TokenOptions,
    people: Mapping[int, Person],
    texts: Mapping[int, TextIdentity | None],
    areas: Mapping[int, PersonRegion],
    tracker: Tracker | None,
    by_words: Mapping[int, sharing_by_words.Shared],
) -> tuple[list[Identity], list[PersonExplanation]]:
    """Each person's identity, and what is told about it."""
    identities: list[Identity] = []
    told: list[PersonExplanation] = []
    tracks = {} if tracker is None else {one.number: one for one in tracker.people}
    for number, person in people.items():
        options = replace(options, person=number)
        tokens, area = checkpoint.tokens(person.features, options), areas[number]
        weight = settings.weight * area.weight
        on_text = text_side(settings, texts[number], area.weight)
        one = Identity(checkpoint.adapter, tokens, weight, None, way.mode, way.zero_tokens, text=on_text, person=number)
        mine = by_words.get(number)
        one = replace(one, entity=None if mine is None else mine.entity, reference=person.reference)
        followed = tracks.get(number)
        if tracker is None or followed is None:
            identities.append(replace(one, mask=area.mask, free=area.free))
            region = area.source
        else:
            identities.append(replace(one, track=followed.track))
            region = following_words(area, followed, settings.tracking, tracker.plan, alone=len(people) == 1)
        told.append(
            PersonExplanation(
                number,
                person.photos,
                person.combine,
                person.encoders,
                len(tokens.cond),
                region if mine is None else mine.told(region),
                round(area.coverage if followed is None else followed.coverage, 4),
                in_words(settings, number, on_text),
                person.looks_at,
            )
        )
    return identities, told


def used_in(asked: Settings, edit: ResolvedMode, checkpoint: Checkpoint, variant: str) -> dict[str, object]:
    """What this request's automatic values stood for, as far as it depends on what is installed here."""
    used: dict[str, object] = {"model": checkpoint.path.name}
    if len(checkpoint.variants) > 1:
        used["variant"] = variant
    if asked.reference_age != edit.settings.reference_age:  # estimated by a pack that may not be there
        used["reference_age"] = edit.settings.reference_age
    return used


def _injection(
    settings: Settings,
    checkpoint: Checkpoint,
    identities: Sequence[Identity],
    schedule: Schedule,
    by_words: Mapping[int, sharing_by_words.Shared],
) -> Injection:
    return Injection(
        tuple(identities),
        schedule,
        {"down": settings.gate.down, "middle": settings.gate.middle, "up": settings.gate.up},
        TextPathway(settings.text_weight, settings.text_emphasis, settings.strict_text_region, settings.free_parts),
        tuple((entry, settings.lora_weight) for entry in checkpoint.lora),
        sharing="words" if by_words else "regions",
    )


def never_acted(injection: Injection, progress: Sequence[float]) -> tuple[str, ...]:
    """Why an injection that could act does so at no call of the UNet, in words; nothing where it does.

    Args:
        progress: at each call, exactly.
    """
    elsewhere = any(one.refers or one.on_text is not None for one in injection.identities)
    schedule = injection.schedule
    if not injection.active or elsewhere or not progress or any(map(schedule.at, progress)):
        return ()
    at = ", ".join(f"{one:.2g}" for one in progress[:6]) + (" ..." if len(progress) > 6 else "")
    curve = " and where its weight curve is not 0" if schedule.curve else ""
    return (
        f"The identity acted nowhere: no step lies from progress {schedule.start:g} to {schedule.end:g}{curve}; "
        f"the steps are at {at}.",
    )


def _why_idle(injection: Injection) -> str:
    """What switches a complete request off, in words; nothing where it acts."""
    if injection.active:
        return ""
    if all(identity.weight == 0 for identity in injection.identities):
        return "its weight is 0"
    if not injection.schedule.ever_active:
        return "its weight curve is 0 everywhere"
    return "its region covers nothing of the picture"


def _nothing_free(settings: Settings, areas: Mapping[int, PersonRegion], tracker: Tracker | None) -> tuple[str, ...]:
    """Why the parts that are to be free are not."""
    if not settings.free_parts or tracker is not None or any(area.free is not None for area in areas.values()):
        return ()
    return ("No part of a face is free: that needs an automatic region, and a part left to the text.",)


def _schedule(settings: Settings, checkpoint: Checkpoint, known: bool, progress: Sequence[float]) -> Schedule:
    automatic = checkpoint.start
    if automatic is None:
        automatic = 0.0 if known else _UNKNOWN_START
    if progress and max(progress) < automatic:  # so few steps that none would be left
        automatic = 0.0
    start = automatic if settings.span.start is None else settings.span.start
    return Schedule(
        min(start, settings.span.end),
        settings.span.end,
        settings.curve.points,
        {"down": settings.levels.down, "middle": settings.levels.middle, "up": settings.levels.up},
        dict(settings.levels.sites),
    )


def options_of(settings: Settings, variant: str, encode: Encode | None) -> TokenOptions:
    structure = 1.0 if settings.structure is None else settings.structure
    return TokenOptions(variant != "faceid-plus", structure, encode)
