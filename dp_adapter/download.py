"""One file over https: resumable, never larger than announced, never in place before its checksum is right."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import shutil
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, BinaryIO, cast

from dp_adapter import __version__
from dp_adapter.errors import CatalogError

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""

_CHUNK = 1 << 20
_TIMEOUT = 30.0  # seconds without a byte, not for the whole file
_DISK_RESERVE = 64 << 20  # a system disk filled to the last byte breaks other programs


def download(
    url: str,
    target: Path,
    *,
    size: int,
    sha256: str,
    page: str,
    opener: urllib.request.OpenerDirector | None = None,
    progress: Progress | None = None,
) -> None:
    """Bring ``url`` to ``target``, which appears only complete and verified.

    What has arrived lies in ``part_of(target)``: an interruption keeps it and the next call goes
    on from there (HTTP Range, RFC 9110 §14); a wrong checksum or too long a body deletes it.

    Args:
        size: of the whole file, bytes.
        sha256: of the whole file, lower-case hex.
        page: address named in errors for a person to open.
        opener: default `https_opener()`.

    Raises:
        CatalogError: not https (redirects too), no space, network trouble, wrong content, another
            process is downloading the same file, or something else stands in the file's place.
    """
    job = _Job(url, target, size, page, progress)
    _require_https(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    for path in (job.part, _lock_of(target)):  # a link's target would be written to
        _require_plain(path, path.is_symlink())
    _require_plain(target)
    with _exclusive(target):
        if target.exists() and sha256_of(target) == sha256:  # another process has just finished
            return
        _check_space(job)
        _transfer(job, opener or https_opener())
        if (digest := sha256_of(job.part)) != sha256:
            job.part.unlink()
            raise CatalogError(
                f"{target.name} came with the SHA-256 {digest} instead of {sha256} and was deleted",
                f"Try again; if it happens again, the file at {page} was changed: report it.",
            )
        try:
            job.part.replace(target)
        except OSError as error:  # on Windows a file that a program has open keeps its place
            raise CatalogError(
                f"{target.name} is downloaded, but could not take its place ({error.strerror or error})",
                f"Close what uses {target}, and try again: nothing is downloaded twice.",
            ) from error


def part_of(target: Path) -> Path:
    """The unfinished download that belongs to ``target``."""
    return target.with_name(target.name + ".part")


def _lock_of(target: Path) -> Path:
    return target.with_name(target.name + ".lock")


def _require_plain(path: Path, is_link: bool = False) -> None:
    if is_link or (path.exists() and not path.is_file()):
        kind = "a link" if is_link else "a folder" if path.is_dir() else "no plain file"
        raise CatalogError(f"{path} is {kind}, so nothing can be downloaded there", "Move it away.")


def sha256_of(path: Path, progress: Progress | None = None) -> str:
    """SHA-256 of a file as lower-case hex, read in 1 MiB pieces."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
            done += len(piece)
            if progress:
                progress(done, total)
    return digest.hexdigest()


def is_https(url: str) -> bool:
    """Whether the address is an https one."""
    return url.startswith("https://")


