"""Fourth stage: persons, regions and a checkpoint become what a host attaches to its UNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dp_adapter.core.injection import Identity, Injection, TextPathway
from dp_adapter.core.schedule import Schedule
from dp_adapter.core.text.text_side import PromptPerson, TextIdentity
from dp_adapter.core.types import Features
from dp_adapter.errors import SettingsError
from dp_adapter.modes import ResolvedMode
from dp_adapter.session.assembly import identity_net
from dp_adapter.session.assembly.attention_form import choose_form
from dp_adapter.session.assembly.text_identities import TextIdentities, join, prompt_person, weigh_text
from dp_adapter.session.loaded_models import LoadedModels, require_base
from dp_adapter.session.photos.features import Person
from dp_adapter.session.place import PlacedPersons
from dp_adapter.session.resolve import ResolvedRequest
from dp_adapter.session.scene import Scene
from dp_adapter.session.see import SeenPersons
from dp_adapter.settings import Settings
from dp_adapter.weights.checkpoint import Checkpoint, RecipeOptions
from dp_adapter.weights.library import Library

_UNKNOWN_START = 0.15  # without a known region the layout is left to the text first (FastComposer's delay)


@dataclass(frozen=True, eq=False)
class Assembly:
    """What acts in one generation.

    Attributes:
        mode: at work; without words where nobody acts.
        prompt_persons: the persons who act through a word, and how prompts have to speak of them; nobody likewise.
        net: InstantID's IdentityNet, for hosts that have a ControlNet; None for none.
        text_notes, net_notes: on what is left out of the text side, and why there is no IdentityNet.
    """

    injection: Injection
    mode: ResolvedMode
    prompt_persons: tuple[PromptPerson, ...]
    net: identity_net.Net | None = None
    text_notes: tuple[str, ...] = ()
    net_notes: tuple[str, ...] = ()


class Assembler:
    """Assembles the generations of one session; what a person's photos become on the text side is kept."""

    def __init__(self, models: LoadedModels, library: Library) -> None:
        self._models = models
        self._library = library
        self._texts = TextIdentities()

    def forget(self) -> None:
        self._texts.forget()

    def assemble(self, resolved: ResolvedRequest, seen: SeenPersons, placed: PlacedPersons, scene: Scene) -> Assembly:
        """
        Raises:
            WeightsError: a file beside the checkpoint is not here, or features do not fit.
            SettingsError: such a file, the form of the attention or the IdentityNet cannot be used.
        """
        settings, checkpoint = resolved.settings, resolved.checkpoint
        options = _token_options(resolved, scene)
        texts, text_notes = self._text_identities(resolved, seen.persons, scene, options)
        identities = tuple(
            _identity(resolved, placed, number, person, texts[number], replace(options, person=number))
            for number, person in seen.persons.items()
        )
        schedule = _schedule(settings, checkpoint, _is_placed(settings, placed), scene.progress)
        injection = Injection(
            identities=identities,
            schedule=schedule,
            powers={"down": settings.gate.down, "middle": settings.gate.middle, "up": settings.gate.up},
            text=TextPathway(
                settings.text_weight, settings.text_emphasis, settings.strict_text_region, settings.free_parts
            ),
            lora=tuple((entry, settings.lora_weight) for entry in checkpoint.lora),
            companion=self._models.companion(settings.companion, scene.base),
            sharing="words" if placed.words else "regions",
            guidance=settings.identity_guidance or None,
        )
        injection = choose_form(injection, settings.performance, scene.bytes_per_number)
        if not injection.active:  # off is off, for the prompts too
            return Assembly(injection, replace(resolved.mode, words=(), face_pass=False), (), text_notes=text_notes)
        net, net_notes = self._net(resolved, seen, placed, injection, scene)
        speaking = [(one.person, one.on_text) for one in identities if one.on_text is not None]
        prompt_persons = tuple(prompt_person(settings.references, number, text) for number, text in speaking)
        return Assembly(injection, resolved.mode, prompt_persons, net, text_notes, net_notes)

    def _text_identities(
        self, resolved: ResolvedRequest, persons: Mapping[int, Person], scene: Scene, options: RecipeOptions
    ) -> tuple[dict[int, TextIdentity | None], tuple[str, ...]]:
        """What each person changes on the text side, and notes; a personalised identity beside it is the first's."""
        checkpoint, name = resolved.checkpoint, resolved.settings.text_side.personal
        texts = {number: self._texts.of(checkpoint, person.features, options) for number, person in persons.items()}
        if not name or checkpoint.personal:
            return texts, ()
        own = self._models.checkpoint(name)
        if not own.personal:
            problem = f"{own.path.name} is {own.title}, not a personalised identity"
            raise SettingsError("text_side.personal", problem, "Choose it as the model instead.")
        require_base(own, scene.base, "text_side.personal")
        first = min(texts)
        learned = self._texts.of(own, Features(), options)
        both = join(texts[first], learned)
        notes: tuple[str, ...] = ()
        if learned is not None and both is not None and learned.learned is not None and both.learned is None:
            notes = (
                f"The learned words of {own.path.name} stay out: {checkpoint.title} speaks through the same word.",
            )
        return {**texts, first: both}, notes

    def _net(
        self,
        resolved: ResolvedRequest,
        seen: SeenPersons,
        placed: PlacedPersons,
        injection: Injection,
        scene: Scene,
    ) -> tuple[identity_net.Net | None, tuple[str, ...]]:
        """The IdentityNet of an InstantID generation, or notes on why it has none."""
        if not resolved.checkpoint.variant(resolved.variant).identity_net:
            return None, ()
        asked = resolved.settings.identity_net
        path, notes = identity_net.choose_net(asked, self._library, scene.controls)
        if path is None:
            return None, notes
        persons = tuple(
            identity_net.net_person(
                one.tokens,
                seen.persons[one.person].sources,
                placed.requested.face_points(one.person),
                one.mask,
                scene,
            )
            for one in injection.identities
        )
        return identity_net.Net(path, asked.weight, asked.end, persons), notes


