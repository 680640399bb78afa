"""Machines that files are run on, one file a kind; its name is what people write before ``:``.

Takes files and commands; gives what the commands print, their time and peak memory, and files back.
Imports nothing but ``core``.
"""

from __future__ import annotations

from edgepack.core import plugins
from edgepack.devices.base import Device


def get(text: str) -> Device:
    """The device that a person names as ``NAME`` or ``NAME:ADDRESS``.

    What an address is, each device says for itself. Raises `RecipeError` for an unknown name, and
    whatever the device has against the address.
    """
    name, _, address = text.partition(":")
    plugin: type[Device] = plugins.find("devices", name)
    return plugin(address)