def https_opener(context: ssl.SSLContext | None = None) -> urllib.request.OpenerDirector:
    """An opener that speaks https only and follows https redirects only; honours proxy settings."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        _HttpsRedirects(),
        urllib.request.HTTPSHandler(context=context),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


class _HttpsRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        _require_https(newurl)
        return super().redirect_request(req, fp, code, msg, cast(http.client.HTTPMessage, headers), newurl)


@dataclass(frozen=True)
class _Job:
    url: str
    target: Path
    size: int
    page: str
    progress: Progress | None

    @property
    def part(self) -> Path:
        return part_of(self.target)

    @property
    def arrived(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def error(self, problem: str) -> CatalogError:
        return CatalogError(
            problem, f"Run it again, it resumes where it stopped; or download it yourself from {self.page}"
        )


def _require_https(url: str) -> None:
    if not is_https(url):
        raise CatalogError(f"refusing to download from {url}, which is not https")


def _check_space(job: _Job) -> None:
    needed = job.size - job.arrived + _DISK_RESERVE
    if (free := shutil.disk_usage(job.part.parent).free) < needed:
        raise CatalogError(
            f"{job.part.parent} has {free / 1e6:,.0f} MB free, {job.target.name} needs {needed / 1e6:,.0f} MB",
            "Make room, or choose another folder.",
        )


def _transfer(job: _Job, opener: urllib.request.OpenerDirector) -> None:
    """Bring the part to the full size."""
    if job.arrived > job.size:  # not a download of this file
        job.part.unlink()
    if (have := job.arrived) == job.size:
        return
    headers = {"User-Agent": f"dp-adapter/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(job.url, headers=headers)  # noqa: S310 - download() has refused all but https
    try:
        with _open(job, opener, request) as response:
            _require_https(response.url)
            start = _body_start(job, response, have)
            with job.part.open("r+b" if job.part.exists() else "wb") as file:
                file.seek(start)
                file.truncate()
                done = _copy(job, response, file, start)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            job.part.unlink(missing_ok=True)
        raise job.error(f"{job.url} answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise job.error(f"the download of {job.target.name} failed: {error}") from error
    if done > job.size:
        job.part.unlink()
        raise job.error(f"{job.url} sends more than the {job.size:,} bytes of {job.target.name}, which was deleted")
    if done < job.size:
        raise job.error(f"the connection ended after {done:,} of {job.size:,} bytes of {job.target.name}")


def _open(
    job: _Job, opener: urllib.request.OpenerDirector, request: urllib.request.Request
) -> http.client.HTTPResponse:
    """The answer to a request, whose redirects may be no addresses at all."""
    try:
        return cast(http.client.HTTPResponse, opener.open(request, timeout=_TIMEOUT))
    except ValueError as error:
        raise job.error(f"{job.url} leads to an address that is none ({error})") from error


def _body_start(job: _Job, response: http.client.HTTPResponse, have: int) -> int:
    """Offset in the file of the body's first byte: ``have`` if the server resumes, else 0."""
    start, total = 0, response.headers.get("Content-Length")
    if response.status == http.client.PARTIAL_CONTENT:
        span = response.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", span)
        if match is None or int(match[1]) != have:
            raise job.error(f"{job.url} was asked for the bytes from {have} and answered '{span}'")
        start, total = have, None if match[2] == "*" else match[2]
    if total is not None and total != str(job.size):
        shown = f"{int(total):,}" if re.fullmatch(r"[0-9]{1,15}", total) else repr(total[:20])
        raise CatalogError(
            f"{job.url} offers {shown} bytes, {job.target.name} has {job.size:,}",
            f"The file was changed: look at {job.page} and report it.",
        )
    return start


def _copy(job: _Job, response: http.client.HTTPResponse, file: BinaryIO, start: int) -> int:
    """Write the body until it ends or exceeds the size; returns the bytes the file would have."""
    done = start
    try:
        while done <= job.size and (piece := response.read(_CHUNK)):
            done += len(piece)
            if done <= job.size:
                file.write(piece)
                if job.progress:
                    job.progress(done, job.size)
    finally:  # what arrived before a cut connection is worth keeping
        file.flush()
        os.fsync(file.fileno())
    return done


@contextlib.contextmanager
def _exclusive(target: Path) -> Generator[None, None, None]:
    """Hold an operating-system lock, which a crash releases too; the lock file is removed after use."""
    path = _lock_of(target)
    while True:
        file = path.open("ab")
        try:
            _lock(file)
        except OSError as error:
            file.close()
            raise CatalogError(
                f"another process is downloading {target.name}", "Wait until it has finished."
            ) from error
        # Between open and lock the former holder may have removed the file: then the lock guards nothing.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                break
        file.close()
    try:
        yield
    finally:
        if sys.platform != "win32":  # before closing, or the next holder's file would be removed
            path.unlink(missing_ok=True)
        file.close()
        if sys.platform == "win32":  # an open file cannot be removed there, ours or the next holder's
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


if sys.platform == "win32":
    import msvcrt

    def _lock(file: BinaryIO) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(file: BinaryIO) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
