"""Run by the WebUI before it starts: installs what the extension needs beside the WebUI's own packages.

Nothing is uninstalled, and the WebUI's own packages stay at the version they have.
"""

import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile

ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-rocm")
LEAST = (1, 19)  # the shipped face encoder is an ONNX file of opset 21
# pyproject's extra "faces"; its OpenCV is one of the WebUI's own packages.
REQUIREMENT = "onnxruntime>=1.19"
QUIET = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}  # looking whether it loads tells nobody
# From which release on onnxruntime wants how new a package. Else pip learns it from one wheel after the other.
NEEDS = (((1, 27), "protobuf", (4, 25, 8)),)
PINNED = (
    "torch", "torchvision", "numpy", "gradio", "fastapi", "pydantic", "protobuf", "pillow", "transformers",
    "opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless",
)  # fmt: skip


def version_of(package):
    """The first three numbers of an installed package's version, or None."""
    try:
        text = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
    release = re.match(r"\d+(\.\d+)*", text)
    numbers = [int(number) for number in release[0].split(".")] if release else []
    return (*numbers, 0, 0, 0)[:3]


def newest(version=version_of):
    """What to ask pip for: the newest onnxruntime that the WebUI's packages allow."""
    barred = [first for first, package, least in NEEDS if (here := version(package)) is not None and here < least]
    return REQUIREMENT + "".join(f",<{major}.{minor}" for major, minor in sorted(barred)[:1])


def missing(found):
    """What to install, given the versions of the onnxruntime packages that are here; and a word to the user."""
    if any(version >= LEAST for version in found.values()):
        return "", ""
    if set(found) <= {"onnxruntime"}:
        return newest(), ""
    names = ", ".join(found)
    return "", f"DP-Adapter needs onnxruntime 1.19 or newer; {names} is older and is left alone. Please update it."


def constraints():
    """Lines that hold the WebUI's own packages where they are."""
    lines = []
    for package in PINNED:
        try:
            lines.append(f"{package}=={importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return "\n".join(lines) + "\n"


def main():
    """Installs what is missing; a failure is reported and does not keep the WebUI from starting."""
    if "--skip-install" in sys.argv or "--skip-install" in os.environ.get("COMMANDLINE_ARGS", "").split():
        return
    found = {name: version for name in ONNXRUNTIMES if (version := version_of(name)) is not None}
    requirement, words = missing(found)
    if words:
        print(words)
    if not requirement:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "constraints.txt")
        with open(path, "w", encoding="utf-8") as file:
            file.write(constraints())
        print(f"DP-Adapter: installing {requirement}")
        command = [sys.executable, "-m", "pip", "install", requirement, "-c", path, "--prefer-binary"]
        if subprocess.run(command, check=False).returncode:
            by_hand = f'"{sys.executable}" -m pip install "{requirement}"'
            print(f"DP-Adapter: onnxruntime could not be installed; install it by hand: {by_hand}")
        elif subprocess.run([sys.executable, "-c", "import onnxruntime"], env=QUIET, check=False).returncode:
            print("DP-Adapter: onnxruntime was installed but cannot be loaded, for the reason above.")


if __name__ == "__main__":
    main()
