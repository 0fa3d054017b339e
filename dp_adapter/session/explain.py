"""Last stage: what acts and why, for the user. Sentences about persons, words and regions are made here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dp_adapter import naming
from dp_adapter.core.blend import GLOBAL_TOKENS
from dp_adapter.core.injection import Identity, Injection
from dp_adapter.core.text.text_side import TextIdentity
from dp_adapter.session.assemble import Assembly
from dp_adapter.session.assembly.attention_form import megabytes
from dp_adapter.session.explanation import Explanation, PersonExplanation
from dp_adapter.session.photos.features import Person
from dp_adapter.session.photos.reference_photos import words_of
from dp_adapter.session.place import PlacedPersons
from dp_adapter.session.regions.forecast import note_missing_regions
from dp_adapter.session.regions.sharing_by_words import SharingWords
from dp_adapter.session.regions.tracker_setup import describe_tracking
from dp_adapter.session.resolve import ResolvedRequest
from dp_adapter.session.see import SeenPersons
from dp_adapter.settings import Gate, Reference, Settings
from dp_adapter.settings.messages import tidy
from dp_adapter.weights.checkpoint import Checkpoint

_LOCKED = {"key": ", its keys locked", "others": ", all other words locked"}


def explain(
    resolved: ResolvedRequest, seen: SeenPersons, placed: PlacedPersons, assembly: Assembly, bytes_per_number: int
) -> Explanation:
    """
    Args:
        bytes_per_number: size of the numbers that the host computes with.
    """
    settings, checkpoint, mode, injection = resolved.settings, resolved.checkpoint, assembly.mode, assembly.injection
    form, form_mb = injection.form_used, 0.0
    if not injection.gated:
        form_mb = round(megabytes(form, injection.identities, bytes_per_number), 1)
    persons = tuple(
        _explain_person(settings, placed, identity, seen.persons[identity.person]) for identity in injection.identities
    )
    acting = {one.number: one.region for one in persons}
    idle = _why_idle(injection)
    return Explanation(
        active=injection.active,
        model=checkpoint.path.name,
        family=resolved.variant,
        base=checkpoint.base,
        blend=resolved.blend.mode,
        form=form,
        form_mb=form_mb,
        weight=settings.weight,
        span=(injection.schedule.start, injection.schedule.end),
        lora=settings.lora_weight if checkpoint.lora else 0.0,
        guidance=injection.guidance,
        persons=persons,
        notes=(
            *mode.notes,
            *resolved.notes,
            *seen.left_out,
            *seen.notes,
            *assembly.text_notes,
            *_note_same_words(placed.words),
            *(() if placed.words else note_missing_regions(settings.regions, settings.sharing, acting)),
            *([f"{naming.capitalise(idle)}."] if idle else []),
            *_note_nothing_free(settings.free_parts, placed),
            *_note_without_effect(settings.gate, checkpoint, injection),
            *assembly.net_notes,
        ),
        mode=settings.mode,
        mode_lines=mode.lines,
        words=mode.words,
        idle=idle,
        left_out=seen.left_out,
        used=_used(resolved, assembly),
    )


def explain_absence(resolved: ResolvedRequest, seen: SeenPersons) -> Explanation:
    """Of a generation without anybody, since no photo can be used."""
    note = "No photo is left to use, so the picture was made without the adapter."
    notes = (*resolved.notes, *seen.left_out, *seen.notes, note)
    return Explanation(active=False, notes=notes, idle="no photo is left to use", left_out=seen.left_out)


def explain_inaction(injection: Injection, progress: Sequence[float]) -> tuple[str, ...]:
    """Why an injection that could act does so at no call of the UNet, in words; nothing where it does.

    Args:
        progress: at each call, exactly.
    """
    elsewhere = any(one.uses_photo or one.on_text is not None for one in injection.identities)
    schedule = injection.schedule
    if not injection.active or elsewhere or not progress or any(map(schedule.at, progress)):
        return ()
    at = ", ".join(f"{one:.2g}" for one in progress[:6]) + (" ..." if len(progress) > 6 else "")
    curve = " and where its weight curve is not 0" if schedule.curve else ""
    return (
        f"The identity acted nowhere: no step lies from progress {schedule.start:g} to {schedule.end:g}{curve}; "
        f"the steps are at {at}.",
    )


def _explain_person(settings: Settings, placed: PlacedPersons, identity: Identity, person: Person) -> PersonExplanation:
    number, tracker = identity.person, placed.tracker
    region, words = placed.regions[number], placed.words.get(number)
    source, coverage = region.source, region.coverage
    tracked = None if tracker is None else next((one for one in tracker.persons if one.number == number), None)
    if tracker is not None and tracked is not None:
        alone = len(placed.regions) == 1
        source = describe_tracking(region, tracked, settings.tracking, tracker.plan, alone)
        coverage = tracked.coverage
    if words is not None:
        attention = f"the attention of '{words.words}'"
        source = f"{source}, by {attention}" if words.in_region else attention
    return PersonExplanation(
        number=number,
        photos=person.photos,
        combine=person.combine,
        encoders=person.encoders,
        tokens=len(identity.tokens.cond),
        region=source,
        coverage=round(coverage, 4),
        word=_describe_word(settings.references, number, identity.on_text),
        looks_at=_describe_reference(person),
    )


def _describe_word(references: Sequence[Reference], person: int, identity: TextIdentity | None) -> str:
    """Which word of the prompt a person acts through; empty for none."""
    if identity is None:
        return ""
    if not identity.needs_word:
        return f"all words of the prompt, weight {tidy(identity.weight)}"
    words = words_of(references, person) or identity.word
    named = f"'{words}'" if words else "the person word that is theirs"
    times = f", {identity.tokens} times in a row" if identity.tokens > 1 else ""
    learned = ", learned words in its place" if identity.learned is not None else ""
    return f"{named} in the prompt{times}{learned}, weight {tidy(identity.weight)}{_LOCKED.get(identity.lock, '')}"


def _describe_reference(person: Person) -> str:
    """Which photo the picture's self-attention looks at; empty for none."""
    one = person.reference
    if one is None:
        return ""
    return (
        f"photo attention {one.weight:g} from {one.start:g} to {one.end:g} to {naming.photo(person.reference_number)}"
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


def _note_same_words(words: Mapping[int, SharingWords]) -> tuple[str, ...]:
    """Who cannot be told apart by their words."""
    persons: dict[str, list[int]] = {}
    for person, one in words.items():
        persons.setdefault(one.words.lower(), []).append(person)
    return tuple(
        f"{naming.capitalise(' and '.join(map(naming.person, alike)))} have the same words ('{words}'), which cannot "
        "tell them apart: each gets a part of both. Give each their own, such as 'woman in red'."
        for words, alike in persons.items()
        if len(alike) > 1
    )


def _note_nothing_free(asked: bool, placed: PlacedPersons) -> tuple[str, ...]:
    """Why the parts that are to be free are not."""
    if not asked or placed.tracker is not None or any(one.free is not None for one in placed.regions.values()):
        return ()
    return ("No part of a face is free: that needs an automatic region, and a part left to the text.",)


def _note_without_effect(gate: Gate, checkpoint: Checkpoint, injection: Injection) -> tuple[str, ...]:
    """Which values of the request say nothing to this checkpoint."""
    notes: list[str] = []
    if gate != Gate() and any(getattr(site, "blending", None) is not None for site in checkpoint.adapter.sites):
        notes.append(f"The gate's powers do nothing: {checkpoint.path.name} brings a trained gate.")
    tokens = max((len(one.tokens.cond) + one.zero_tokens for one in injection.identities), default=0)
    if any(one.mode == "orthogonal_v2" for one in injection.identities) and tokens <= GLOBAL_TOKENS:
        notes.append(f"With {tokens} identity tokens the blend mode 'orthogonal_v2' is the same as 'add'.")
    return tuple(notes)


def _used(resolved: ResolvedRequest, assembly: Assembly) -> dict[str, object]:
    used = dict(resolved.used)
    if assembly.net is not None:
        used["identity_net.model"] = assembly.net.model.name
    elif assembly.net_notes:
        used["identity_net.use"] = "off"
    return used