def _identity(
    resolved: ResolvedRequest,
    placed: PlacedPersons,
    number: int,
    person: Person,
    text: TextIdentity | None,
    options: RecipeOptions,
) -> Identity:
    settings, region, words = resolved.settings, placed.regions[number], placed.words.get(number)
    tracked = () if placed.tracker is None else placed.tracker.persons
    track = next((one.track for one in tracked if one.number == number), None)
    return Identity(
        adapter=resolved.checkpoint.adapter,
        tokens=resolved.checkpoint.tokens(person.features, options),
        weight=settings.weight * region.weight,
        mask=region.mask if track is None else None,
        mode=resolved.blend.mode,
        zero_tokens=resolved.blend.zero_tokens,
        track=track,
        free=region.free if track is None else None,
        text=weigh_text(text, settings.text_side, region.weight if settings.weight else 0.0),
        entity=None if words is None else words.entity,
        person=number,
        reference=person.reference,
    )


def _is_placed(settings: Settings, placed: PlacedPersons) -> bool:
    """Whether nothing but known regions and found faces gets the identity: then the layout needs no delay."""
    tracker = placed.tracker
    tracked = () if tracker is None else [one.number for one in tracker.persons]
    waiting = settings.tracking.fallback != "full" or (tracker is not None and tracker.plan.hurried)
    return all(region.known or (number in tracked and waiting) for number, region in placed.regions.items())


def _schedule(settings: Settings, checkpoint: Checkpoint, is_placed: bool, progress: Sequence[float]) -> Schedule:
    automatic = checkpoint.start
    if automatic is None:
        automatic = 0.0 if is_placed else _UNKNOWN_START
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


def _token_options(resolved: ResolvedRequest, scene: Scene) -> RecipeOptions:
    structure = resolved.settings.structure
    shortcut = resolved.checkpoint.variant(resolved.variant).shortcut
    return RecipeOptions(shortcut, 1.0 if structure is None else structure, scene.encode)
