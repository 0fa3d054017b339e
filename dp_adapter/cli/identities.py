"""``dp-adapter identities``: people saved under a name, to be used as 'identity:NAME' wherever a photo is asked for."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dp_adapter import naming
from dp_adapter.cli.models import models_dir_parser, models_root
from dp_adapter.cli.settings import request_from
from dp_adapter.errors import IdentityError, SettingsError

if TYPE_CHECKING:
    from dp_adapter.identity.saved.identity_library import IdentityLibrary
    from dp_adapter.identity.saved.saved_identity import IdentityHeader


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add ``identities`` with its actions to the command line."""
    parser = subparsers.add_parser("identities", help="save people and use them without photos", description=__doc__)
    parser.set_defaults(run=run)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    common = models_dir_parser()
    listing = actions.add_parser("list", parents=[common], help="all saved identities")
    listing.add_argument("--json", action="store_true", help="one JSON object per identity")
    save = actions.add_parser("save", parents=[common], help="save a person from photos")
    save.add_argument("name", metavar="NAME")
    save.add_argument("photos", nargs="+", metavar="PHOTO", help="a file, or identity:NAME")
    save.add_argument(
        "--photo-weight", action="append", default=[], metavar="W", help="of each photo in their order; all or none"
    )
    save.add_argument("--replace", action="store_true", help="overwrite an identity of this name")
    save.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="e.g. face.choice=left, no_face=continue"
    )
    rename = actions.add_parser("rename", parents=[common], help="give an identity another name")
    rename.add_argument("name", metavar="OLD")
    rename.add_argument("new", metavar="NEW")
    delete = actions.add_parser("delete", parents=[common], help="remove an identity's file")
    delete.add_argument("name", metavar="NAME")
    show = actions.add_parser("show", parents=[common], help="what is known about an identity; checks its file")
    show.add_argument("name", metavar="NAME")
    show.add_argument("--json", action="store_true", help="as a JSON object")
    show.add_argument("--thumbnail", type=Path, metavar="FILE", help="write its thumbnail here, as PNG")


def run(args: argparse.Namespace) -> int:
    """Carries out the action; 0, or 1 where ``list`` met a file that is no identity.

    Raises:
        DPAdapterError: in words.
    """
    from dp_adapter.identity.saved.identity_library import IdentityLibrary

    if args.action == "save":
        return _save(args)
    identities = IdentityLibrary([models_root(args.models_dir)])
    if args.action == "list":
        return _list(identities, args.json)
    if args.action == "show":
        return _show(identities, args)
    if args.action == "rename":
        identities.rename(args.name, args.new)
        print(f"{args.name} is now {args.new}.")
    else:
        identities.delete(args.name)
        print(f"{args.name} is deleted.")
    return 0


def _list(identities: IdentityLibrary, as_json: bool) -> int:
    bad = 0
    names = identities.names()
    for name in names:
        try:
            header = identities.header(name)
        except IdentityError as error:
            bad = 1
            print(json.dumps({"name": name, "error": str(error)}) if as_json else f"{name}: {error}")
        else:
            print(json.dumps(_facts(header)) if as_json else f"{name}: {_brief(header)}")
    if not names and not as_json:
        print("No identity is saved. Save one with: dp-adapter identities save NAME PHOTO")
    return bad


def _save(args: argparse.Namespace) -> int:
    from dp_adapter.session import Session
    from dp_adapter.settings import field_at

    if args.photo_weight and len(args.photo_weight) != len(args.photos):
        problem = f"{len(args.photos)} photos were given, and {len(args.photo_weight)} weights"
        raise SettingsError("references", problem, "Give --photo-weight once for each photo, or not at all.")
    references: list[dict[str, Any]] = [{"image": photo} for photo in args.photos]
    for reference, weight in zip(references, args.photo_weight, strict=False):
        reference["weight"] = field_at("references[0].weight").kind.parse(weight)
    request = request_from(None, {"references": references}, args.set)
    session = Session([models_root(args.models_dir)], paths_allowed=True)
    saved = session.save_identity(args.name, request, replace=args.replace)
    print(f"{saved.name}: {_brief(saved)}")
    for note in saved.notes:
        print(f"  {note}")
    print(f"Use it as a photo: identity:{saved.name}")
    return 0


def _show(identities: IdentityLibrary, args: argparse.Namespace) -> int:
    saved = identities.load(args.name)
    facts = _facts(saved)
    if args.thumbnail:
        args.thumbnail.write_bytes(saved.thumbnail)
        facts["thumbnail"] = str(args.thumbnail)
    if args.json:
        print(json.dumps(facts))
        return 0
    print(f"{saved.name}, saved {saved.created}, content {saved.digest[:16]}")
    for number, photo in enumerate(saved.photos):
        quality = next(iter(photo.views.values())).quality
        print(f"  {naming.photo(number)} ({photo.digest[:16]}): weight {photo.weight:g}, quality {quality.score:.2f}")
        for warning in quality.warnings():
            print(f"    {warning}")
    for encoder, version in saved.encoders.items():
        print(f"  {encoder}, version {version}")
    if args.thumbnail:
        print(f"-> {args.thumbnail}")
    return 0


def _brief(header: IdentityHeader) -> str:
    return f"{len(header.hashes)} photo(s), {', '.join(header.encoders)}, {header.created[:10]}"


def _facts(header: IdentityHeader) -> dict[str, Any]:
    return {
        "name": header.name,
        "created": header.created,
        "digest": header.digest,
        "encoders": dict(header.encoders),
        "photos": list(header.hashes),
    }
