"""Write docs/models.md: families and what works for each. Run after adding or changing one."""

from __future__ import annotations

from pathlib import Path

from edgepack.catalogue.families import CAPABILITIES, Family, families
from edgepack.core.tables import markdown
from edgepack.init.devices import DEVICES

PAGE = Path(__file__).with_name("models.md")
HEAD = """# Models

Made by `docs/make_models.py`, from the facts by which edgepack refuses what does not work; a test
compares them. `edgepack models` prints the same.

A family is the `model_type` of config.json. Any model of a family works, fine-tunes too, as a
folder, from the hub, or as a GGUF file.
"""


def page() -> str:
    """The page as it should be."""
    found = families()
    lines = [HEAD, *_works(found), ""]
    lines += [f"- **{one.title}**: {one.about}" for one in CAPABILITIES]
    lines += ["", "## Why not", "", *_reasons(found)]
    lines += ["", "## Published models", "", *_models(found)]
    lines += ["", "## Devices of `edgepack init`", "", *_devices()]
    return "\n".join(lines) + "\n"


def _works(found: tuple[Family, ...]) -> list[str]:
    rows = [["family", "sizes", *(one.title for one in CAPABILITIES)]]
    for family in found:
        marks = ["no" if family.answers[one.key] else "yes" for one in CAPABILITIES]
        rows.append([f"`{family.name}`", family.sizes, *marks])
    return markdown(rows)


def _reasons(found: tuple[Family, ...]) -> list[str]:
    """Each reason once, with the families that it is said of."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for family in found:
        for one in CAPABILITIES:
            if reason := family.answers[one.key]:
                reasons.setdefault((one.title, reason), []).append(f"`{family.name}`")
    rows = sorted((title, ", ".join(names), why) for (title, why), names in reasons.items())
    return [f"- {title}, {names}: {why}." for title, names, why in rows]


def _models(found: tuple[Family, ...]) -> list[str]:
    rows = [["family", "models, and their weights"]]
    for family in found:
        names = ", ".join(f"{model.name} ({model.size})" for model in family.models)
        rows.append([f"`{family.name}`", names])
    return [f"| {a} | {b} |" for a, b in (rows[0], ("---", "---"), *rows[1:])]


def _devices() -> list[str]:
    rows = [["device", "memory for an app", "context", "bits", "target", "fast formats"]]
    for device in DEVICES.values():
        for target, kernels in device.targets.items():
            figures = [f"{device.usable / 1e9:.1f} GB", f"{device.context:,}", f"{device.bits:g}"]
            rows.append([f"`{device.name}`", *figures, target, ", ".join(kernels.fast)])
    return markdown(rows)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
